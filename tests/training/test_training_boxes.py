"""Training of nets that predict boxes."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import Fault, Ranks, StageFile, assert_same_course, final, losses, run_of, run_to_the_end, train_here

from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan_folder
from vggrepro.errors import INTERRUPTED_STATUS, UserError

BOXES = {"train": {"learning_rate": 0.001, "iterations": 20, "log_every": 3}}


def write_boxes(root: Path, index: Index, *, without: int = 0) -> None:
    """Writes a box for every image except the first `without` training images; some images have two."""
    random = np.random.default_rng(0)
    lines = ["file\txmin\tymin\txmax\tymax"]
    for split in ("train", "val"):
        of_split = index.split(split)
        for row in range(without if split == "train" else 0, len(of_split)):
            for _ in range(1 + row % 2):
                left, top = random.integers(0, 15, 2)
                right, bottom = random.integers(20, 36, 2)
                place = f"{split}/{of_split.containers[of_split.container[row]].rsplit('/', 1)[1]}"
                lines.append(f"{place}/{of_split.names[row].as_py()}\t{left}\t{top}\t{right}\t{bottom}")
    (root / "boxes.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def boxed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with boxes."""
    root = tmp_path_factory.mktemp("boxed") / "images"
    shutil.copytree(images, root)
    write_boxes(root, scan_folder(root))
    return root


@pytest.fixture
def box_stage(stage_file: StageFile, boxed: Path) -> StageFile:
    """Writes a stage file of a net that predicts boxes, after training its parent once."""
    parent = stage_file("A", data={"root": str(boxed)})
    train_here(parent)

    def write(name: str, **sections: dict) -> Path:
        defaults = {
            "localisation": {"regression": "PCR"} | sections.pop("localisation", {}),
            "data": {"root": str(boxed)} | sections.pop("data", {}),
            "run": {"parent": "A.yaml"},
            "train": BOXES["train"] | sections.pop("train", {}),
        }
        return stage_file(name, **defaults, **sections)

    return write


@pytest.mark.parametrize("regression", ["SCR", "PCR"])
@pytest.mark.parametrize("fine_tune", ["all", "fc"])
def test_only_the_configured_layers_are_trained(box_stage: StageFile, regression: str, fine_tune: str) -> None:
    file = box_stage("boxes", localisation={"regression": regression, "fine_tune": fine_tune})
    run = train_here(file)
    parent, child = final(run_of(file.with_name("A.yaml"))).weights, final(run).weights
    for name, tensor in child.items():
        if name.startswith("classifier.6"):
            assert tensor.shape[0] == (4 if regression == "SCR" else 12)
        else:
            frozen = fine_tune == "fc" and name.startswith("features")
            assert torch.equal(tensor, parent[name]) == frozen, name
    assert losses(run)[-1] < losses(run)[0]
    (*_, last) = run.records("validation")
    assert {"box_error", "mean_iou", "n"} <= last.keys()
    assert last["n"] == 12
    inherited = final(run).provenance["parent"]["layers"]
    assert [record["child"] for record in inherited if record["parent"] is None] == ["fc8"]


def test_a_net_learns_to_predict_boxes(box_stage: StageFile) -> None:
    """After some steps, most boxes near the middle of the image overlap by half."""
    train = {"iterations": 120, "learning_rate": 0.003, "schedule": {"kind": "fixed", "drops_at": [90]}}
    run = train_here(box_stage("boxes", train=train, model={"dropout": 0.0}))
    (*_, last) = run.records("validation")
    assert last["mean_iou"] > 0.45
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("step 8", signal.SIGKILL), Fault("step 13", signal.SIGTERM)], id="killed-then-stopped"),
        pytest.param([Fault("validation", signal.SIGTERM, 3)], id="in-a-validation"),
    ],
)
def test_interruptions_do_not_change_the_run(box_stage: StageFile, faults: list[Fault]) -> None:
    undisturbed = train_here(box_stage("undisturbed"))
    file = box_stage("disturbed")
    for fault in faults:
        killed = fault.signal == signal.SIGKILL
        ranks = Ranks(file, world=1, fault=fault)
        assert ranks.join() == [-signal.SIGKILL if killed else INTERRUPTED_STATUS], ranks.text()
    run_to_the_end(file)
    assert_same_course(run_of(file), undisturbed)


@pytest.mark.parametrize(("fine_tune", "comm"), [("all", "factor"), ("all", "ddp"), ("fc", "auto")])
def test_two_ranks_train_like_a_single_rank(box_stage: StageFile, fine_tune: str, comm: str) -> None:
    alone = train_here(box_stage("alone", localisation={"fine_tune": fine_tune}))
    file = box_stage("two", localisation={"fine_tune": fine_tune}, train={"comm": comm, "micro_batch": 3})
    run_to_the_end(file, world=2)
    np.testing.assert_allclose(losses(run_of(file)), losses(alone), rtol=1e-5)
    errors = [[record["box_error"] for record in run.records("validation")] for run in (run_of(file), alone)]
    assert errors[0] == errors[1]
    exchanges = [record["comm"] for record in run_of(file).records("event") if record["event"] == "gradient exchange"]
    assert exchanges == ["ddp" if fine_tune == "fc" else comm]


def test_images_without_boxes_are_skipped_and_counted(
    box_stage: StageFile, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "some"
    shutil.copytree(images, root)
    write_boxes(root, scan_folder(root), without=9)
    file = box_stage("boxes", data={"root": str(root)})
    run = train_here(file)
    assert run.read_json("dataset.json")["boxes"]["images"]["train"] == {"with": 30, "without": 9}
    assert run.records("train")[-1]["epoch"] == pytest.approx(20 * 8 / 30)
    assert "boxes: 9 training images without a box are skipped" in capsys.readouterr().err


def test_other_boxes_are_another_data_set(box_stage: StageFile, boxed: Path, images: Path, tmp_path: Path) -> None:
    file = box_stage("boxes", train={"iterations": 4})
    train_here(file)
    (run_of(file).checkpoints / "final.pt").unlink()
    root = tmp_path / "other"
    shutil.copytree(images, root)
    write_boxes(root, scan_folder(root), without=1)
    with pytest.raises(UserError, match=r"was begun with other boxes .*; choose another run.experiment, or restore"):
        train_here(file, f"data.root={root}")


def test_a_data_set_without_boxes_is_an_error_of_one_line(box_stage: StageFile, images: Path, tmp_path: Path) -> None:
    root = tmp_path / "none"
    shutil.copytree(images, root)
    (root / "boxes.tsv").write_text("file\txmin\tymin\txmax\tymax\nelsewhere.jpg\t0\t0\t5\t5\n")
    with pytest.raises(UserError, match=r"none of the training images of .* has a box in .*; add their annotations"):
        train_here(box_stage("boxes", data={"root": str(root)}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"parent": None}}, "run.parent is missing: a net that predicts boxes starts from a net that"),
        ({"data": {"S": [34, 40]}}, r"data.S=\[34, 40\]: training on boxes needs a fixed S"),
        ({"localisation": {"fine_tune": "fc"}, "train": {"comm": "factor"}}, "train.comm=factor needs trainable conv"),
        ({"localisation": {"fine_tune": "fc"}, "model": {"batch_norm": True}}, "freezes convolutions"),
        ({"localisation": {"regression": "both"}}, "localisation.regression='both' is not allowed"),
        ({"model": {"net": "B"}}, "a net B that predicts boxes starts from a net B .*; parent A has other layers"),
    ],
)
def test_invalid_settings_for_boxes_are_errors_of_one_line(box_stage: StageFile, sections: dict, message: str) -> None:
    run = sections.pop("run", {})
    file = box_stage("boxes", **sections)
    if run:
        file.write_text(file.read_text().replace("  parent: A.yaml\n", ""))
    with pytest.raises(UserError, match=message):
        train_here(file)
