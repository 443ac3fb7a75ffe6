"""The store of results: file names that old runs rely on, files of older versions, and damaged files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import CENTRE, DENSE, FoundKey, PlacesKey
from vggrepro.evaluation.boxes import Found
from vggrepro.evaluation.features import FeaturesKey
from vggrepro.evaluation.posteriors import Posteriors, PosteriorsKey
from vggrepro.evaluation.recognition import SplitScores as Scores
from vggrepro.evaluation.store import Key
from vggrepro.evaluation.transfers import NetProtocol, SplitKey, TransferProtocol
from vggrepro.storage.directory import RunDirectory

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
PLACES = PlacesKey(DENSE, 256, A, B, C, D)
NETS = (NetProtocol(A, "fc7", (256, 384), True, "fp32"),)
TEST = TransferProtocol("mine", B, "recall", NETS, "stack", False, {"seed": 0, "splits": 3}, 3, rows="r")


@pytest.mark.parametrize(
    ("key", "file"),
    [
        (PosteriorsKey(A, B, "centre", 384, True), f"posteriors/centre-Q384-{A[:12]}-{B[:12]}.npz"),
        (PosteriorsKey(A, B, "dense", 384, False, "bf16"), f"posteriors/dense-Q384-noflip-bf16-{A[:12]}-{B[:12]}.npz"),
        (
            FeaturesKey(A, "fc7", B, 256, False, "bf16", C),
            f"features/fc7-Q256-boxes-{C[:12]}-noflip-bf16-{A[:12]}-{B[:12]}.npz",
        ),
        (PLACES, "boxes/places-Q256-43a4cb04e5e2221c.npz"),
        (FoundKey((PLACES, PLACES), 0.5), "boxes/dense-Q256-ce3f7017b5dec78b.npz"),
        (FoundKey((PlacesKey(CENTRE, 256, A, B, C),)), "boxes/centre-Q256-320e04bbeadc8efc.npz"),
        (SplitKey(TEST, 2), "transfers/mine-9f1f173aac116228-2.npz"),
    ],
)
def test_files_have_the_names_that_old_runs_have(tmp_path: Path, key: Key[Any], file: str) -> None:
    assert key.file(RunDirectory(tmp_path)) == tmp_path / file


def write(file: Path, **arrays: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)


def test_results_from_before_december_2026_are_read(tmp_path: Path) -> None:
    """These are posteriors with fields in another order, boxes with an empty note, and transfers."""
    run = RunDirectory(tmp_path)
    key = PosteriorsKey(A, B, "dense", 384, True)
    write(key.file(run), values=np.ones((2, 3)), labels=np.arange(2), protocol=np.array(json.dumps(asdict(key))))
    found = key.load(run)
    assert found is not None
    np.testing.assert_array_equal(found.labels, [0, 1])
    boxes = FoundKey((PlacesKey(CENTRE, 256, A, B, C),))
    text = np.array(json.dumps(asdict(boxes), sort_keys=True))
    write(boxes.file(run), boxes=np.ones((2, 1, 4)), classes=np.ones((2, 1)), protocol=text, said=np.array("{}"))
    assert boxes.load(run) is not None
    assert FoundKey.listed(run) == [(boxes, {})]
    for split in range(3):
        note = {"protocol": asdict(TEST), "C": 0.1, "validated": [[0.1, 50.0]], "unfinished": [], "said": {"images": 6}}
        rows, scores = np.arange(2), np.full((2, 3), split)
        write(SplitKey(TEST, split).file(run), rows=rows, scores=scores, note=np.array(json.dumps(note)))
    split = SplitKey(TEST, 1)
    scored = split.load(run)
    assert scored is not None
    assert (scored.scores == 1).all()
    ((first, note),) = SplitKey.listed(run)
    assert first == SplitKey(TEST, 0)
    assert note == {"images": 6, "C": 0.1, "validated": [[0.1, 50.0]], "unfinished": []}
    again = {"C": 1.0, "validated": [[1.0, 60.0]], "unfinished": [3], "images": 7}
    split.save(run, Scores(np.arange(2), np.zeros((2, 3), np.float32)), **again)
    assert split.note(run) == again


@pytest.mark.parametrize("damage", ["no protocol", "no values", "of another kind", "no JSON"])
def test_another_kind_of_file_is_a_one_line_error(tmp_path: Path, damage: str) -> None:
    run, key = RunDirectory(tmp_path), PosteriorsKey(A, B, "dense", 384, True)
    key.save(run, Posteriors(np.ones((2, 3), np.float32), np.arange(2)))
    with np.load(key.file(run)) as content:
        arrays = dict(content)
    if damage == "no protocol":
        del arrays["protocol"]
    elif damage == "no values":
        del arrays["values"]
    elif damage == "of another kind":
        arrays["protocol"] = np.array(json.dumps(asdict(PLACES)))
    else:
        arrays["protocol"] = np.array("{")
    write(key.file(run), **arrays)
    with pytest.raises(
        UserError, match=r"posteriors .*dense-Q384-.*npz cannot be read \(.*\); remove the fi"
    ) as refused:
        key.load(run)
    assert "\n" not in str(refused.value)


def test_notes_and_answers_round_trip(tmp_path: Path) -> None:
    run, key = RunDirectory(tmp_path), FoundKey((PLACES, PLACES), 0.25)
    assert not key.exists(run)
    assert key.load(run) is None
    to_value = Found(np.ones((2, 6, 4), np.float32), np.zeros((2, 6), np.int64))
    key.save(run, to_value, guesses="parent", top5=12.5)
    assert key.exists(run)
    assert FoundKey.listed(run) == [(key, {"guesses": "parent", "top5": 12.5})]
    assert PlacesKey.listed(run) == []
    assert key.note(run)["top5"] == 12.5
