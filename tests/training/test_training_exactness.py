"""Training does not depend on ranks, micro-batches or interruptions."""

import numpy as np
import pytest
import torch
from programs import fork_program, run_program
from training_runs import StageFile, assert_same_course, final, losses, run_of, run_to_the_end, train_here

from vggrepro.errors import UserError
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory

# Ranks and micro-batches change only the order of float32 sums. Over 50 steps, the relative difference of the losses
# is below this (8e-7 was measured).
ROUNDING = 1e-5


def test_two_ranks_have_the_loss_curve_of_a_single_rank(stage_file: StageFile) -> None:
    alone = train_here(stage_file("alone", train={"iterations": 50}))
    file = stage_file("two", train={"iterations": 50})
    finished = run_program("-m", "vggrepro", "train", "--config", file, ranks=2)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count(": 2 ranks exchange gradients by factor\n") == 1
    np.testing.assert_allclose(losses(run_of(file)), losses(alone), rtol=ROUNDING)
    assert [r["top1_error"] for r in run_of(file).records("validation")] == [
        r["top1_error"] for r in alone.records("validation")
    ]
    for name, tensor in final(alone).weights.items():
        torch.testing.assert_close(final(run_of(file)).weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_four_ranks_have_the_loss_curve_of_a_single_rank(stage_file: StageFile) -> None:
    alone = train_here(stage_file("alone", train={"iterations": 50}))
    file = stage_file("four", train={"iterations": 50})
    run_to_the_end(file, world=4)
    np.testing.assert_allclose(losses(run_of(file)), losses(alone), rtol=ROUNDING)


def exchanges(run: RunDirectory) -> list[str]:
    """Returns the gradient exchanges in a run's log."""
    noted = [record for record in run.records("event") if record["event"] == "gradient exchange"]
    assert {record["ranks"] for record in noted} <= {2}
    return [record["comm"] for record in noted]


def test_the_default_exchange_trains_like_ddp(stage_file: StageFile) -> None:
    ddp, auto = (stage_file(comm, train={"iterations": 50, "comm": comm}) for comm in ("ddp", "auto"))
    for file in (ddp, auto):
        run_to_the_end(file, world=2)
    np.testing.assert_allclose(losses(run_of(auto)), losses(run_of(ddp)), rtol=ROUNDING)
    for name, tensor in final(run_of(ddp)).weights.items():
        torch.testing.assert_close(final(run_of(auto)).weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert (exchanges(run_of(ddp)), exchanges(run_of(auto))) == (["ddp"], ["factor"])


def test_a_run_with_ddp_can_resume_with_the_default_exchange(stage_file: StageFile) -> None:
    uninterrupted = stage_file("whole", train={"comm": "ddp"})
    run_to_the_end(uninterrupted, world=2)
    run_to_the_end(stage_file("moved", train={"comm": "ddp"}), world=2)
    moved = stage_file("moved")
    back_to(8, run_of(moved))
    run_to_the_end(moved, world=2)
    np.testing.assert_allclose(losses(run_of(moved)), losses(run_of(uninterrupted)), rtol=ROUNDING)
    assert exchanges(run_of(moved)) == ["ddp", "factor"]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_have_the_loss_curve_of_the_full_batch(stage_file: StageFile, micro_batch: int) -> None:
    uninterrupted = train_here(stage_file("whole"))
    parts = train_here(stage_file("parts", train={"micro_batch": micro_batch}))
    np.testing.assert_allclose(losses(parts), losses(uninterrupted), rtol=ROUNDING)


def test_dropout_depends_on_the_seed(stage_file: StageFile) -> None:
    with_dropout = losses(train_here(stage_file("with")))
    without = losses(train_here(stage_file("without", model={"dropout": 0.0})))
    assert with_dropout[0] != without[0]


def back_to(step: int, run: RunDirectory) -> None:
    """Restores the files of a run that is killed after the checkpoint of a step."""
    (run.checkpoints / "final.pt").unlink(missing_ok=True)
    for file in run.checkpoints.glob("step-*.pt"):
        if int(file.stem.removeprefix("step-")) > step:
            file.unlink()


# 39 images in batches of 8: epochs end in the 5th and the 10th step, each with a validation and a checkpoint.
@pytest.mark.parametrize("step", [4, 5, 8, 10])
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_run(stage_file: StageFile, step: int) -> None:
    undisturbed = train_here(stage_file("undisturbed"))
    file = stage_file("resumed")
    resumed = train_here(file)
    back_to(step, resumed)
    assert max(record["step"] for record in resumed.records()) == 12
    train_here(file)
    assert_same_course(resumed, undisturbed)


def test_a_resumed_run_keeps_its_learning_rate_drop(stage_file: StageFile) -> None:
    settings = {"iterations": 30, "learning_rate": 1e-9, "schedule": {"patience": 2}}
    undisturbed = train_here(stage_file("undisturbed", train=settings))
    file = stage_file("resumed", train=settings)
    resumed = train_here(file)
    back_to(16, resumed)
    train_here(file)
    assert [r["learning_rate"] for r in resumed.records("train")][-1] < 1e-10
    assert_same_course(resumed, undisturbed)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    stage_file: StageFile, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = train_here(stage_file("undisturbed"))
    file = stage_file("torn")
    torn = train_here(file)
    back_to(10, torn)
    newest = torn.checkpoints / "step-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    train_here(file)
    assert "step-00000010.pt is damaged" in caplog.text
    assert_same_course(torn, undisturbed)


def test_a_directory_of_another_configuration_is_an_error_that_lists_the_differences(stage_file: StageFile) -> None:
    file = stage_file("A")
    train_here(file)
    with pytest.raises(UserError, match=r"another configuration \(train.learning_rate was 0.01, is 0.02\)"):
        train_here(file, "train.learning_rate=0.02")
    train_here(file, "train.log_every=5", "train.micro_batch=2")  # these do not change the course


def test_a_child_records_its_parent(stage_file: StageFile) -> None:
    parent = train_here(stage_file("A"))
    child = train_here(stage_file("B", model={"net": "B"}, run={"name": "B", "parent": "A.yaml"}))
    descent = final(child).provenance["parent"]
    assert descent["name"] == "A"
    assert descent["weights"] == checkpoint.weights_hash(final(parent).weights)
    copied = {layer["child"] for layer in descent["layers"] if layer["parent"]}
    assert copied == {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}


def test_a_missing_parent_is_an_error(stage_file: StageFile) -> None:
    stage_file("A")
    with pytest.raises(UserError, match="stage A is not finished"):
        train_here(stage_file("B", model={"net": "B"}, run={"name": "B", "parent": "A.yaml"}))


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_an_error_of_one_line(stage_file: StageFile) -> None:
    failed = fork_program("-m", "vggrepro", "train", "--config", stage_file("A", train={"batch": 9}), ranks=2)
    assert failed.returncode != 0
    lines = [line for line in failed.stderr.splitlines() if line.startswith("vggrepro:")]
    assert lines == [
        "vggrepro: train.batch=9 cannot be split evenly over 2 ranks; start one of 1, 3, 9 ranks, or change train.batch"
    ]
