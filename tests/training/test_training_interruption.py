"""A run that is stopped or killed at any time resumes without a difference."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from training_runs import (
    Fault,
    Ranks,
    StageFile,
    assert_same_course,
    last,
    losses,
    run_of,
    run_to_the_end,
    train_here,
    write_stage,
)

from vggrepro.errors import INTERRUPTED_STATUS, Interrupted
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory

TWENTY = {"iterations": 20, "log_every": 3}


def interrupted(file: Path, fault: Fault, world: int = 1) -> Ranks:
    """Starts a run with a fault, and waits for its end."""
    ranks = Ranks(file, world=world, fault=fault)
    killed = fault.signal == signal.SIGKILL
    assert ranks.join() == [-signal.SIGKILL if killed else INTERRUPTED_STATUS] * world, ranks.text()
    return ranks


@pytest.fixture(scope="module")
def twenty(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run of twenty uninterrupted steps; a log line straddles most interruptions of other runs."""
    folder = tmp_path_factory.mktemp("twenty")
    return train_here(write_stage(folder, images, "undisturbed", train=TWENTY))


def test_a_killed_and_a_terminated_run_resume_to_twenty_equal_steps(
    stage_file: StageFile, twenty: RunDirectory
) -> None:
    file = stage_file("disturbed", train=TWENTY | {"checkpoint_every": 1})
    interrupted(file, Fault("step 8", signal.SIGKILL))
    assert last(run_of(file)).step in (6, 7)  # the seventh may not have been written yet
    stopped = interrupted(file, Fault("step 13", signal.SIGTERM))
    assert "stopped (SIGTERM; saved at step 13); run the same command again" in stopped.text()
    assert last(run_of(file)).step == 13
    run_to_the_end(file)
    assert_same_course(run_of(file), twenty)


# 39 images in batches of 8: epochs end in steps 5, 10, 15, 20; two batches of validation images
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("step 5", signal.SIGTERM)], id="in-an-epochs-last-step"),
        pytest.param([Fault("step 7", signal.SIGTERM), Fault("step 9", signal.SIGUSR2)], id="twice-in-one-epoch"),
        pytest.param([Fault("validation", signal.SIGTERM, 3)], id="term-in-the-second-validation"),
        pytest.param([Fault("validation", signal.SIGUSR2, 4)], id="usr2-in-the-second-validation"),
        pytest.param([Fault("validation", signal.SIGKILL, 4)], id="kill-in-the-second-validation"),
        pytest.param([Fault("step 1", signal.SIGKILL), Fault("step 1", signal.SIGTERM)], id="at-once"),
        pytest.param([Fault("step 20", signal.SIGTERM)], id="in-the-last-step"),
        pytest.param([Fault("step 5", signal.SIGTERM), Fault("step 6", signal.SIGKILL)], id="kill-after-a-validation"),
    ],
)
def test_interruptions_do_not_change_the_run(stage_file: StageFile, twenty: RunDirectory, faults: list[Fault]) -> None:
    file = stage_file("disturbed", train=TWENTY)
    for fault in faults:
        interrupted(file, fault)
    run_to_the_end(file)
    assert_same_course(run_of(file), twenty)


def test_a_run_that_decodes_in_processes_can_be_interrupted(stage_file: StageFile) -> None:
    """Signals go to all its processes, as from SLURM."""
    long = {"iterations": 400, "log_every": 20, "checkpoint_every": 50, "validate_every": 20, "learning_rate": 1e-5}
    undisturbed = train_here(stage_file("undisturbed", train=long))
    file = stage_file("disturbed", train=long, data={"processes": 1})
    for step, number, status in ((60, signal.SIGKILL, -signal.SIGKILL), (160, signal.SIGTERM, INTERRUPTED_STATUS)):
        ranks = Ranks(file, parents=True)
        (process,) = ranks.processes
        until = time.monotonic() + 60
        while max((record["step"] for record in run_of(file).records("train")), default=0) < step:
            assert process.is_alive(), ranks.text()
            assert time.monotonic() < until
            time.sleep(0.02)
        assert process.pid is not None
        os.killpg(process.pid, number)
        assert ranks.join() == [status], ranks.text()
        assert "Traceback" not in ranks.text()
    ranks = Ranks(file, parents=True)
    assert ranks.join(120) == [0], ranks.text()
    assert_same_course(run_of(file), undisturbed)


def test_incomplete_files_of_a_killed_writer_are_removed(stage_file: StageFile) -> None:
    file = stage_file("A")
    interrupted(file, Fault("step 5", signal.SIGTERM))
    left = run_of(file).checkpoints / ".step-00000005.0a1b.pt"
    left.write_bytes(b"torn")
    train_here(file)
    assert not left.exists()


def test_validation_stops_within_a_batch_and_is_repeated(stage_file: StageFile) -> None:
    file = stage_file("A", train={"checkpoint_every": 100}, evaluation={"batch": 1})
    interrupted(file, Fault("validation", signal.SIGTERM, 2))
    run = run_of(file)
    assert last(run).step == 5
    assert run.records("validation") == []
    run_to_the_end(file)
    assert [record["step"] for record in run.records("validation")] == [5, 10, 12]


def test_the_wall_time_limit_stops_the_run(stage_file: StageFile) -> None:
    file = stage_file("A", train={"iterations": 100_000, "stall_after": 0})
    started = time.monotonic()
    with pytest.raises(Interrupted, match=r"wall time nearly spent; saved at step \d+"):
        train_here(file, stop_after_s=2.0)
    assert time.monotonic() - started < 10
    assert last(run_of(file)).step > 0


def test_two_ranks_stop_at_the_same_step(stage_file: StageFile, twenty: RunDirectory) -> None:
    file = stage_file("A", train=TWENTY)
    interrupted(file, Fault("step 8", signal.SIGTERM, rank=1), world=2)
    assert last(run_of(file)).step in (8, 9)  # the vote is known one step late
    interrupted(file, Fault("validation", signal.SIGTERM, rank=0), world=2)
    run_to_the_end(file, world=2)
    np.testing.assert_allclose(losses(run_of(file)), losses(twenty), rtol=1e-5)
    exchange, *others = run_of(file).records()  # once, however often the ranks begin; one rank exchanges nothing
    assert (exchange["event"], exchange["comm"]) == ("gradient exchange", "factor")
    assert [r["step"] for r in others] == [r["step"] for r in twenty.records()]


def test_a_run_resumes_with_fewer_ranks(stage_file: StageFile) -> None:
    train = {"iterations": 50}
    undisturbed = train_here(stage_file("undisturbed", train=train))
    file = stage_file("fewer", train=train)
    interrupted(file, Fault("step 18", signal.SIGTERM), world=4)
    interrupted(file, Fault("step 34", signal.SIGTERM), world=2)
    run_to_the_end(file)
    np.testing.assert_allclose(losses(run_of(file)), losses(undisturbed), rtol=1e-5)


@pytest.mark.parametrize("comm", ["ddp", "factor"])
def test_an_interruption_does_not_change_a_run_on_four_ranks(stage_file: StageFile, comm: str) -> None:
    """On four ranks, sums depend on their order, and so on the layout of DDP's buckets."""
    train = TWENTY | {"comm": comm}
    uninterrupted, file = (stage_file(name, train=train) for name in ("undisturbed", "disturbed"))
    run_to_the_end(uninterrupted, world=4)
    interrupted(file, Fault("step 8", signal.SIGTERM), world=4)
    run_to_the_end(file, world=4)
    assert_same_course(run_of(file), run_of(uninterrupted))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Separate file system of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint(
    stage_file: StageFile, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = train_here(stage_file("undisturbed"))
    file = stage_file("full", run={"root": str(small_disk)})
    interrupted(file, Fault("step 5", signal.SIGTERM))
    run = run_of(file)
    stored = last(run).step
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - 60_000))  # room for metrics, not for a checkpoint
    with pytest.raises(Exception, match="free some space and run the same command again"):
        train_here(file)
    assert "the previous one is kept" in caplog.text
    assert last(run).step == stored
    assert [path for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []
    filler.unlink()
    train_here(file)
    assert_same_course(run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the usual ten minutes are too few beside other work
def test_a_run_survives_thirty_kills_at_random_times(stage_file: StageFile) -> None:
    often = {"log_every": 7, "checkpoint_every": 1, "keep": 2, "validate_every": 10}
    train = {"iterations": 3000, "stall_after": 0, "learning_rate": 1e-3} | often  # at 1e-2 it diverges
    undisturbed = train_here(stage_file("undisturbed", train=train))
    file = stage_file("disturbed", train=train)
    draw = random.Random(0)
    in_writing, steps = 0, []
    folder = run_of(file).checkpoints
    for number in range(30):
        ranks = Ranks(file)
        ranks.wait_for("departs from the paper")
        time.sleep(draw.uniform(0, 2))
        while number % 2 and not list(folder.glob(".step-*")) and ranks.processes[0].is_alive():
            pass  # every other kill as soon as a checkpoint is being written
        assert ranks.processes[0].is_alive(), f"the run ended before the last kill: {ranks.text()}"
        ranks.kill()
        in_writing += bool(list(folder.glob(".step-*")))
        stored = checkpoint.newest(folder)
        steps.append(stored.step if stored else 0)
    run_to_the_end(file)
    print(f"killed with checkpoints of steps {steps}, {in_writing} times inside the writing of one")
    assert steps == sorted(steps)
    assert in_writing > 0
    assert_same_course(run_of(file), undisturbed)
