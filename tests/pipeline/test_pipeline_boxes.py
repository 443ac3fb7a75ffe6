"""Appendix A on 36 images: nets for classes, nets for boxes, both tests, and the tables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from programs import Command, fork_program
from stores import arrays, assert_same_arrays
from tiny import TINY, set_words

from vggrepro.config.recipes import Graph, load_graph
from vggrepro.data.images.scan import scan_folder
from vggrepro.errors import Interrupted
from vggrepro.evaluation.box_store import FoundKey
from vggrepro.evaluation.localise import boxes_at_places
from vggrepro.pipeline.done import is_evaluated
from vggrepro.pipeline.graph import reproduce
from vggrepro.ranks.watch import Watch
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.storage.directory import RunDirectory

GRAPH = {
    "run": {"experiment": "boxes"},
    "model": {"net": "D"},
    "data": {"S": 37},
    "stages": {
        "D": {},
        "D-fine": {"run": {"parent": "D"}, "data": {"S": 55}, "evaluation": {"single_Q": [64], "multi_Q": [64]}},
        "boxes": {"localisation": {}, "run": {"parent": "D"}, "evaluation": {"single_Q": [40], "multi_Q": [40]}},
        "boxes-fine": {
            "localisation": {},
            "run": {"parent": "D-fine"},
            "data": {"S": 55},
            "evaluation": {"single_Q": [64], "multi_Q": [40, 64]},
        },
        "boxes-SCR": {
            "localisation": {"regression": "SCR", "fine_tune": "fc"},
            "run": {"parent": "D-fine"},
            "data": {"S": 55},
            "evaluation": {"single_Q": [64], "multi_Q": [64]},
        },
    },
}
SETTINGS = [setting for setting in TINY if not setting.startswith(("data.S", "evaluation.multi_Q", "train.iterations"))]


@pytest.fixture(scope="module")
def boxed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a box in the middle; a validation image has none, and another has two."""
    root = tmp_path_factory.mktemp("boxed") / "images"
    shutil.copytree(images, root)
    lines = ["file\txmin\tymin\txmax\tymax"]
    index = scan_folder(root)
    for name in ("train", "val"):
        split = index.split(name)
        for row, (height, width) in enumerate(split.size.tolist()):
            times = {("val", 3): 0, ("val", 5): 2}.get((name, row), 1)
            place = f"{name}/{split.names[row].as_py()}"
            lines += [f"{place}\t{width // 8}\t{height // 8}\t{width * 7 // 8}\t{height * 7 // 8}"] * times
    (root / "boxes.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Graph file."""
    file = tmp_path / "boxes.yaml"
    file.write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    return file


def changes(boxed: Path, runs: Path, *more: str) -> list[str]:
    return [*SETTINGS, "train.iterations=3", f"data.root={boxed}", f"run.root={runs}", *more]


def graph_of(recipe: Path, boxed: Path, runs: Path, *more: str) -> Graph:
    return load_graph(recipe, changes(boxed, runs, *more))


@pytest.fixture(scope="module")
def finished(boxed: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Finished graph."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "boxes.yaml"
    file.write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    graph = graph_of(file, boxed, folder / "runs")
    torch.set_num_threads(1)  # as ranks have: with more, sums have another order
    reproduce(graph)
    return graph


def test_every_stage_stores_the_results_for_its_tables(finished: Graph) -> None:
    for name in ("boxes", "boxes-fine", "boxes-SCR"):
        config = finished.stages[name]
        run = RunDirectory(config.directory)
        (record,) = run.records("evaluation")
        assert record["n"] == 11  # of 12 images one has no box
        assert record["centre_single_Q_given_class_error"] == pytest.approx(run.records("validation")[-1]["box_error"])
        for Q in ("single_Q", "multi_Q"):
            assert 0 <= record[f"dense_{Q}_given_class_error"] <= record[f"dense_{Q}_localisation_error"] <= 100
        assert {file.name for file in (run.path / "figures").iterdir()} == {"learning_curves.png", "boxes.png"}
        assert is_evaluated(config, finished.parent_of(name))
        # three classes, so three guesses, and the true one
        assert all(
            content["classes"].shape == (11, 4) for key, content in arrays(run.path / "boxes").items() if "dense" in key
        )


def test_a_second_call_computes_nothing(finished: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    root = finished.stages["D"].run.root
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.npz")}
    reproduce(finished)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.npz")} == before
    printed = capsys.readouterr().out
    assert "### Table 8: localisation given the class" in printed
    assert "| the whole image |" in printed
    assert "| a random box |" in printed


def test_missing_results_are_computed_again(finished: Graph, boxed: Path, recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.stages["D"].run.root, tmp_path / "runs")
    graph = graph_of(recipe, boxed, tmp_path / "runs")
    run = RunDirectory(graph.stages["boxes-fine"].directory)
    for file in run.boxes.glob("*-Q64*.npz"):
        file.unlink()
    assert not is_evaluated(graph.stages["boxes-fine"], graph.stages["D-fine"])
    reproduce(graph)
    assert_same_arrays(run.path / "boxes", finished.stages["boxes-fine"].directory / "boxes")


def test_an_interrupted_test_resumes(
    finished: Graph, boxed: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.stages["D"].run.root, tmp_path / "runs")
    graph = graph_of(recipe, boxed, tmp_path / "runs")
    run = RunDirectory(graph.stages["boxes-fine"].directory)
    shutil.rmtree(run.path / "boxes")
    original, beats = Watch.beat, []

    def beat(self: Watch, doing: str) -> bool:
        beats.append(doing)
        self.reason = "SIGTERM" if beats.count("boxes, dense at Q=64") == 3 else None
        return original(self, doing)

    monkeypatch.setattr(Watch, "beat", beat)
    with pytest.raises(Interrupted, match="SIGTERM"):
        reproduce(graph)
    monkeypatch.undo()
    assert list(run.boxes.glob("places-Q64-*.parts/*.npz"))
    rows = build_report(find_runs([tmp_path / "runs"])).rows  # of what is there, with what it is held against
    assert {row.table for row in rows if row.run == "boxes:boxes-fine" and row.main.measured is not None} == {8}
    computed = []
    monkeypatch.setattr(
        "vggrepro.pipeline.boxes.boxes_at_places",
        lambda *given: computed.extend(given[2].views.image.tolist()) or boxes_at_places(*given),
    )
    reproduce(graph)
    assert 0 < len(computed) < 11  # of one Q; the other was done
    assert_same_arrays(run.path / "boxes", finished.stages["boxes-fine"].directory / "boxes")


def test_two_ranks_store_the_same_boxes(finished: Graph, boxed: Path, recipe: Path, tmp_path: Path) -> None:
    """Tests the same nets; other tests cover training on ranks."""
    shutil.copytree(finished.stages["D"].run.root, tmp_path / "runs")
    for name in ("boxes", "boxes-fine", "boxes-SCR"):
        shutil.rmtree(tmp_path / "runs" / "boxes" / name / "boxes")
    words = set_words(*changes(boxed, tmp_path / "runs"))
    done = fork_program("-m", "vggrepro", "reproduce", "--config", recipe, *words, ranks=2)
    assert done.returncode == 0, done.stderr
    for name in ("boxes", "boxes-fine", "boxes-SCR"):
        assert_same_arrays(tmp_path / "runs" / "boxes" / name / "boxes", finished.stages[name].directory / "boxes")


def test_the_tables_of_a_graph(finished: Graph, command: Command) -> None:
    runs = [str(finished.stages[name].directory) for name in ("boxes", "boxes-fine")]
    found = command.json("localise", *runs)
    assert [(each["nets"], each["scales"]) for each in found["tested"]] == [
        (["boxes"], [[40]]),
        (["boxes-fine"], [[64]]),
        (["boxes-fine"], [[40, 64]]),
        (["boxes", "boxes-fine"], [[40], [40, 64]]),
    ]
    assert found["n"] == 11
    assert found["classes_top5_error"] == 0  # of three classes
    report = build_report(find_runs([finished.stages["D"].directory.parent]))
    # nets of boxes are in no table of classes
    assert {row.run for row in report.rows if row.run and row.table < 8} == {"boxes:D", "boxes:D-fine"}
    rows = {(row.table, row.run, row.Q): row for row in report.rows if row.run}
    assert rows[8, "boxes:boxes-SCR", "64"].main.printed == 36.4
    assert rows[8, "boxes:boxes-fine", "64"].main.printed == 33.1
    assert rows[9, "boxes:boxes", "40"].main.printed == 29.5
    assert rows[9, "boxes:boxes-fine", "64"].main.printed == 28.2
    assert rows[9, "boxes:boxes-fine", "40, 64"].main.printed == 27.5
    pooled = rows[9, "boxes:boxes + boxes:boxes-fine", "40 + 40, 64"]
    assert pooled.main.printed == 26.9
    assert pooled.main.measured == found["tested"][-1]["localisation_error"]
    claims = {claim.claim: claim for claim in report.claims if claim.section == "A"}
    assert len(claims) == 8
    measured = [claim for claim in claims.values() if claim.n]
    assert {claim.n for claim in measured} == {11}
    assert len(measured) == 6  # all but those that need a PCR net with its convolutions kept


def test_an_image_without_a_correct_guess_is_an_error(finished: Graph) -> None:
    """Compares the error of the report with a computation from the arrays."""
    run = RunDirectory(finished.stages["boxes-fine"].directory)
    with np.load(next(run.boxes.glob("truth-*.npz"))) as truth:
        labels, start, box = truth["labels"], truth["start"], truth["box"]
    checked = []
    for protocol, _ in FoundKey.listed(run):
        if protocol.method != "dense" or len({part.weights for part in protocol.parts}) > 1:
            continue
        with np.load(protocol.file(run)) as content:
            boxes, classes = content["boxes"].astype(float), content["classes"]
        wrong = 0
        for image, label in enumerate(labels):
            right = False
            for guess in range(3):
                for left, top, end, bottom in box[start[image] : start[image + 1]]:
                    guessed = boxes[image, guess]
                    width = max(0.0, min(end, guessed[2]) - max(left, guessed[0]))
                    height = max(0.0, min(bottom, guessed[3]) - max(top, guessed[1]))
                    areas = (end - left) * (bottom - top) + (guessed[2] - guessed[0]) * (guessed[3] - guessed[1])
                    overlap = width * height / (areas - width * height)
                    right |= bool(classes[image, guess] == label and overlap > 0.5)
            wrong += not right
        name = "multi_Q" if len(protocol.parts) > 1 else "single_Q"
        (record,) = run.records("evaluation")
        assert record[f"dense_{name}_localisation_error"] == pytest.approx(100 * wrong / len(labels))
        checked.append(name)
    assert set(checked) == {"multi_Q", "single_Q"}


def test_boxes_are_in_the_order_of_the_score_map(finished: Graph) -> None:
    """A crop of 32 px has 2 x 2 positions in a square image at Q = 64, and more along a longer side."""
    run = RunDirectory(finished.stages["boxes-SCR"].directory)
    (protocol,) = {part for key, _ in FoundKey.listed(run) for part in key.parts if part.method == "dense"}
    places = protocol.load(run)
    assert places is not None
    with np.load(next(run.boxes.glob("truth-*.npz"))) as truth:
        size = truth["size"]
    for image, (height, width) in enumerate(size.tolist()):
        sides = [round(64 * side / min(height, width) + 1e-9) // 32 for side in (height, width)]
        assert places.start[image + 1] - places.start[image] == sides[0] * sides[1]
    # SCR: one box for all classes, and each class's own posterior
    assert (places.values[:, :1, :4] == places.values[..., :4]).all()
    assert not (places.values[:, :1, 4] == places.values[..., 4]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["localise", "{runs}/D"], "D predicts classes, not boxes; test it with `vggrepro evaluate"),
        (["evaluate", "{runs}/boxes"], "boxes predicts boxes, not classes; test it with `vggrepro localise"),
        (["localise", "{runs}/nothing"], "nothing does not exist; name the run directory of a finished stage"),
        (["localise", "{runs}/boxes", "--classes-from", "{runs}/D", "--method", "both"], "has no both posteriors of"),
        (["compare", "{runs}/boxes", "{runs}/boxes-fine"], "predicts boxes"),
        (["weights", "export", "{runs}/boxes", "--out", "{runs}/x.pth"], "predicts boxes, which other programs"),
    ],
)
def test_mistakes_are_one_line(finished: Graph, command: Command, words: list[str], message: str) -> None:
    runs = finished.stages["D"].directory.parent
    assert message in command.mistake(*(word.format(runs=runs) for word in words))


def test_a_data_set_without_boxes_cannot_be_tested(
    finished: Graph, boxed: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(boxed, tmp_path / "images")
    table = tmp_path / "images" / "boxes.tsv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith("val/")))
    shutil.copytree(finished.stages["D"].run.root, tmp_path / "runs")
    message = command.mistake(
        "localise", tmp_path / "runs" / "boxes" / "boxes", "--set", f"data.root={tmp_path / 'images'}"
    )
    assert f"none of the validation images of {tmp_path / 'images'} has a box in {table}; add their" in message


def test_a_retrained_parent_is_an_error(
    finished: Graph, boxed: Path, recipe: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(finished.stages["D"].run.root, tmp_path / "runs")
    runs = tmp_path / "runs" / "boxes"
    shutil.rmtree(runs / "D")
    shutil.copytree(runs / "D-fine", runs / "D")
    note = json.loads((runs / "D-fine" / "final.json").read_text())
    assert "restore that net, or train boxes again" in command.mistake(
        "localise", runs / "boxes", "--classes-from", runs / "D-fine", "--scales", "33"
    )
    assert note["weights"]
