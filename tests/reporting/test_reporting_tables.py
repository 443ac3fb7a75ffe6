"""Tables from fabricated posteriors with known errors, whatever else is in the folder."""

import csv
import io
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reporting_runs import IMAGES, dense, labels, make_run, posteriors_with
from scipy.stats import binomtest
from tiny import REPOSITORY

from vggrepro.errors import UserError
from vggrepro.evaluation import predictions
from vggrepro.evaluation.posteriors import Posteriors, PosteriorsKey
from vggrepro.paper import facts
from vggrepro.reporting.documents.render import Format, format_of, render
from vggrepro.reporting.stored.find_runs import find_runs, resolve
from vggrepro.reporting.stored.runs import Setting
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report, Row

SCHEMA = REPOSITORY / "vggrepro" / "reporting" / "tables.schema.json"


def rows_of(root: Path, table: int, **wanted: object) -> list[Row]:
    found = build_report(find_runs([root])).rows
    return [row for row in found if row.table == table and all(getattr(row, k) == v for k, v in wanted.items())]


@pytest.fixture
def posteriors_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs whose posteriors are read, in order."""
    read: list[str] = []
    original = predictions.array_rows

    def noted(file: Path, name: str, rows: int) -> Iterator[np.ndarray]:
        read.append(file.parents[1].name)
        yield from original(file, name, rows)

    monkeypatch.setattr(predictions, "array_rows", noted)
    return read


def test_without_runs_every_printed_figure_stands_there_and_nothing_is_measured() -> None:
    report = build_report([])
    for table in (3, 4, 5, 6):
        shown = [
            (row.top1.printed, row.top5.printed) for row in report.rows if row.table == table and row.split == "val"
        ]
        assert sorted(shown) == sorted((row.top1, row.top5) for row in facts().table(table))
    assert {row.verdict for row in report.rows if row.table > 2} == {"not measured", "cannot be measured"}
    assert {row.verdict for row in report.rows if row.table <= 2} == {"agrees"}
    printed = {(row.net, row.printed_count) for row in report.rows if row.table == 2}
    assert printed == set(facts().parameters_printed_millions.items())
    test_set = [
        (row.table, row.top5.printed, row.verdict) for row in report.rows if row.split == "test" and row.table < 7
    ]
    assert test_set == [(4, 7.3, "cannot be measured")] + [(6, top5, "cannot be measured") for top5 in (7.3, 7.0, 6.8)]
    table7 = [row for row in report.rows if row.table == 7]
    assert sum(row.verdict == "not measured" for row in table7) == 3  # VGG's own, on the validation set
    assert sum(row.split == "test" for row in table7) == sum(bool(row.top5_test) for row in facts().state_of_the_art)


@pytest.mark.usefixtures("paper_of_2000")
def test_a_known_answer(root: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208))  # 29.6 and 10.4 %, as printed
    make_run(root, "E", posteriors=dense(256, wrong1=700, wrong5=180))  # 35 % instead of 27.3, and 9.0
    (A,), (E,) = rows_of(root, 3, net="A"), rows_of(root, 3, net="E", S="256")

    assert (A.top1.measured, A.top5.measured, A.n, A.verdict) == (29.6, 10.4, IMAGES, "agrees")
    assert A.top1.difference == pytest.approx(0)
    for row, wrong1, wrong5 in ((A, 592, 208), (E, 700, 180)):
        for interval, wrong in ((row.top1.interval, wrong1), (row.top5.interval, wrong5)):
            exact = binomtest(wrong, IMAGES).proportion_ci(method="wilson")
            assert interval == pytest.approx((100 * exact.low, 100 * exact.high))
    assert (E.verdict, E.note, E.run) == ("differs", "top-1 higher", "paper:E-256")
    assert E.top1.difference == pytest.approx(7.7)
    assert rows_of(root, 3, net="B")[0].verdict == "not measured"


@pytest.mark.usefixtures("paper_of_2000")
def test_a_difference_within_both_sampling_errors_agrees(root: Path) -> None:
    # 1.96 * sqrt(0.296 * 0.704 / 50000 + p (1 - p) / 2000) + 0.05 is about 2.1 points
    make_run(root, "A", posteriors=dense(256, wrong1=592 + 40, wrong5=208))
    make_run(root, "A-LRN", posteriors=dense(256, wrong1=594 + 46, wrong5=210))
    (near,), (far,) = rows_of(root, 3, net="A"), rows_of(root, 3, net="A-LRN")
    assert (near.top1.difference, near.verdict) == (pytest.approx(2.0), "agrees")
    assert (far.top1.difference, far.verdict) == (pytest.approx(2.3), "differs")


@pytest.mark.usefixtures("paper_of_2000")
def test_several_q_are_averaged_before_the_error_is_taken(root: Path) -> None:
    # At each Q other images are wrong, with less certainty than the two other Q are right.
    sets = {("dense", Q): posteriors_with(300, 0, first=at) for Q, at in ((224, 0), (256, 300), (288, 600))}
    make_run(root, "D", posteriors=sets)
    assert rows_of(root, 3, net="D", S="256")[0].top1.measured == 15.0
    assert rows_of(root, 4, net="D", S="256")[0].top1.measured == 0.0


@pytest.mark.usefixtures("paper_of_2000")
def test_table_5_and_6_and_7_follow_from_the_same_posteriors(root: Path) -> None:
    scales = (256, 384, 512)
    for net, first in (("D", 0), ("E", 250)):
        posteriors = dense(*scales, wrong1=500, wrong5=100, first=first)
        posteriors |= {("multicrop", Q): posteriors_with(460, 80, first) for Q in scales}
        make_run(root, net, (256, 512), posteriors=posteriors)
    table5 = {(row.net, row.method): row.top1.measured for row in rows_of(root, 5)}
    assert table5 == {
        ("D", "dense"): 25.0, ("D", "multicrop"): 23.0, ("D", "both"): 23.0,
        ("E", "dense"): 25.0, ("E", "multicrop"): 23.0, ("E", "both"): 23.0,
    }  # fmt: skip
    # wrong together: images 250 to 499; alone, the other net's certainty outweighs
    fused = {row.method: row for row in rows_of(root, 6, net="D + E", split="val")}
    assert fused["dense"].top1.measured == 12.5
    assert fused["dense"].run == "paper:D-256-512 + paper:E-256-512"
    assert fused["multicrop"].top1.measured == 100 * 210 / IMAGES
    (seven,) = [row for row in rows_of(root, 6, split="val") if row.net.count("+") == 6]
    assert seven.verdict == "not measured"
    assert "D at S = 256" in seven.note
    measured7 = {row.net.partition(":")[0]: row.top1.measured for row in rows_of(root, 7, split="val") if row.run}
    assert measured7 == {
        "VGG, 2 nets, multi-crop and dense": fused["both"].top1.measured,
        "VGG, 1 net, multi-crop and dense": 23.0,
    }


@pytest.mark.usefixtures("paper_of_2000")
def test_posteriors_are_read_once_and_then_those_that_are_new(root: Path, posteriors_read: list[str]) -> None:
    def make(net: str, first: int) -> None:
        make_run(root, net, (256, 512), posteriors=dense(256, 384, 512, wrong1=500, wrong5=100, first=first))

    make("D", 0)
    before = build_report(find_runs([root]))
    assert set(posteriors_read) == {"D-256-512"}
    posteriors_read.clear()
    assert build_report(find_runs([root])) == before
    assert posteriors_read == []
    make("E", 250)
    build_report(find_runs([root]))
    assert posteriors_read.count("D-256-512") == 3, "for the two nets fused"
    posteriors_read.clear()
    assert rows_of(root, 6, net="D + E", split="val")[0].top1.measured == 12.5
    assert posteriors_read == []


@pytest.mark.usefixtures("paper_of_2000")
def test_half_done_runs_say_what_is_missing(root: Path) -> None:
    make_run(root, "A", finished=False)
    make_run(root, "B")
    make_run(root, "D", posteriors=dense(224, 256, wrong1=540, wrong5=176))
    run = make_run(root, "C")
    (run.path / "final.json").unlink()
    notes = {(row.table, row.net): (row.verdict, row.note) for row in build_report(find_runs([root])).rows if row.run}
    assert notes[3, "A"] == ("not measured", "paper:A-256 is at step 100 of 370,000")
    assert notes[3, "B"] == ("not measured", "paper:B-256 lacks dense at Q = 256")
    assert notes[3, "C"] == ("not measured", "paper:C-256 is not evaluated yet")
    assert notes[3, "D"] == ("agrees", "")
    assert notes[4, "D"] == ("not measured", "paper:D-256 lacks dense at Q = 288")
    text = render(build_report(find_runs([root])), Format.markdown, "t")
    assert "- paper:A-256: paper:A-256 is at step 100 of 370,000\n" not in text
    assert "- paper:A-256 is at step 100 of 370,000\n" in text
    assert "- test set: cannot be measured: the labels of the ILSVRC test set were never published" in text


def test_half_done_runs_of_another_data_set_say_so_too(root: Path) -> None:
    make_run(root, "A", finished=False)
    make_run(root, "D", posteriors=dense(256, wrong1=540, wrong5=176))
    text = render(build_report(find_runs([root])), Format.markdown, "t")
    assert "- paper:A-256 is at step 100 of 370,000\n" in text
    assert "- paper:D-256 lacks dense at Q = 224, dense at Q = 288\n" in text


@pytest.mark.usefixtures("paper_of_2000")
def test_looking_changes_nothing_on_disk(root: Path) -> None:
    make_run(root, "A", finished=False)
    before = sorted(root.rglob("*"))
    build_report(find_runs([root]))
    assert sorted(root.rglob("*")) == before


@pytest.mark.usefixtures("paper_of_2000")
def test_runs_of_another_index_stand_apart(root: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208))
    make_run(root, "D", posteriors=dense(256, wrong1=540, wrong5=176), fingerprint="e" * 64)
    report = build_report(find_runs([root]))
    assert len(report.groups) == 2
    first, second = report.groups
    assert [run.name for run in first.runs] == ["paper:A-256"]
    assert [run.name for run in second.runs] == ["paper:D-256"]
    for group, net in ((first, "A"), (second, "D")):
        assert {row.net for row in report.rows if row.group == group.id and row.top1.measured is not None} == {net}
    claims = [claim for claim in report.claims if claim.claim.endswith("D is better than A")]
    assert {claim.verdict for claim in claims} == {"not measured"}  # never a test across data sets
    text = render(report, Format.markdown, "t")
    assert first.title in text
    assert second.title in text


@pytest.mark.usefixtures("paper_of_2000")
def test_posteriors_of_another_net_or_index_are_named_and_not_used(root: Path) -> None:
    run = make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208))
    for weights, data in (("0" * 64, "f" * 64), (run.read_json("final.json")["weights"], "e" * 64)):
        PosteriorsKey(weights, data, "dense", 256, True).save(run, Posteriors(posteriors_with(0, 0), labels()))
    report = build_report(find_runs([root]))
    assert [row.top1.measured for row in report.rows if row.run and row.table == 3] == [29.6]
    assert len(report.groups[0].runs[0].unused) == 2
    assert "used nowhere above" in render(report, Format.markdown, "t")


@pytest.mark.parametrize("shape", [(IMAGES, 9), (IMAGES - 1, 10)])
def test_posteriors_that_do_not_fit_the_run_are_refused(root: Path, shape: tuple[int, int]) -> None:
    values = np.full(shape, 0.1, np.float32)
    run = make_run(root, "A")
    key = PosteriorsKey(run.read_json("final.json")["weights"], "f" * 64, "dense", 256, True)
    key.save(run, Posteriors(values, labels()[: shape[0]]))
    with pytest.raises(UserError, match="remove them and evaluate again"):
        build_report(find_runs([root]))


def test_another_data_set_is_not_compared_with_the_paper(root: Path) -> None:
    make_run(root, "A", posteriors=dense(224, 256, 288, wrong1=592, wrong5=208))
    make_run(root, "mine", layers=(("conv3-8",),) * 5, posteriors=dense(224, 256, 288, wrong1=100, wrong5=10))
    (A,) = rows_of(root, 3, net="A")
    assert (A.top1.measured, A.top1.printed, A.top1.difference, A.verdict) == (29.6, 29.6, None, "not comparable")
    (mine,) = rows_of(root, 3, net="mine")
    assert (mine.top1.printed, mine.verdict, mine.note) == (None, "not comparable", "the paper has no such row")
    assert rows_of(root, 4, net="A")[0].note == "the paper has no such row"
    text = render(build_report(find_runs([root])), Format.markdown, "t")
    assert "not measured" not in text.partition("### The paper's claims")[0]  # its rows without runs take one line
    assert "Rows of the paper without a run here: 11 of Table 3, 10 of Table 4, 6 of Table 5, 4 of Table 6." in text
    assert (
        "| A | 256 | 256 | dense | (29.6) | **29.6** | 27.6 to 31.6 | (10.4) |" in text
    )  # not to be mistaken for a yardstick


@pytest.mark.usefixtures("paper_of_2000")
def test_without_mirror_images_the_protocol_is_another(root: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208), flip=False)
    assert rows_of(root, 3, net="A")[0].verdict == "not comparable"
    text = render(build_report(find_runs([root])), Format.markdown, "t")
    assert "| A | 256 | 256 | dense, no mirror images | 29.6 | **29.6** |" in text


def test_the_same_images_at_two_paths_are_one_data_set(root: Path) -> None:
    for net in ("A", "D"):
        run = make_run(root, net, posteriors=dense(256, wrong1=592, wrong5=208))
        run.write_json("dataset.json", run.read_json("dataset.json") | {"source": f"local disk of {net}"})
    (group,) = build_report(find_runs([root])).groups
    assert len(group.runs) == 2


def test_the_way_back_to_a_run(root: Path) -> None:
    run = make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208))
    run.write_json("environment.json", {"git_commit": "0123456789abcdef", "git_dirty": True})
    run.write_json("mlflow.json", {"run_id": "fedcba9876543210"})
    text = render(build_report(find_runs([root])), Format.markdown, "t")
    weights = run.read_json("final.json")["weights"][:12]
    line = f"| paper:A-256 | 0 | 370,000 of 370,000 | {weights} | 0123456789 and changes | 0 | fedcba98 | {run.path} |"
    assert line in text


@pytest.mark.usefixtures("paper_of_2000")
def test_several_seeds_have_mean_and_spread(root: Path) -> None:
    for seed, wrong in enumerate((580, 592, 610)):
        make_run(root, "A", name=f"A-{seed}", seed=seed, posteriors=dense(256, wrong1=wrong, wrong5=200))
    make_run(root, "A", name="ablation", seed=0, flip=False)
    report = build_report(find_runs([root]))
    (spread,) = [entry for entry in report.seeds if entry.table == 3]
    assert (spread.seeds, spread.runs) == (3, ["paper:A-0", "paper:A-1", "paper:A-2"])
    assert spread.figures["top1"].mean == pytest.approx(statistics.mean((29.0, 29.6, 30.5)))
    assert spread.figures["top1"].spread == pytest.approx(statistics.stdev((29.0, 29.6, 30.5)))
    mean, sd = statistics.mean((29.0, 29.6, 30.5)), statistics.stdev((29.0, 29.6, 30.5))
    text = render(report, Format.markdown, "t")
    assert f"| A | 256 | 256 | dense | 3 | 29.6 | **{mean:.2f}** | {sd:.2f} | 10.4 | 10.00 | 0.00 | paper:A-0, " in text


def test_two_runs_with_the_same_name_have_separate_departures(root: Path) -> None:
    for place, width in (("one", 0.5), ("two", 0.25)):
        departure = {"setting": "model.width", "paper": 1.0, "run": width, "why": "reduced geometry"}
        make_run(root / place, "A", departures=[departure], posteriors=dense(256, wrong1=590, wrong5=200))
    text = render(build_report(find_runs([root / "one", root / "two"])), Format.markdown, "t")
    for width in ("0.5", "0.25"):
        assert f"- paper:A-256: model.width: {width} instead of 1.0 (reduced geometry)" in text


def test_five_classes_or_fewer_are_reported() -> None:
    few, more = (Setting("demo", "f" * 64, "images", classes, 12, "crop 32 px") for classes in (5, 6))
    assert ": 5 classes (top-5 errors are 0), 12 validation images" in few.title
    assert ": 6 classes, 12 validation images" in more.title


def test_torn_posteriors_of_an_imported_net_are_named(root: Path) -> None:
    run = make_run(root, "A", posteriors=dense(256, wrong1=590, wrong5=200))
    (run.path / "dataset.json").unlink()
    (file,) = run.posteriors.glob("*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=re.escape(f"posteriors {file} cannot be read")):
        build_report(find_runs([root]))


@pytest.mark.usefixtures("paper_of_2000")
def test_seeds_that_are_tested_in_another_way_share_no_spread(root: Path) -> None:
    for seed, flip in enumerate((True, True, False)):
        posteriors = dense(256, wrong1=580 + 10 * seed, wrong5=200)
        make_run(root, "A", name=f"A-{seed}", seed=seed, flip=flip, posteriors=posteriors)
    (spread,) = [entry for entry in build_report(find_runs([root])).seeds if entry.table == 3]
    assert spread.runs == ["paper:A-0", "paper:A-1"]


@pytest.mark.usefixtures("paper_of_2000")
def test_fused_nets_are_fused_seed_by_seed(root: Path) -> None:
    jitter = (256, 512)
    wrong = {"D": (500, 520), "E": (480, 500)}
    for net, counts in wrong.items():
        for seed, count in enumerate(counts):
            posteriors = dense(256, 384, 512, wrong1=count, wrong5=100, first=0)
            make_run(root, net, jitter, name=f"{net}-{seed}", seed=seed, posteriors=posteriors)
    make_run(root, "E", jitter, name="E-7", seed=7, posteriors=dense(256, 384, 512, wrong1=9, wrong5=0))
    report = build_report(find_runs([root]))
    fused = [row for row in report.rows if (row.table, row.net, row.method, row.split) == (6, "D + E", "dense", "val")]
    assert [row.run for row in fused] == ["paper:D-0 + paper:E-0", "paper:D-1 + paper:E-1"]
    (spread,) = [entry for entry in report.seeds if entry.table == 6]
    measured = [row.top1.measured for row in fused]
    assert (spread.seeds, spread.net) == (2, "D + E")
    assert (spread.figures["top1"].mean, spread.figures["top1"].spread) == (
        statistics.mean(measured),
        statistics.stdev(measured),
    )
    assert spread.figures["top1"].spread > 0


@pytest.mark.usefixtures("paper_of_2000")
def test_the_gain_of_dense_over_the_centre_crop_is_reported(root: Path) -> None:
    for seed, (centre, dense_wrong) in enumerate(((620, 590), (640, 600))):
        posteriors = dense(256, wrong1=dense_wrong, wrong5=0) | {("centre", 256): posteriors_with(centre, 0)}
        make_run(root, "A", name=f"A-{seed}", seed=seed, posteriors=posteriors)
    centre_crop = {("centre", 256): posteriors_with(600, 0)}
    make_run(root, "B", posteriors=dense(256, wrong1=606, wrong5=0) | centre_crop)
    make_run(root, "D", posteriors=dense(256, wrong1=606, wrong5=0))  # no centre crop is stored
    report = build_report(find_runs([root]))
    A, B = report.dense_over_centre
    assert (A.seeds, A.effect) == (2, pytest.approx(1.75))
    assert (B.seeds, B.effect, B.n) == (1, pytest.approx(-0.3), 2000)
    assert not [claim for claim in report.claims if claim.section == "3.2"], "it is no claim of the paper"
    for form in (Format.markdown, Format.html):
        text = render(report, form, "t")
        assert "paper:A-0, paper:A-1: dense, Q = 256 +1.8 (" in text
        assert ", over 2 seeds)" not in text, "the same nets, tested in two ways"
        assert "paper:B-256: dense, Q = 256 -0.3 (-0.5 to -0.1, p = 0.0312)" in text


@pytest.fixture
def report(root: Path, paper_of_2000: None) -> Report:
    line = {"setting": "train.precision", "paper": "fp32", "run": "bf16", "why": "50 % faster & <cheaper>"}
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208), departures=[line])
    make_run(root, "D", posteriors=dense(224, 256, 288, wrong1=540, wrong5=176))
    return build_report(find_runs([root]))


def test_json_is_the_reports_and_its_schema_is_current(report: Report) -> None:
    assert Report.model_validate_json(render(report, Format.json, "t")) == report
    assert json.loads(SCHEMA.read_text()) == Report.model_json_schema(), (
        "the report's fields changed: renew the schema with `python -m vggrepro.reporting.tables.report`"
    )
    contract = {"table", "net", "S", "Q", "method", "printed_top1", "printed_top5", "measured_top1", "measured_top5"}
    for row in json.loads(render(report, Format.json, "t"))["rows"]:
        assert row.keys() >= contract | {"n", "verdict", "run"}


def test_csv_has_every_row(report: Report) -> None:
    read = list(csv.DictReader(io.StringIO(render(report, Format.csv, "t"))))
    assert len(read) == len(report.rows)
    (A,) = [row for row in read if (row["table"], row["net"]) == ("3", "A")]
    assert (A["measured_top1"], A["verdict"]) == ("29.6", "agrees")


def test_html_is_a_single_file_without_network(report: Report) -> None:
    text = render(report, Format.html, "Tables & more")
    assert "<title>Tables &amp; more</title>" in text
    assert "50 % faster &amp; &lt;cheaper&gt;" in text
    assert not any(word in text for word in ("http:", "https:", "<script", 'src="/', "@import", "url("))
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert '<td class="good">agrees</td>' in text


def test_latex_is_escaped_and_balanced(report: Report) -> None:
    text = render(report, Format.latex, "t")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\bottomrule") > 5
    assert r"\caption{The paper's Table 3: one test scale, dense (Section 4.1). paper, on images (ffffffff)" in text
    assert (
        r"\item paper:A-256: train.precision: bf16 instead of fp32 (50 \% faster \& \textless{}cheaper\textgreater{})"
        in text
    )
    assert r"\textbf{29.6}" in text
    assert r"\shortstack[r]{top-1\\printed}" in text
    assert r"\begin{tabular}{llllrrrrrrrrrlrl}" in text  # Table 3
    assert r"p{65mm}" in text.partition("fusion of nets")[2]  # seven nets may wrap
    assert r"\paragraph{Departures from the paper (fidelity ledger)}" in text
    assert "{[}256;512{]}" in text
    for line in text.splitlines()[1:]:
        assert "_" not in line.replace(r"\_", "")
        assert "&" not in line.replace(r"\&", "") or line.endswith(r" \\")
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}") or line.endswith(("{%", "}}"))


def test_markdown_has_departures_and_provenance(report: Report) -> None:
    text = render(report, Format.markdown, "t")
    assert "- paper:A-256: train.precision: bf16 instead of fp32 (50 % faster & <cheaper>)" in text
    rows = [[cell.strip() for cell in line.split("|")][1:-1] for line in text.splitlines() if line.startswith("| A |")]
    assert [
        "A", "256", "256", "dense", "29.6", "**29.6**", "+0.0", "27.6 to 31.6", "10.4", "10.4", "+0.0", "9.1 to 11.8",
        "2,000", "agrees", "1", "paper:A-256",
    ] in rows  # fmt: skip


def test_a_run_of_another_version_is_left_out_and_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(root, "A")
    run = make_run(root, "B")
    run.write_text("config.yaml", "model: {net: B, width_of_yore: 3}\n")
    assert [found.name for found in find_runs([root])] == ["paper:A-256"]
    assert "left out: " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"unknown key model.width_of_yore"):
        find_runs([run.path])


def test_runs_are_found_by_folder_and_name(root: Path, tmp_path: Path) -> None:
    run = make_run(root, "A", name="A")
    make_run(root, "A", name="A", experiment="other")
    run.write_json("mlflow.json", {"run_id": "0123456789abcdef"})
    for places in ([root], [root / "paper"], [root / "paper" / "A"], [root, root / "paper"]):
        assert "paper:A" in [found.name for found in find_runs(places)]
    assert [found.name for found in find_runs([root], ["other"])] == ["other:A"]
    for name in ("paper:A", str(run.path), "0123456789abcdef", "01234567"):
        assert [found.path for found in resolve([name], [root])] == [run.path]
    with pytest.raises(UserError, match=r"run A matches 2 runs \(other:A, paper:A\); name one as experiment:stage"):
        resolve(["A"], [root])
    with pytest.raises(UserError, match="run B is not a run directory, stage, experiment:stage or MLflow run id"):
        resolve(["B"], [root])
    with pytest.raises(UserError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="--experiment vgg has no runs there; known: other, paper"):
        find_runs([root], ["vgg"])
    with pytest.raises(UserError, match="unknown ending"):
        format_of(Path("tables.docx"))
