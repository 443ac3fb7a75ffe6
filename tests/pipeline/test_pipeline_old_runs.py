"""Runs of an earlier version stay what they were: names on disk are a contract, whatever the code calls things.

`old_runs.tar.xz` has what commit 2ba3b0a wrote: the graph of `old.yaml` (A, D from A, boxes from A, and B, interrupted
after step 3 of 6) with images, tests by all methods, features and SVMs, and that version's `tables --json`.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Command
from tiny import set_words

import vggrepro
from vggrepro.data.boxes import box_set
from vggrepro.data.images import index
from vggrepro.storage.directory import RunDirectory

ARCHIVE = Path(__file__).with_name("old_runs.tar.xz")
FINISHED = ("A", "D", "A-boxes")
PROSE = ("note", "claim", "better", "worse")
"""Texts of the tables, which may be reworded."""
SVM_SETTINGS = set_words("transfer.train_per_class=4", "transfer.test_per_class=2", "transfer.splits=2")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the earlier version ran in."""
    shutil.copytree(archive, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Path()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run directory, except locks and figures."""
    files = [file for file in run.rglob("*") if file.is_file() and "figures" not in file.parts]
    return {str(file): file.read_bytes() for file in files if not file.name.startswith(".")}


def without_prose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in PROSE} for row in rows]


def test_finished_stages_stay_and_an_interrupted_one_resumes(old: Path, command: Command) -> None:
    finished = {name: contents(old / "runs/old" / name) for name in FINISHED}
    run = RunDirectory(Path("runs/old/B"))
    first_half = [record for record in run.records("train") if record["step"] <= 3]
    status, _, err = command("reproduce", "--config", "old.yaml")
    assert status == 0, err
    assert {name: contents(old / "runs/old" / name) for name in FINISHED} == finished
    assert [record["step"] for record in run.records("train")] == [1, 2, 3, 4, 5, 6]
    assert run.records("train")[:3] == first_half
    assert (run.checkpoints / "final.pt").exists()


def test_tables_have_the_same_figures(old: Path, command: Command) -> None:
    shutil.rmtree("runs/old/B")
    earlier, now = json.loads(Path("tables.json").read_text()), command.json("tables", "--runs", "runs/old")
    assert sum(row.get("measured_top1") is not None for row in now["rows"]) == 4
    for part in ("rows", "claims", "transfer_claims", "dense_over_centre"):
        assert without_prose(now[part]) == without_prose(earlier[part]), part


def test_stored_results_serve_again(old: Path, command: Command) -> None:
    before = contents(old / "runs/old")
    for words in (
        ("evaluate", "runs/old/A", "--method", "multicrop", "--scales", "37"),
        ("evaluate", "runs/old/A", "runs/old/D"),
        ("localise", "runs/old/A-boxes", "--classes-from", "runs/old/A"),
        ("transfer", "runs/old/A", "--data", "flowers=flowers", *SVM_SETTINGS),
    ):
        status, _, err = command(*words)
        assert status == 0, err
    assert contents(old / "runs/old") == before


def test_the_net_predicts_its_stored_posteriors(old: Path) -> None:
    stored = vggrepro.stored_posteriors("runs/old/A", Q=37)
    predicted = vggrepro.posteriors(vggrepro.load("runs/old/A"), vggrepro.open_images("images"), Q=37)
    assert np.abs(predicted.values - stored.values).max() < 1e-5
    assert np.array_equal(predicted.labels, stored.labels)


def test_index_and_boxes_open(old: Path) -> None:
    images = index.load(Path("images.idx"))
    boxes = box_set.load(Path("images.boxes"), images)
    assert (len(images.split("train")), len(images.split("val")), len(boxes.split("val").has)) == (18, 12, 12)
