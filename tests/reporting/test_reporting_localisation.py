"""Tables 8-10 from fabricated boxes with known numbers of errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from reporting_runs import (
    BOTH,
    BOX_TABLES,
    COARSE,
    FINE,
    IMAGES,
    LARGE,
    box_run,
    find_centre,
    find_dense,
    of_tables,
    report_of,
    rows_of,
    truth,
)
from scipy.stats import binomtest

from vggrepro.paper import value
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored import runs
from vggrepro.reporting.tables.build import build_report


def wilson(wrong: int) -> tuple[float, float]:
    exact = binomtest(wrong, IMAGES).proportion_ci(method="wilson")
    return pytest.approx((100 * exact.low, 100 * exact.high))  # type: ignore[return-value]


def test_without_runs_every_printed_figure_stands_there() -> None:
    rows = of_tables(build_report([]), BOX_TABLES)
    assert [(row.table, row.S, row.Q, row.regression, row.fine_tune, row.split, row.main.printed) for row in rows] == [
        (8, "384", "384", "SCR", "fc", "val", 36.4),
        (8, "384", "384", "PCR", "fc", "val", 34.3),
        (8, "384", "384", "PCR", "all", "val", 33.1),
        (9, "256", "256", "PCR", "all", "val", 29.5),
        (9, "384", "384", "PCR", "all", "val", 28.2),
        (9, "384", "384", "PCR", "all", "test", 26.7),
        (9, "384", "352, 384", "PCR", "all", "val", 27.5),
        (9, "256 + 384", "256 + 352, 384", "PCR", "all", "val", 26.9),
        (9, "256 + 384", "256 + 352, 384", "PCR", "all", "test", 25.3),
        (10, "256 + 384", "256 + 352, 384", "PCR", "all", "val", 26.9),
        (10, "256 + 384", "256 + 352, 384", "PCR", "all", "test", 25.3),
        (10, None, None, None, None, "test", 26.7),
        (10, None, None, None, None, "val", 30.0),
        (10, None, None, None, None, "test", 29.9),
        (10, None, None, None, None, "test", 34.2),
    ]
    assert {row.net for row in rows if row.table < 10} == {"D", "D + D"}
    assert [row.net for row in rows if row.table == 10] == [
        "VGG: D + D", "VGG: D + D", "GoogLeNet", "OverFeat", "OverFeat", "AlexNet",
    ]  # fmt: skip
    for row in rows:
        foreign = row.table == 10 and "VGG" not in row.net
        assert row.verdict == ("cannot be measured" if row.split == "test" or foreign else "not measured")
        assert (row.main.measured, row.main.difference, row.main.interval, row.run) == (None, None, None, None)
    assert {row.note for row in rows if row.verdict == "not measured"} == {
        "no run of this recipe",
        "no pooled boxes; see `vggrepro localise`",
    }


@pytest.mark.usefixtures("paper_of_2000")
def test_a_known_answer_of_table_8(root: Path) -> None:
    line = {"setting": "train.precision", "paper": "fp32", "run": "bf16", "why": "faster"}
    find_centre(box_run(root, regression="SCR", fine_tune="fc"), 728)  # 36.4 %, as printed
    find_centre(box_run(root, fine_tune="fc", departures=[line]), 686 + 30)  # 1.5 points more than printed
    find_centre(box_run(root), 800)  # 40 % and not 33.1
    scr, near, far = rows_of(root, 8, S="384", split="val")
    assert (scr.regression, scr.fine_tune, scr.Q, scr.run) == ("SCR", "fc", "384", "paper:384-SCR-fc-0")
    assert (scr.main.measured, scr.main.printed, scr.n, scr.verdict, scr.note) == (36.4, 36.4, IMAGES, "agrees", "")
    assert scr.main.difference == pytest.approx(0)
    # 1.96 * sqrt(0.343 * 0.657 / 50000 + 0.358 * 0.642 / 2000) + 0.05 is about 2.2 points
    assert (near.main.difference, near.verdict, near.departures) == (pytest.approx(1.5), "agrees", 1)
    assert (far.main.difference, far.verdict, far.note) == (pytest.approx(6.9), "differs", "higher")
    for row, wrong in ((scr, 728), (near, 716), (far, 800)):
        assert row.main.measured == pytest.approx(100 * wrong / IMAGES)
        assert row.main.interval == wilson(wrong)
        assert row.guesses is None


@pytest.mark.usefixtures("paper_of_2000")
def test_a_known_answer_of_tables_9_and_10(root: Path) -> None:
    coarse, fine = box_run(root, 256), box_run(root)
    find_dense([(coarse, COARSE)], 390, lost=200)  # 29.5 %, as printed
    find_dense([(fine, FINE)], 300, lost=200)  # 25 and not 28.2
    find_dense([(fine, BOTH)], 350, lost=200)  # 27.5, as printed
    find_dense([(coarse, COARSE), (fine, BOTH)], 340, lost=200)  # 27 beside 26.9
    alone, single, several, pooled = rows_of(root, 9, regression="PCR", split="val")
    assert (alone.S, alone.Q, alone.main.measured, alone.verdict) == ("256", "256", 29.5, "agrees")
    assert (single.Q, single.main.measured, single.verdict, single.note) == ("384", 25.0, "differs", "lower")
    assert single.main.difference == pytest.approx(-3.2)
    assert (several.Q, several.main.measured, several.main.printed) == ("352, 384", 27.5, 27.5)
    assert (pooled.S, pooled.Q, pooled.main.measured) == ("256 + 384", "256 + 352, 384", 27.0)
    assert (pooled.net, pooled.run) == ("D + D", "paper:256-PCR-all-0 + paper:384-PCR-all-0")
    for row, wrong in ((alone, 590), (single, 500), (several, 550), (pooled, 540)):
        assert row.main.interval == wilson(wrong)
        assert row.guesses == "parent (top-5 error 10.0 %)"
    test_set = rows_of(root, 9, split="test")
    assert [(row.main.printed, row.verdict, row.main.measured) for row in test_set] == [
        (26.7, "cannot be measured", None),
        (25.3, "cannot be measured", None),
    ]
    ours, test, *others = rows_of(root, 10)
    assert ours == pooled.model_copy(update={"table": 10, "net": "VGG: D + D"})
    assert (test.main.printed, test.split, test.net) == (25.3, "test", "VGG: D + D")
    assert {row.verdict for row in others} == {"cannot be measured"}


@pytest.mark.usefixtures("paper_of_2000")
def test_a_guess_of_a_wrong_class_fails_whatever_its_box(root: Path) -> None:
    """Lost images have a correct box of the true class in the last column, which is not a guess."""
    run = box_run(root)
    find_dense([(run, FINE)], 0, lost=123)
    (row,) = rows_of(root, 9, Q="384", split="val")
    assert row.main.measured == pytest.approx(100 * 123 / IMAGES)


@pytest.mark.parametrize("wrong", [0, IMAGES])
@pytest.mark.usefixtures("paper_of_2000")
def test_all_right_and_all_wrong(root: Path, wrong: int) -> None:
    find_centre(box_run(root), wrong)
    (row,) = rows_of(root, 8, run="paper:384-PCR-all-0")
    assert (row.main.measured, row.main.interval) == (100 * wrong / IMAGES, wilson(wrong))


def test_another_geometry_is_not_compared_with_the_paper(root: Path) -> None:
    """At a crop of 32 px, S = 55 corresponds to 384 and S = 37 to 256, and no Q is the paper's."""
    coarse, fine = box_run(root, 37, crop=32), box_run(root, 55, crop=32)
    assert (coarse.config.multi_Q, fine.config.multi_Q) == ((37,), (50, 55))
    find_centre(fine, 662)
    find_dense([(coarse, (37,))], 590)
    find_dense([(fine, (55,))], 580)
    find_dense([(fine, (50, 55))], 570)
    find_dense([(fine, (50, 55)), (coarse, (37,))], 560)
    expected = [
        (row.table, row.S, row.Q, row.main.printed, row.main.measured, row.main.difference, row.verdict, row.note)
        for row in of_tables(report_of(root), BOX_TABLES)
        if row.run and row.table < 10 and row.main.printed
    ]
    other = (None, "not comparable", "another data set or geometry than the paper's")
    assert expected == [
        (8, "55", "55", 33.1, 33.1, *other),
        (9, "37", "37", 29.5, 29.5, *other),
        (9, "55", "55", 28.2, 29.0, *other),
        (9, "55", "50, 55", 27.5, 28.5, *other),
        (9, "37 + 55", "37 + 50, 55", 26.9, 28.0, *other),
    ]
    text = render(report_of(root), Format.markdown, "t")
    assert "| D | 55 | 55 | PCR | all | (33.1) | **33.1** | 31.1 to 35.2 | 2,000 | not comparable |" in text
    assert "### Table 10" not in text
    assert "no run of this recipe" not in text


def test_images_without_a_box_make_it_another_test(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 of 2,010 validation images have boxes; the paper's all have."""
    sizes = {"classes": 10, "val_images": IMAGES + 10}
    monkeypatch.setattr(runs, "value", lambda name: sizes.get(name) or value(name))
    run = box_run(root, images=IMAGES + 10)
    find_centre(run, 662)
    (row,) = rows_of(root, 8, run="paper:384-PCR-all-0")
    assert (row.main.measured, row.n, row.main.difference, row.verdict) == (33.1, IMAGES, None, "not comparable")
    assert row.note == "10 of 2,010 validation images have no box"
    described = json.loads((run.path / "dataset.json").read_text())
    (run.path / "dataset.json").write_text(json.dumps(described | {"rejected_splits": {"val": 10}}))
    (row,) = rows_of(root, 8, run="paper:384-PCR-all-0")
    assert row.verdict == "agrees"  # they cannot be read, which the ledger says


def test_a_single_q_does_not_match_a_row_of_several(root: Path) -> None:
    """In another geometry a run may have a single Q; 27.5 % is for two."""
    run = box_run(root, 55, crop=32, single_Q=(64,), multi_Q=(64,))
    find_dense([(run, (64,))], 100)
    measured = {row.main.printed: row.main.measured for row in rows_of(root, 9, split="val")}
    assert (measured[28.2], measured[27.5]) == (5.0, None)
    (claim,) = [claim for claim in report_of(root).claims if claim.claim.startswith("Two test scales are better")]
    assert (claim.verdict, claim.note) == ("not measured", "both sides are tested at the same Q")


@pytest.mark.usefixtures("paper_of_2000")
def test_the_papers_rows_are_of_the_papers_q(root: Path) -> None:
    run = box_run(root, single_Q=(416,), multi_Q=(384, 416))
    for side in (384, 416):
        find_dense([(run, (side,))], 500 + side, guesses=f"at {side}")
        find_centre(run, 600 + side, Q=side)
    find_dense([(run, (384, 416))], 500)
    measured = {
        (row.table, row.Q): (row.main.printed, row.main.measured)
        for row in of_tables(report_of(root), BOX_TABLES)
        if row.run
    }
    assert measured == {
        (8, "384"): (33.1, 49.2), (8, "416"): (None, 50.8),
        (9, "384"): (28.2, 44.2), (9, "416"): (None, 45.8),
        (9, "352, 384"): (27.5, None), (9, "384, 416"): (None, 25.0),
    }  # fmt: skip


@pytest.mark.usefixtures("paper_of_2000")
def test_missing_results_are_reported_with_the_command_to_run(root: Path) -> None:
    box_run(root, 256, finished=False)
    half, untested = box_run(root), box_run(root, regression="SCR", fine_tune="fc")
    (untested.path / "final.json").unlink()
    find_dense([(half, FINE)], 500)
    rows = [row for row in of_tables(report_of(root), BOX_TABLES) if row.split == "val"]
    notes = {(row.table, row.run, row.Q): (row.verdict, row.note) for row in rows}
    assert notes[9, "paper:256-PCR-all-0", "256"] == ("not measured", "paper:256-PCR-all-0 is at step 100 of 370,000")
    assert notes[9, "paper:384-PCR-all-0", "352, 384"] == (
        "not measured",
        f"paper:384-PCR-all-0 lacks dense boxes at Q = 352, 384; run `vggrepro localise {half.path} --scales 352,384`",
    )
    again = "train its stage again, which tests what is trained"
    for name in ("384-PCR-all-0", "384-SCR-fc-0"):  # `vggrepro localise` has no centre crop
        assert notes[8, f"paper:{name}", "384"] == (
            "not measured",
            f"paper:{name} lacks centre boxes at Q = 384; {again}",
        )
    assert notes[9, "paper:384-PCR-all-0", "384"][0] == "differs"
    assert notes[9, None, "256 + 352, 384"] == ("not measured", "no pooled boxes; see `vggrepro localise`")
    text = render(report_of(root), Format.markdown, "t")
    assert "- paper:256-PCR-all-0 is at step 100 of 370,000\n" in text
    assert f"- paper:384-PCR-all-0 lacks centre boxes at Q = 384; {again}\n" in text


@pytest.mark.usefixtures("paper_of_2000")
def test_looking_changes_nothing_on_disk(root: Path) -> None:
    box_run(root)
    box_run(root, 256, finished=False)
    before = sorted(root.rglob("*"))
    report_of(root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.usefixtures("paper_of_2000")
def test_nets_that_the_paper_has_no_row_of_stand_below_its_rows(root: Path) -> None:
    scr, other_net = box_run(root, regression="SCR"), box_run(root, net="E", name="E-boxes")
    coarse = box_run(root, 256)
    for run in (scr, other_net, coarse):
        find_centre(run, 500)
        find_dense([(run, run.config.single_Q)], 400)
    find_dense([(scr, FINE), (other_net, FINE)], 300)
    rows = of_tables(report_of(root), BOX_TABLES)
    unprinted = [
        (row.table, row.net, row.Q, row.regression, row.run) for row in rows if row.run and row.main.printed is None
    ]
    assert unprinted == [
        (8, "D", "256", "PCR", "paper:256-PCR-all-0"),
        (8, "D", "384", "SCR", "paper:384-SCR-all-0"),
        (8, "E", "384", "PCR", "paper:E-boxes"),
        (9, "D", "384", "SCR", "paper:384-SCR-all-0"),
        (9, "D", "352, 384", "SCR", "paper:384-SCR-all-0"),
        (9, "E", "384", "PCR", "paper:E-boxes"),
        (9, "E", "352, 384", "PCR", "paper:E-boxes"),
        (9, "D + E", "384 + 384", "SCR + PCR", "paper:384-SCR-all-0 + paper:E-boxes"),
    ]
    for row in rows:
        if row.run and row.main.printed is None and row.main.measured is not None:
            assert (row.verdict, row.note, row.main.difference) == ("not comparable", "the paper has no such row", None)
    assert {row.main.measured for row in rows if row.table == 10} == {None}  # two other nets pooled are not the paper's
    text = render(report_of(root), Format.markdown, "t")
    assert "- paper:384-SCR-all-0: the paper has no such row\n" in text


@pytest.mark.usefixtures("paper_of_2000")
def test_boxes_that_know_nothing_are_the_yardstick(root: Path) -> None:
    run = box_run(root)
    find_centre(run, 600)
    find_dense([(run, FINE)], 500, lost=200)
    find_dense([(run, BOTH)], 500, lost=300, guesses="others")
    points = np.sort(np.random.default_rng(0).random((IMAGES, 2, 2)), axis=1) * 100
    right = np.zeros(IMAGES, bool)
    for image, ((left, top), (end, bottom)) in enumerate(points.tolist()):
        x, y, x2, y2 = truth().boxes.box[image].tolist()
        shared = max(0, min(end, x2) - max(left, x)) * max(0, min(bottom, y2) - max(top, y))
        right[image] = shared / ((end - left) * (bottom - top) + (x2 - x) * (y2 - y) - shared) > 0.5
    found = {
        (row.table, row.net, row.guesses): (row.main.measured, row.n, row.verdict, row.note)
        for row in of_tables(report_of(root), BOX_TABLES)
        if row.table < 10 and row.main.measured is not None and not row.run
    }
    expected = (IMAGES, "not comparable", "a yardstick")
    percent = 100 / IMAGES
    small = IMAGES - LARGE
    assert 0 < right[IMAGES - 200 :].sum() < right.sum()
    parent, others = "parent (top-5 error 10.0 %)", "others (top-5 error 15.0 %)"
    assert found == {
        (8, "the whole image", None): (percent * small, *expected),
        (8, "a random box", None): (pytest.approx(percent * (~right).sum()), *expected),
        # the images that the guesses lose are none of the large ones
        (9, "the whole image", parent): (percent * small, *expected),
        (9, "a random box", parent): (pytest.approx(percent * (IMAGES - right[: IMAGES - 200].sum())), *expected),
        (9, "the whole image", others): (percent * small, *expected),
        (9, "a random box", others): (pytest.approx(percent * (IMAGES - right[: IMAGES - 300].sum())), *expected),
    }
