"""Two runs held against each other: everything that differs is named, and nothing is compared that must not be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import Command
from reporting_runs import CLASSES, IMAGES, dense, labels, make_run, posteriors_with
from scipy.stats import binomtest
from tiny import TWO_STEPS, tiny_graph

from vggrepro.errors import UserError
from vggrepro.pipeline.graph import reproduce
from vggrepro.reporting.documents.blocks import to_html, to_markdown
from vggrepro.reporting.documents.compare import RunComparison, blocks_of, compare
from vggrepro.reporting.stored.find_runs import find_runs


def compared(root: Path) -> RunComparison:
    return compare(find_runs([root]), None)


def test_a_known_answer(root: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=100, wrong5=50))
    make_run(root, "B", posteriors=dense(256, wrong1=60, wrong5=10, first=90))
    made = compared(root)
    assert made.runs == ["paper:A-256", "paper:B-256"]
    (errors,) = made.errors
    assert (errors.method, errors.scales, errors.top1, errors.top5) == ("dense", "one Q", [5.0, 3.0], [2.5, 0.5])
    (test,) = made.paired
    # wrong are images 0-99 and 90-149
    assert (test.only_first_right, test.only_second_right, test.n) == (50, 90, IMAGES)
    assert test.difference == 2.0
    assert test.p_value == pytest.approx(binomtest(50, 140).pvalue)
    assert made.shown == "dense, Q = 256"
    assert [(item.directory, item.finished) for item in made.made_by] == [
        (str(root / "paper" / name), True) for name in ("A-256", "B-256")
    ]
    differing = {(item.kind, item.key): item.values for item in made.differences}
    assert differing == {("configuration", "model.net"): ["A", "B"]}
    assert all(labels()[item.row] == int(item.true.removeprefix("class ")) for item in made.disagreements)
    far_off = {item.row for item in made.disagreements}
    assert far_off
    assert far_off <= {*range(50), *range(90, 150)}
    assert sum(item.n for item in made.classes) == IMAGES
    for item in made.classes:
        of_class = labels() == int(item.name.removeprefix("class "))
        wrong = [sum(of_class[:100]), sum(of_class[90:150])]
        assert item.errors == pytest.approx([100 * count / sum(of_class) for count in wrong])


def test_runs_of_other_images_are_not_tested_against_each_other(root: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=100, wrong5=50))
    make_run(root, "B", posteriors=dense(256, wrong1=60, wrong5=10), fingerprint="e" * 64)
    made = compared(root)
    assert (made.paired, made.classes, made.disagreements) == ([], [], [])
    assert [item.key for item in made.differences if item.kind == "data"] == ["fingerprint"]
    assert any("not comparable" in note for note in made.notes)


def test_classes_and_images_are_of_the_protocol_with_most_in_it(root: Path) -> None:
    scales, multicrop = (224, 256, 288), {("multicrop", Q): posteriors_with(7, 0) for Q in (224, 256, 288)}
    make_run(root, "A", posteriors=dense(*scales, wrong1=100, wrong5=50) | multicrop)
    make_run(root, "B", posteriors=dense(*scales, wrong1=60, wrong5=10) | {("centre", 256): posteriors_with(9, 0)})
    made = compared(root)
    assert made.shown == "dense, Q = 224, 256, 288"
    assert {(item.method, item.scales) for item in made.paired} == {("dense", "one Q"), ("dense", "several Q")}
    centre = next(item for item in made.errors if item.method == "centre")
    assert (centre.top1[0], centre.n) == (None, [None, IMAGES])


def test_tests_of_another_kind_are_reported(root: Path) -> None:
    for net, flip in (("A", True), ("B", False)):
        make_run(root, net, posteriors=dense(256, wrong1=100, wrong5=50), flip=flip)
    assert any("tested differently: evaluation.flip" in note for note in compared(root).notes)
    make_run(root, "A", posteriors=dense(256, wrong1=100, wrong5=50), flip=False)
    assert compared(root).notes == ["Tested without mirror images."]
    transfers = root / "paper" / "A-256" / "transfers"
    transfers.mkdir()
    (transfers / "truth-d.npz").touch()
    assert "Tests on other data sets are not compared here" in compared(root).notes[-1]


def test_unfinished_and_unevaluated_runs_are_reported(root: Path) -> None:
    make_run(root, "A", finished=False)
    make_run(root, "B")
    made = compared(root)
    assert "Not finished: paper:A-256 (step 100)." in made.notes
    assert any("No run has stored posteriors" in note for note in made.notes)


def test_environment_data_and_ledger(root: Path) -> None:
    line = {"setting": "train.batch", "paper": 256, "run": 32, "why": "small"}
    for net, torch, lines in (("A", "2.11", []), ("B", "2.15", [line])):
        run = make_run(root, net, departures=lines)
        run.write_json("environment.json", {"torch": torch, "python": "3.12"})
    differing = {(item.kind, item.key): item.values for item in compared(root).differences}
    assert differing["environment", "torch"] == ["2.11", "2.15"]
    assert differing["ledger", "train.batch"] == [None, 32]
    assert ("environment", "python") not in differing


def test_three_runs_have_three_tests(root: Path) -> None:
    for net, wrong in (("A", 100), ("B", 90), ("C", 80)):
        make_run(root, net, posteriors=dense(256, wrong1=wrong, wrong5=10))
    made = compared(root)
    assert [(item.first[6], item.second[6], item.difference) for item in made.paired] == [
        ("A", "B", 0.5), ("A", "C", 1.0), ("B", "C", 0.5),
    ]  # fmt: skip
    assert made.errors[0].top1 == [5.0, 4.5, 4.0]
    text = to_markdown(blocks_of(made, find_runs([root]), None))
    assert "| row | true class | paper:A-256 | paper:B-256 | file |" in text, "of the first two"
    for table in (block.splitlines() for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in table}) == 1, table[0]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs(root: Path, count: int) -> None:
    make_run(root, "A")
    with pytest.raises(UserError, match="needs two different runs or more"):
        compare(find_runs([root]) * count, None)
    with pytest.raises(UserError, match="needs two different runs or more"):
        compare(find_runs([root]) * 2, None)


def test_markdown_and_html(root: Path) -> None:
    for net in ("A", "B"):
        run = make_run(root, net, posteriors=dense(256, wrong1=100, wrong5=50))
        run.append({"kind": "validation", "step": 100, "top1_error": 50.0, "top5_error": 20.0})
    runs = find_runs([root])
    made = compare(runs, None)
    page = to_html("t", blocks_of(made, runs, None))
    assert page.count("data:image/png;base64,") == 1  # the curves; without an index there are no images to show
    assert not any(word in page for word in ("http:", "https:", "<script", "url("))
    text = to_markdown(blocks_of(made, runs, None))
    assert "| dense | one Q | paper:A-256 - paper:B-256 | +0.00 | +0.00 to +0.00 | 1.0000 | 0 / 0 | 2,000 |" in text
    assert RunComparison.model_validate_json(made.model_dump_json()) == made
    assert np.shape(made.errors[0].interval_top1) == (2, 2)
    assert CLASSES == len(made.classes)


@pytest.fixture
def run_twice(images: Path, tmp_path: Path) -> Path:
    """Two seconds of the demo: A, and D from A."""
    reproduce(tiny_graph("demo.yaml", images, tmp_path / "runs", *TWO_STEPS))
    return tmp_path / "runs"


@pytest.mark.usefixtures("drawing")
def test_the_commands(run_twice: Path, tmp_path: Path, command: Command) -> None:
    page = tmp_path / "page.html"
    made = command.json("compare", "A", "demo:D", "--runs", run_twice, "--out", page)
    assert made["runs"] == ["demo:A", "demo:D"]
    classes = made["classes"]
    assert {item["true"] for item in classes if "true" in item} | {item["name"] for item in classes} == {
        "n01", "n02", "n03",
    }  # fmt: skip
    assert page.read_text().count("data:image/png;base64,") == 1 + bool(made["disagreements"])

    for folder in (run_twice / "demo" / "A", run_twice / "demo" / "D"):
        figures = {file.name for file in (folder / "figures").iterdir()}
        assert figures == {"learning_curves.png", "training_crops.png", "confusion.png", "conv1_1.png"}
        for file in (folder / "figures").iterdir():
            with Image.open(file) as image:
                assert image.convert("L").getextrema()[0] < 128, f"{file.name} is blank"

    shown = command.json("tables", "--runs", run_twice)
    assert [row["n"] for row in shown["rows"] if row["run"]] == [12, 12, 12, 12]
    assert "run nowhere is not a run directory" in command.mistake("compare", "A", "nowhere", "--runs", run_twice)
    assert command("compare", "A", "D", "--runs", run_twice, "--out", "x.pdf")[0] == 2
    assert command("tables", "--runs", tmp_path / "nowhere")[0] == 2
