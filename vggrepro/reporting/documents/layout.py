"""Titles and columns of the paper's tables, and how a row becomes cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vggrepro.reporting.documents.blocks import DASH, Sheet, count_text, interval_text, sheet_of, signed_text
from vggrepro.reporting.tables.labels import MEASURES
from vggrepro.reporting.tables.report import FigureName, Group, Measurement, Row, RowLabels, SeedMean, Spread
from vggrepro.reporting.tables.rows import PREFIXES


@dataclass(frozen=True)
class Part:
    """The layout of the tables of a part of the paper."""

    titles: Mapping[int, str]
    """Titles of the tables, by number."""
    labels: tuple[str, ...]
    """Keys of `LABELS`: the columns before the figures."""
    figures: tuple[FigureName, ...] = ("only",)
    learning: bool = False
    """Whether columns for the numbers of classes and training samples follow the figures."""
    about: str = ""
    """Meaning of the columns, printed below the tables."""


COUNTED = Part({1: "Table 1: weight layers of the nets", 2: "Table 2: parameters"}, ("net",))
SECTION_4 = Part(
    {
        3: "Table 3: one test scale, dense (Section 4.1)",
        4: "Table 4: several test scales, dense (Section 4.2)",
        5: "Table 5: dense, multi-crop, and both (Section 4.3)",
        6: "Table 6: fusion of nets (Section 4.4)",
        7: "Table 7: the state of the art (Section 4.5)",
    },
    ("net", "S", "Q", "method"),
    figures=("top1", "top5"),
)
APPENDIX_A = Part(
    {
        8: "Table 8: localisation given the class, centre crop (Appendix A)",
        9: "Table 9: localisation, dense, five guesses of the class (Appendix A)",
        10: "Table 10: localisation, the state of the art (Appendix A)",
    },
    ("net", "S", "Q", "regression", "trained", "classes from"),
    about="A box is right when its intersection over union with an object's is above 0.5. SCR predicts one box for all "
    "classes, PCR one for each; trained are all layers, or the fully-connected ones alone (fc). Table 8: the true "
    "class is given, and the net sees the centre crop. Tables 9 and 10: five classes are guessed, and one of them "
    "must be the true one with a right box; the net predicts a box at every place of the whole image, and near ones "
    "are merged. Images without a box are left out.",
)
APPENDIX_B = Part(
    {11: "Table 11: features on other data sets (Appendix B)", 12: "Table 12: actions of PASCAL VOC 2012 (Appendix B)"},
    ("data set", "measure", "net", "layer", "Q"),
    learning=True,
    about="Features: the activations of the last hidden layer, densely applied to the whole image, averaged over "
    "places and over the mirror image, of length 1 at each Q, then averaged or stacked; of several nets they "
    "are stacked. A linear SVM a class; C is chosen on held-out training samples. In per cent: mean average "
    "precision as PASCAL VOC defines it, or mean class recall with its standard deviation over random splits. "
    "Interval: 95 %, over the choice of test samples (Bayesian bootstrap). A figure agrees where Welch's t over "
    "the splits, or else the interval, allows it.",
)


def part_of(table: int) -> Part:
    """Returns the part that contains a table."""
    return next(part for part in (COUNTED, SECTION_4, APPENDIX_A, APPENDIX_B) if table in part.titles)


def _net(row: RowLabels) -> str:
    return row.net + (", test set" if row.split == "test" else "") + (", image and box" if row.boxes else "")


def _method(row: RowLabels) -> str:
    """Names the method, and any difference from the paper's test."""
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
"""Text of a label cell, by the title of its column."""
_TEXTS = {*LABELS, "verdict", "run", "runs"}
"""Columns that are aligned to the left."""
TextOf = Callable[[Any], str]
"""Returns the cell of a row, or of a mean over seeds."""


def _sheet(
    rows: Sequence[Any], strong: str, figures: Mapping[str, Callable[[Any, Any], str]], rest: Mapping[str, TextOf]
) -> Sheet:
    """Builds labels, then the cells of each figure, then the rest; `strong` is emphasised in the first figure."""
    part = part_of(rows[0].table)
    missing = rows[0].figure_model()

    def cell_of(name: FigureName, text: Callable[[Any, Any], str]) -> TextOf:
        return lambda row: text(row, row.figures.get(name, missing))

    columns: dict[str, TextOf] = {title: LABELS[title] for title in part.labels}
    if not any(row.guesses for row in rows):
        columns.pop("classes from", None)
    if "seeds" in rest:
        columns["seeds"] = rest["seeds"]
    columns |= {PREFIXES[name] + key: cell_of(name, text) for name in part.figures for key, text in figures.items()}
    return sheet_of(rows, {**columns, **rest}, {*columns, *rest} - _TEXTS, PREFIXES[part.figures[0]] + strong)


def _error_text(figure: float | None, spread: float | None = None, *, comparable: bool = True) -> str:
    """Formats a figure with its spread; in parentheses if it is not comparable with the measured one."""
    if figure is None:
        return DASH
    text = f"{figure:.1f}" + ("" if spread is None else f" +- {spread:.1f}")
    return text if comparable else f"({text})"


def row_sheet(rows: Sequence[Row], group: Group | None) -> Sheet:
    """Builds the rows of a table; `group` is None for Tables 11 and 12."""

    def printed(row: Row, figure: Measurement) -> str:
        comparable = group.papers if group else row.verdict != "not comparable"
        return _error_text(figure.printed, row.printed_spread, comparable=comparable)

    figures: dict[str, Callable[[Row, Measurement], str]] = {
        "printed": printed,
        "measured": lambda row, figure: _error_text(figure.measured, row.spread),
        "difference": lambda _, figure: signed_text(figure.difference),
        "95 % interval": lambda _, figure: interval_text(figure.interval),
    }
    # differences exist only if the paper's figures apply
    if not (group.papers if group else any(row.main.difference is not None for row in rows)):
        del figures["difference"]
    rest: dict[str, Callable[[Row], str]] = {
        "classes": lambda row: count_text(row.classes),
        "learnt from": lambda row: count_text(row.train),
        "n": lambda row: count_text(row.n),
        "verdict": lambda row: row.verdict,
        "departures": lambda row: count_text(row.departures),
        "run": lambda row: row.run or DASH,
    }
    if not part_of(rows[0].table).learning:
        del rest["classes"], rest["learnt from"]
    return _sheet(rows, "measured", figures, rest)


def spread_sheet(rows: Sequence[Spread], group: Group) -> Sheet:
    """Builds the means over seeds of a table, beside the printed figures if a row has two figures."""
    figures: dict[str, Callable[[Spread, SeedMean], str]] = {
        "printed": lambda _, figure: _error_text(figure.printed, comparable=group.papers),
        "mean": lambda _, figure: DASH if figure.mean is None else f"{figure.mean:.2f}",
        "sd": lambda _, figure: DASH if figure.spread is None else f"{figure.spread:.2f}",
    }
    if len(part_of(rows[0].table).figures) == 1:
        del figures["printed"]
    rest = {"seeds": lambda row: str(row.seeds), "runs": lambda row: ", ".join(row.runs)}
    return _sheet(rows, "mean", figures, rest)


def count_sheet(rows: Sequence[Row]) -> Sheet:
    """Builds Table 1 or 2."""
    unit = " million" if rows[0].table == 2 else ""
    columns: dict[str, Callable[[Row], str]] = {
        "net": lambda row: row.net,
        "printed": lambda row: f"{row.printed_count:,}{unit}",
        "ours": lambda row: f"{row.measured_count:,}",
        "verdict": lambda row: row.verdict,
    }
    return sheet_of(rows, columns, {"printed", "ours"})
