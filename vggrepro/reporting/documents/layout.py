"""The tables of the paper for a reader: the title and the columns of each, and how a row becomes their cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vggrepro.reporting.documents.blocks import (
    DASH,
    Columns,
    Sheet,
    count_text,
    error_text,
    interval_text,
    printed_text,
    sheet_of,
    signed_text,
)
from vggrepro.reporting.tables.report import FigureName, Group, Measurement, Row, RowLabels, SeedMean, Spread
from vggrepro.reporting.tables.rows import PREFIXES
from vggrepro.reporting.tables.words import MEASURES


@dataclass(frozen=True)
class Part:
    """What the tables of one part of the paper show of their rows."""

    labels: tuple[str, ...]
    """Columns before the figures, of `LABELS`."""
    figures: tuple[FigureName, ...] = ("only",)
    counts: tuple[str, ...] = ()
    """Columns after the figures, of `COUNTS`."""
    about: str = ""
    """What the columns mean; stands below the tables."""


@dataclass(frozen=True)
class TableLayout:
    """A table of the paper."""

    title: str
    part: Part


COUNTED = Part(("net",))
SECTION_4 = Part(("net", "S", "Q", "method"), figures=("top1", "top5"))
APPENDIX_A = Part(
    ("net", "S", "Q", "regression", "trained", "classes from"),
    about="A box is right when its intersection over union with an object's is above 0.5. SCR predicts one box for all "
    "classes, PCR one for each; trained are all layers, or the fully-connected ones alone (fc). Table 8: the true "
    "class is given, and the net sees the centre crop. Tables 9 and 10: five classes are guessed, and one of them "
    "must be the true one with a right box; the net predicts a box at every place of the whole image, and near ones "
    "are merged. Images without a box are left out.",
)
APPENDIX_B = Part(
    ("data set", "measure", "net", "layer", "Q"),
    counts=("classes", "learnt from"),
    about="Features: the activations of the last hidden layer, densely applied to the whole image, averaged over "
    "places and over the mirror image, of length 1 at each Q, then averaged or stacked; of several nets they "
    "are stacked. A linear SVM a class; C is chosen on held-out training samples. In per cent: mean average "
    "precision as PASCAL VOC defines it, or mean class recall with its standard deviation over random splits. "
    "Interval: 95 %, over the choice of test samples (Bayesian bootstrap). A figure agrees where Welch's t over "
    "the splits, or else the interval, allows it.",
)

TABLES: Mapping[int, TableLayout] = {
    1: TableLayout("Table 1: weight layers of the nets", COUNTED),
    2: TableLayout("Table 2: parameters", COUNTED),
    3: TableLayout("Table 3: one test scale, dense (Section 4.1)", SECTION_4),
    4: TableLayout("Table 4: several test scales, dense (Section 4.2)", SECTION_4),
    5: TableLayout("Table 5: dense, multi-crop, and both (Section 4.3)", SECTION_4),
    6: TableLayout("Table 6: fusion of nets (Section 4.4)", SECTION_4),
    7: TableLayout("Table 7: the state of the art (Section 4.5)", SECTION_4),
    8: TableLayout("Table 8: localisation given the class, centre crop (Appendix A)", APPENDIX_A),
    9: TableLayout("Table 9: localisation, dense, five guesses of the class (Appendix A)", APPENDIX_A),
    10: TableLayout("Table 10: localisation, the state of the art (Appendix A)", APPENDIX_A),
    11: TableLayout("Table 11: features on other data sets (Appendix B)", APPENDIX_B),
    12: TableLayout("Table 12: actions of PASCAL VOC 2012 (Appendix B)", APPENDIX_B),
}


def _net(row: RowLabels) -> str:
    return row.net + (", test set" if row.split == "test" else "") + (", image and box" if row.boxes else "")


def _method(row: RowLabels) -> str:
    """With what makes the test another one than the paper's."""
    mirrored = row.flip is not False or row.method == "centre"
    precision = "" if row.precision in (None, "fp32") else f", {row.precision}"
    return (row.method or DASH) + ("" if mirrored else ", no mirror images") + precision


LABELS: Mapping[str, Callable[[RowLabels], str]] = {
    "data set": lambda row: row.set or DASH,
    "measure": lambda row: MEASURES[row.measure] if row.measure else DASH,
    "net": _net,
    "layer": lambda row: row.layer or DASH,
    "S": lambda row: row.S or DASH,
    "Q": lambda row: (row.Q or DASH) + (f", {row.combine}" if row.combine else ""),
    "method": _method,
    "regression": lambda row: row.regression or DASH,
    "trained": lambda row: row.fine_tune or DASH,
    "classes from": lambda row: row.guesses or DASH,
}
"""How a row is labelled, by the title of the column."""
COUNTS: Mapping[str, Callable[[Row], int | None]] = {
    "classes": lambda row: row.classes,
    "learnt from": lambda row: row.train,
}


def _labels(part: Part, rows: Sequence[RowLabels]) -> Columns:
    shown = [title for title in part.labels if title != "classes from" or any(row.guesses for row in rows)]
    return {title: ([LABELS[title](row) for row in rows], False) for title in shown}


def _spread_text(figure: float | None, spread: float | None) -> str:
    return error_text(figure) + ("" if figure is None or spread is None else f" +- {spread:.1f}")


def row_sheet(rows: Sequence[Row], group: Group | None) -> Sheet:
    """Rows of one table, which are of a group of runs, or of Tables 11 and 12 and of none."""
    part = TABLES[rows[0].table].part
    columns = _labels(part, rows)
    # no difference is taken where the paper's figures do not apply
    differ = group.papers if group else any(row.main.difference is not None for row in rows)
    for name in part.figures:
        title, figures = PREFIXES[name], [row.figures.get(name, Measurement()) for row in rows]
        printed = [
            printed_text(
                _spread_text(figure.printed, row.printed_spread),
                yardstick=group.papers if group else row.verdict != "not comparable",
            )
            for row, figure in zip(rows, figures, strict=True)
        ]
        measured = [_spread_text(figure.measured, row.spread) for row, figure in zip(rows, figures, strict=True)]
        columns[f"{title}printed"] = printed, True
        columns[f"{title}measured"] = measured, True
        if differ:
            columns[f"{title}difference"] = [signed_text(figure.difference) for figure in figures], True
        columns[f"{title}95 % interval"] = [interval_text(figure.interval) for figure in figures], True
    columns |= {title: ([count_text(COUNTS[title](row)) for row in rows], True) for title in part.counts}
    columns |= {
        "n": ([count_text(row.n) for row in rows], True),
        "verdict": ([row.verdict for row in rows], False),
        "departures": ([count_text(row.departures) for row in rows], True),
        "run": ([row.run or DASH for row in rows], False),
    }
    return sheet_of(columns, f"{PREFIXES[part.figures[0]]}measured")


def spread_sheet(rows: Sequence[Spread], group: Group) -> Sheet:
    """Means over seeds of one table; beside a printed figure where a row has two."""
    part = TABLES[rows[0].table].part
    columns = _labels(part, rows) | {"seeds": ([str(row.seeds) for row in rows], True)}
    for name in part.figures:
        title, figures = PREFIXES[name], [row.figures.get(name, SeedMean()) for row in rows]
        if len(part.figures) > 1:
            printed = [printed_text(error_text(figure.printed), yardstick=group.papers) for figure in figures]
            columns[f"{title}printed"] = printed, True
        columns[f"{title}mean"] = [error_text(figure.mean, 2) for figure in figures], True
        columns[f"{title}sd"] = [error_text(figure.spread, 2) for figure in figures], True
    columns["runs"] = [", ".join(row.runs) for row in rows], False
    return sheet_of(columns, f"{PREFIXES[part.figures[0]]}mean")


def count_sheet(rows: Sequence[Row]) -> Sheet:
    """Table 1 or 2."""
    unit = " million" if rows[0].table == 2 else ""
    cells = [(row.net, f"{row.printed_count:,}{unit}", f"{row.measured_count:,}", row.verdict) for row in rows]
    return Sheet(("net", "printed", "ours", "verdict"), cells, numbers=frozenset({1, 2}))
