"""Tables 8-10 over several seeds and in all formats."""

import csv
import io
import json
import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from reporting_runs import (
    BOTH,
    BOX_TABLES,
    COARSE,
    IMAGES,
    box_run,
    dense,
    find_centre,
    find_dense,
    make_run,
    of_tables,
    report_of,
    rows_of,
    three_seeds,
)
from scipy.stats import binomtest
from tiny import REPOSITORY

from vggrepro.paper import facts
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report, Spread


@pytest.mark.usefixtures("paper_of_2000")
def test_several_seeds_have_mean_and_spread(root: Path) -> None:
    runs = three_seeds(root)
    unlike = box_run(root, 256, seed=5), box_run(root, seed=6)
    find_dense([(unlike[0], COARSE), (unlike[1], BOTH)], 0)  # rows, but of no seed
    find_dense([(runs[0], COARSE), (runs[3], BOTH)], 0)
    find_centre(box_run(root, name="merged-sooner", seed=8, merge_below=0.1), 3)
    report = report_of(root)
    errors = {8: (32.0, 33.0, 35.0), 9: (28.0, 29.0, 31.0)}
    single, dense_, pooled = report.seeds
    for spread, table in ((single, 8), (dense_, 9)):
        assert isinstance(spread, Spread)
        assert (spread.table, spread.net, spread.S, spread.Q, spread.seeds) == (table, "D", "384", "384", 3)
        assert spread.figures["only"].mean == pytest.approx(statistics.mean(errors[table]))
        assert spread.figures["only"].spread == pytest.approx(statistics.stdev(errors[table]))
        assert spread.runs == [f"paper:384-PCR-all-{seed}" for seed in range(3)]
    assert (pooled.table, pooled.net, pooled.Q, pooled.seeds) == (9, "D + D", "256 + 352, 384", 3)
    assert pooled.figures["only"].mean == pytest.approx(statistics.mean((27, 28, 30)))
    assert pooled.figures["only"].spread == pytest.approx(statistics.stdev((27, 28, 30)))
    assert pooled.runs == [f"paper:256-PCR-all-{seed} + paper:384-PCR-all-{seed}" for seed in range(3)]

    text = render(report, Format.markdown, "t")
    table_8, _, table_9 = text.partition("### Table 9")
    sd = f"{statistics.stdev(errors[8]):.2f}"
    line = "paper:384-PCR-all-0, paper:384-PCR-all-1, paper:384-PCR-all-2 |"
    assert f"| D | 384 | 384 | PCR | all | 3 | **33.33** | {sd} | {line}" in table_8
    assert f"| D | 384 | 384 | PCR | all | 3 | **29.33** | {sd} | {line}" in table_9.partition("### Table 10")[0]
    assert text.count("Mean and standard deviation over seeds:") == 2


@pytest.mark.usefixtures("paper_of_2000")
def test_the_test_set_has_one_row_for_any_number_of_seeds(root: Path) -> None:
    three_seeds(root)
    for table, printed in ((9, [26.7, 25.3]), (10, [25.3, 26.7, 29.9, 34.2])):
        assert [row.main.printed for row in rows_of(root, table, split="test")] == printed
    assert [row.main.measured for row in rows_of(root, 10) if row.run] == [27.0, 28.0, 30.0]
    for rows in pairwise(rows_of(root, 8, printed=33.1)):
        assert rows[0].run != rows[1].run


@pytest.fixture
def report(root: Path, paper_of_2000: None) -> Report:
    """Report of classification and localisation nets in one group."""
    make_run(root, "D", 384, posteriors=dense(384, wrong1=536, wrong5=174))
    three_seeds(root)
    return report_of(root)


def test_tables_of_classes_and_of_boxes_ignore_each_other(root: Path, report: Report) -> None:
    assert {row.run for row in report.rows if row.run and row.table == 3} == {"paper:D-384"}
    assert not [row for row in report.rows if "PCR" in (row.run or "") and row.table < 8]
    assert not [row for row in of_tables(report, BOX_TABLES) if "D-384" in (row.run or "")]
    assert {spread.table for spread in report.seeds} == {8, 9}
    alone = build_report([run for run in find_runs([root]) if not run.config.localisation])
    classes = range(1, 8)
    assert of_tables(alone, classes) == of_tables(report, classes)


def test_json_is_the_reports(report: Report) -> None:
    text = render(report, Format.json, "t")
    assert Report.model_validate_json(text) == report
    schema = json.loads((REPOSITORY / "vggrepro" / "reporting" / "tables.schema.json").read_text())
    written = json.loads(text)
    for key, record in (("rows", "Row"), ("seeds", "Spread")):
        declared = schema["$defs"][record]
        assert schema["properties"][key]["items"] == {"$ref": f"#/$defs/{record}"}
        assert written[key]
        for row in written[key]:
            assert set(declared["required"]) <= row.keys() <= declared["properties"].keys()


def test_csv_has_a_cell_for_every_column(report: Report) -> None:
    header, *lines = csv.reader(io.StringIO(render(report, Format.csv, "t")))
    assert {len(line) for line in lines} == {len(header)}
    assert len(lines) == len(report.rows)
    assert {"printed_top1", "measured_top1", "method", "printed", "measured", "regression", "guesses"} <= set(header)
    assert len(set(header)) == len(header)
    read = [dict(zip(header, line, strict=True)) for line in lines]
    (row,) = [entry for entry in read if (entry["table"], entry["run"]) == ("8", "paper:384-PCR-all-0")]
    low, high = binomtest(640, IMAGES).proportion_ci(method="wilson")
    assert (row["measured"], row["printed"], row["measured_top1"], row["method"]) == ("32.0", "33.1", "", "")
    assert row["interval"] == f"{100 * low:.4f} to {100 * high:.4f}"
    (D,) = [entry for entry in read if (entry["table"], entry["run"]) == ("3", "paper:D-384")]
    assert (D["measured_top1"], D["measured"], D["regression"]) == ("26.8", "", "")


def test_html_and_latex_have_the_tables(report: Report) -> None:
    html = render(report, Format.html, "t")
    for table in (8, 9, 10):
        assert f"Table {table}: localisation" in html
    assert '<td class="good">agrees</td>' in html.partition("Table 8: localisation")[2]
    text = render(report, Format.latex, "t")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    for table in (8, 9, 10):
        assert rf"\caption{{The paper's Table {table}: localisation" in text
    assert r"\textbf{32.0}" in text


def test_markdown_has_a_cell_for_every_column(report: Report) -> None:
    text = render(report, Format.markdown, "t")
    appendix = text.partition("### Table 8")[2].partition("### The paper's claims")[0]
    tables = [block.splitlines() for block in appendix.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5  # three, and two of means
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    assert "| D | 384 | 384 | PCR | all | 33.1 | **32.0** | -1.1 | 30.0 to 34.1 | 2,000 | agrees | 0 | paper:" in text
    assert "- test set: cannot be measured: the labels of the ILSVRC test set were never published" in appendix
    assert "- other systems: cannot be measured: a figure of another paper" in appendix
    assert "- test set: cannot be measured: a figure of another paper" not in appendix


def test_a_report_of_another_geometry_without_boxes_has_no_appendix(root: Path) -> None:
    make_run(root, "D", posteriors=dense(256, wrong1=592, wrong5=208))
    text = render(report_of(root), Format.markdown, "t")
    assert "Table 8" not in text
    assert "intersection over union" not in text
    assert "### Table 3" in text


def test_an_empty_report_shows_the_papers_rows() -> None:
    text = render(build_report([]), Format.markdown, "t")
    for rows in facts().localisation.values():
        for row in rows:
            assert f"| {row.regression} | {row.fine_tune} | {row.error} |" in text
    assert re.search(r"\| OverFeat \|[^\n]* \| 30.0 \|", text)
    assert re.search(r"\| OverFeat, test set \|[^\n]* \| 29.9 \|", text)
    assert "- no pooled boxes; see `vggrepro localise`\n" in text
