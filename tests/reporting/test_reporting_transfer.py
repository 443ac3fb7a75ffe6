"""Tables 11 and 12 and the claims of Appendix B on fabricated scores with known errors."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting_runs import SCORE_TABLES, make_run, of_tables, report_of, value_of
from tiny import REPOSITORY

from vggrepro.errors import UserError
from vggrepro.evaluation.features import Features, FeaturesKey
from vggrepro.evaluation.recognition import SplitScores
from vggrepro.evaluation.transfers import NetProtocol, SplitKey, TransferProtocol, save_truth, truth_file
from vggrepro.paper import facts, value
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Row
from vggrepro.storage.directory import RunDirectory

CALTECH = {"seed": 0, "splits": 3, "train_per_class": 30, "test_per_class": 50}
THREE, FIVE = (256, 384, 512), (256, 384, 512, 640, 768)


def net_run(root: Path, net: str, name: str = "", **more: Any) -> RunDirectory:
    """Makes a net trained with scale jitter, with the paper's classes and geometry unless `more` changes them."""
    run = make_run(root, net, S=value("jitter"), name=name or f"{net}-jitter", **more)
    described = run.read_json("dataset.json")
    run.write_json("dataset.json", described | {"splits": {"train": value("train_images"), "val": 50_000}})
    text = (run.path / "config.yaml").read_text()
    run.write_text("config.yaml", text.replace("classes: 10\n", "classes: 1000\n"))
    return run


def keep(
    runs: Sequence[RunDirectory],
    wrong: Sequence[int],
    *,
    name: str = "caltech101",
    Q: tuple[int, ...] = THREE,
    combine: str = "stack",
    boxes: bool = False,
    classes: int = 102,
    images: int = 9144,
    each: int = 10,
    drawing: dict[str, Any] = CALTECH,
    data: str = "d" * 64,
    rows: str = "",
    flip: bool = True,
) -> TransferProtocol:
    """Stores a test in which the first `wrong[split]` samples of `classes` x `each` are misclassified."""
    weights = [run.read_json("final.json")["weights"] for run in runs]
    measure = facts().transfer[name].measure if name in facts().transfer else "recall"
    nets = tuple(NetProtocol(weights_hash, "fc7", Q, flip, "fp32") for weights_hash in weights)
    made = (measure, nets, combine, boxes, drawing, len(wrong))
    protocol = TransferProtocol(name, data, *made, rows=rows)  # type: ignore[arg-type]
    true_class = np.arange(classes * each) % classes
    targets = np.where(true_class[:, None] == np.arange(classes), 1, -1).astype(np.int8)
    note = {
        "runs": [],
        "source": "s",
        "images": images,
        "classes": classes,
        "rejected": 0,
        "train": 5,
        "test": len(true_class),
    }
    save_truth(targets, runs[0], data)
    for split, number in enumerate(wrong):
        scores = targets.astype(np.float32)
        scores[np.arange(number), (true_class[:number] + 1) % classes] = 2
        SplitKey(protocol, split).save(
            runs[0], SplitScores(np.arange(len(true_class)), scores), C=1.0, validated=[], unfinished=(), **note
        )
    return protocol


def row_of(root: Path, net: str, name: str = "caltech101", **expected: Any) -> Row:
    (found,) = [
        row
        for row in of_tables(report_of(root), SCORE_TABLES)
        if (row.set, row.net) == (name, net) and all(value_of(row, key) == label for key, label in expected.items())
    ]
    return found


def claim_of(root: Path, words: str) -> Claim:
    (found,) = [claim for claim in report_of(root).transfer_claims if words in claim.claim]
    return found


def test_without_runs_the_papers_figures_stand_alone(root: Path) -> None:
    report = build_report([])
    printed = [(row.set, row.net, row.main.printed, row.printed_spread) for row in of_tables(report, SCORE_TABLES)]
    assert len(printed) == len(facts().transfer_figures) == 30
    assert ("caltech101", "D + E", 92.7, 0.5) in printed
    assert {row.verdict for row in of_tables(report, SCORE_TABLES)} == {"not measured", "cannot be measured"}
    assert [row.table for row in of_tables(report, SCORE_TABLES)] == sorted(
        row.table for row in of_tables(report, SCORE_TABLES)
    )
    assert {claim.verdict for claim in report.transfer_claims} == {"not measured"}
    claimed = {claim.claim for claim in report.transfer_claims}
    assert len(claimed) == len(report.transfer_claims)
    assert "voc2007: five scales are better than three, D" in claimed
    assert "caltech256: D and E stacked are better than E" in claimed
    text = render(report, Format.markdown, "t")
    assert "## Table 12: actions of PASCAL VOC 2012 (Appendix B)" in text
    assert "| 92.7 +- 0.5 |" in text


@pytest.mark.parametrize(
    ("wrong", "verdict", "note"),
    [((84, 83, 85), "agrees", ""), ((20, 21, 22), "differs", "higher"), ((300, 310, 290), "differs", "lower")],
)
def test_a_figure_with_a_spread(root: Path, wrong: tuple[int, ...], verdict: str, note: str) -> None:
    keep([net_run(root, "D")], wrong)
    row = row_of(root, "D")
    figures = [100 - 100 * number / 1020 for number in wrong]
    assert row.main.measured == pytest.approx(np.mean(figures), abs=0.05)  # classes have equally many samples
    assert row.spread == pytest.approx(np.std(figures, ddof=1), abs=0.05)
    assert (row.main.printed, row.printed_spread, row.verdict, row.note) == (91.8, 1.0, verdict, note)
    assert row.main.difference == pytest.approx(row.main.measured - 91.8)  # type: ignore[operator]
    assert row.main.interval is not None
    assert row.main.interval[0] < row.main.measured < row.main.interval[1]  # type: ignore[operator]
    assert (row.splits, row.C, row.classes, row.train, row.n) == (3, [1.0] * 3, 102, 5, 1020)
    assert (row.table, row.layer, row.Q, row.combine) == (11, "fc7", "256, 384, 512", "stack")
    assert (row.run, row.departures) == ("paper:D-jitter", 0)


def test_what_the_papers_figure_is_not_about(root: Path) -> None:
    run = net_run(root, "D")
    keep([run], (84, 83, 85), combine="average")
    keep([run], (84, 83, 85), Q=(256,))
    keep([run], (84, 83, 85), flip=False)
    keep([run], (84, 83, 85), drawing=CALTECH | {"train_per_class": 15})
    rows = [row for row in of_tables(report_of(root), SCORE_TABLES) if row.run]
    assert {(row.verdict, row.main.printed, row.main.difference) for row in rows} == {("not comparable", None, None)}
    assert len(rows) == 4
    assert row_of(root, "D", run=None).verdict == "not measured"


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"classes": 101}, "101 classes and 9,144 images, the data set has 102 and 9,144"),
        ({"images": 8000}, "102 classes and 8,000 images"),
    ],
)
def test_a_partial_data_set_is_not_comparable(root: Path, changed: dict[str, Any], note: str) -> None:
    keep([net_run(root, "D")], (84, 83, 85), **changed)
    row = row_of(root, "D")
    assert (row.verdict, row.main.printed, row.main.difference) == ("not comparable", 91.8, None)
    assert note in row.note
    assert "(91.8 +- 1.0)" in render(report_of(root), Format.markdown, "t")


def test_another_training_set_is_no_yardstick(root: Path) -> None:
    keep([make_run(root, "D", S=value("jitter"))], (84, 83, 85))
    row = row_of(root, "D")
    assert row.verdict == "not comparable"
    assert "another data set or geometry" in row.note


def test_voc_2012_is_measured_on_val(root: Path) -> None:
    run = net_run(root, "D")
    keep([run], (100,), name="voc2012", Q=FIVE, combine="average", classes=20, images=11540)
    row = row_of(root, "D", "voc2012")
    assert (row.verdict, row.main.printed) == ("not comparable", 89.0)
    assert "--submission" in row.note


def test_voc_2007_by_its_interval(root: Path) -> None:
    run = net_run(root, "D")
    settings = {"name": "voc2007", "Q": FIVE, "combine": "average", "classes": 20, "images": 9963, "each": 40}
    keep([run], (0,), **settings)  # type: ignore[arg-type]
    row = row_of(root, "D", "voc2007")
    assert (row.main.measured, row.spread, row.verdict, row.note) == (100.0, None, "differs", "higher")
    assert row.measure == "mAP11"


def test_two_nets_stacked(root: Path) -> None:
    first, other = net_run(root, "D"), net_run(root, "E")
    keep([first, other], (70, 71, 72))
    row = row_of(root, "D + E")
    assert (row.run, row.main.printed, row.verdict) == ("paper:D-jitter + paper:E-jitter", 92.7, "agrees")


def test_a_net_that_was_trained_again_has_no_figures(root: Path) -> None:
    run, other = net_run(root, "D"), net_run(root, "E")
    keep([run], (84, 83, 85))
    keep([run, other], (84, 83, 85))
    other.write_json("final.json", {"weights": "1" * 64, "step": 1})
    assert row_of(root, "D + E").verdict == "not measured"
    assert row_of(root, "D").main.measured is not None
    run.write_json("final.json", {"weights": "2" * 64, "step": 1})
    assert row_of(root, "D").verdict == "not measured"


def test_a_custom_folder_of_classes(root: Path) -> None:
    keep([make_run(root, "D", S=value("jitter"))], (84, 83, 85), name="mine")
    row = row_of(root, "D", "mine")
    assert (row.table, row.verdict, row.main.printed) == (11, "not comparable", None)
    text = render(report_of(root), Format.markdown, "t")
    assert "| mine | mean class recall | D | fc7 |" in text
    assert "Zeiler" not in text  # the paper's figures are of other data and nets


def test_stacking_against_averaging(root: Path) -> None:
    run = net_run(root, "D")
    keep([run], (50, 50, 50))
    keep([run], (250, 250, 250), combine="average")
    claim = claim_of(root, "caltech101: stacking over scales is better than averaging, D")
    assert (claim.verdict, claim.n, claim.seeds, claim.section) == ("supported", 1020, 1, "B")
    assert claim.effect == pytest.approx(100 * 200 / 1020, abs=0.1)
    assert claim.better == "paper:D-jitter: 3 Q, stack on caltech101"
    unmeasured = claim_of(root, "caltech101: stacking over scales is better than averaging, E")
    assert unmeasured.verdict == "not measured"


@pytest.mark.parametrize(("e", "verdict"), [(100, "supported"), (400, "not supported"), (107, "undecided at this n")])
def test_e_is_as_good_as_d(root: Path, e: int, verdict: str) -> None:
    keep([net_run(root, "D")], (100, 100, 100))
    keep([net_run(root, "E")], (e, e, e))
    assert claim_of(root, "caltech101: D and E are about as good").verdict == verdict


@pytest.mark.parametrize("other", [{"data": "e" * 64}, {"rows": "r" * 64}, {"drawing": CALTECH | {"seed": 1}}])
def test_claims_compare_the_same_samples_only(root: Path, other: dict[str, Any]) -> None:
    keep([net_run(root, "D")], (100, 100, 100))
    keep([net_run(root, "E")], (100, 100, 100), **other)
    claim = claim_of(root, "caltech101: D and E are about as good")
    assert (claim.verdict, claim.note) == ("not measured", "both sides are of other samples or seeds")


def test_of_several_nets_d_a_recipe_is_compared_with_itself(root: Path) -> None:
    """Stacked features of one net D are not compared with averaged ones of another."""
    keep([net_run(root, "D")], (100, 100, 100))
    plain = make_run(root, "D", S=256, name="D-256")
    keep([plain], (300, 300, 300), combine="average")
    claim = claim_of(root, "caltech101: stacking over scales is better than averaging, D")
    assert claim.verdict == "not measured"


def test_seeds_are_pairs(root: Path) -> None:
    for seed in (0, 1):
        nets = [net_run(root, net, f"{net}-jitter-{seed}", seed=seed) for net in ("D", "E")]
        for number, run in enumerate(nets):
            keep([run], (100 - 20 * number + seed, 101, 102))
        keep(nets, (40 + seed, 40, 40))
    claim = claim_of(root, "caltech101: D and E stacked are better than D")
    assert claim.seeds == 2
    assert claim.spread is not None


def test_box_and_image(root: Path) -> None:
    nets = [net_run(root, net) for net in ("D", "E")]
    settings: dict[str, Any] = {"name": "voc2012_action", "Q": FIVE, "combine": "average", "classes": 10, "each": 60}
    keep(nets, (200,), **settings)
    keep(nets, (50,), boxes=True, **settings)
    claim = claim_of(root, "voc2012_action: the person's box")
    assert claim.verdict == "supported"
    rows = [row for row in of_tables(report_of(root), SCORE_TABLES) if row.table == 12 and row.run]
    assert [(row.boxes, row.main.printed, row.verdict) for row in rows] == [
        (False, 79.2, "not comparable"),
        (True, 84.0, "not comparable"),
    ]
    assert "D + E, image and box" in render(report_of(root), Format.markdown, "t")


def test_five_scales_against_three(root: Path) -> None:
    run = net_run(root, "D")
    settings: dict[str, Any] = {"name": "voc2007", "combine": "average", "classes": 20, "images": 9963, "each": 40}
    keep([run], (100,), Q=FIVE, **settings)
    keep([run], (250,), Q=THREE, **settings)
    assert claim_of(root, "voc2007: five scales are better than three, D").verdict == "supported"


def test_a_net_without_a_group_is_listed(root: Path) -> None:
    """An imported net that was never evaluated on images of its classes belongs to no group."""
    run = net_run(root, "D")
    (run.path / "dataset.json").unlink()
    keep([run], (84, 83, 85))
    report = report_of(root)
    assert [note.name for note in report.transfer_runs] == ["paper:D-jitter"]
    assert report.left_out == []
    text = render(report, Format.html, "t")
    assert "Runs of these tables alone" in text


@pytest.mark.parametrize("form", list(Format))
def test_every_format_has_them(root: Path, form: Format) -> None:
    keep([net_run(root, "D")], (84, 83, 85))
    text = render(report_of(root), form, "t")
    assert "caltech101" in text
    if form is Format.csv:
        rows = [row for row in csv.DictReader(io.StringIO(text)) if row["set"] == "caltech101" and row["run"]]
        assert [row["printed"] for row in rows] == ["91.8"]
    if form is Format.json:
        schema = json.loads((REPOSITORY / "vggrepro" / "reporting" / "tables.schema.json").read_text())
        assert set(json.loads(text)["rows"][-1]) <= set(schema["$defs"]["Row"]["properties"])


def test_features_and_tests_of_another_net_are_named_and_not_used(root: Path) -> None:
    run = net_run(root, "D")
    keep([run], (84, 83, 85))
    weights = run.read_json("final.json")["weights"]
    (stored,) = find_runs([root])
    current = FeaturesKey(weights, "fc7", "d" * 64, 256, True)
    for key in (current, replace(current, weights="0" * 64)):
        key.save(run, Features(np.ones((2, 3), np.float32)))
    assert stored.unused_results == ["fc7-Q256-000000000000-dddddddddddd.npz"]
    run.write_json("final.json", {"weights": "1" * 64, "step": 1})  # trained again since
    (stored,) = find_runs([root])
    tests = [file.name for file in run.transfers.glob("caltech101-*.npz")]
    assert stored.unused_results == sorted([*tests, *(file.name for file in run.features.iterdir())])
    assert len(tests) == 3


def test_torn_files_are_named(root: Path) -> None:
    run = net_run(root, "D")
    protocol = keep([run], (84, 83, 85))
    truth = truth_file(run, protocol.data)
    content = truth.read_bytes()
    truth.unlink()
    with pytest.raises(UserError, match="lack the truth, truth-d"):
        report_of(root)
    truth.write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot be read"):
        report_of(root)
    truth.write_bytes(content)
    SplitKey(protocol, 2).file(run).unlink()
    assert row_of(root, "D").verdict == "not measured"  # not all splits are done
