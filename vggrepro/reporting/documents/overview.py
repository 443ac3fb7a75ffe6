"""The picture at the top of the HTML report: effects of the claims, errors by depth and scale."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import get_args

from vggrepro.reporting.claims.claim import Claim, Outcome
from vggrepro.reporting.documents.blocks import DASH, Mark, Panel, Picture
from vggrepro.reporting.documents.layout import APPENDIX_A, LABELS
from vggrepro.reporting.tables.report import Group, Report, Row

_SERIES = {3: "one Q", 4: "several Q", 8: "Table 8", 9: "Table 9"}


def group_picture(report: Report, group: Group) -> list[Picture]:
    """Returns the picture of a group of runs; empty if nothing was measured."""

    def of_group(claims: Sequence[Claim]) -> list[Claim]:
        return [claim for claim in claims if claim.group == group.id]

    return picture(
        group.title,
        claims_panel("The paper's claims", of_group(report.claims)),
        errors_panel(report, group, (3, 4), "Top-1 error by depth and training scale"),
        errors_panel(report, group, (8, 9), "Localisation error"),
        claims_panel("Dense test and warm start", of_group([*report.start_from_parent, *report.dense_over_centre])),
    )


def picture(title: str, *panels: Panel | None) -> list[Picture]:
    """Returns a picture of the panels that are not None; empty if all are."""
    drawn = [panel for panel in panels if panel]
    return [Picture(title, drawn)] if drawn else []


def claims_panel(title: str, claims: Sequence[Claim]) -> Panel | None:
    """Effects of the measured claims, coloured by verdict; None if no claim was measured."""
    rows: dict[str, dict[str, list[Mark]]] = {}
    for claim in claims:
        if claim.effect is not None and claim.interval and all(map(math.isfinite, (claim.effect, *claim.interval))):
            labels = rows.setdefault(f"{claim.section}  {claim.heading}", {})
            labels.setdefault(claim.subject, []).append(Mark(claim.verdict, claim.effect, claim.interval))
    counts = Counter(claim.verdict for claim in claims)
    note = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Outcome) if counts[verdict])
    return Panel(title, note, "points gained, with the 95 % interval", rows, zero=True) if rows else None


def errors_panel(report: Report, group: Group, tables: Sequence[int], title: str) -> Panel | None:
    """Errors of some tables by S and net, over seeds their mean and range; None if nothing was measured.

    The paper's errors are drawn only if they apply to the group's images and geometry.
    """
    rows = [row for row in report.rows if (row.group, row.split) == (group.id, "val") and row.table in tables]
    first_seed = {run: mean.runs[0] for mean in report.seeds if mean.group == group.id for run in mean.runs}
    recipes: dict[tuple[str, str], dict[str | None, dict[str, list[Row]]]] = {}
    for row in rows:
        if row.main.measured is not None or (group.papers and row.main.printed is not None):
            series = recipes.setdefault(_place(row), {}).setdefault(first_seed.get(row.run or "", row.run), {})
            series.setdefault(_SERIES[row.table], []).append(row)
    drawn: dict[str, dict[str, list[Mark]]] = {}
    for (heading, label), by_recipe in recipes.items():
        for recipe, by_series in by_recipe.items():
            name = recipe.partition(":")[2] if recipe and len(by_recipe) > 1 else label
            marks = [mark for series, same in by_series.items() for mark in _error_marks(series, same, group.papers)]
            drawn.setdefault(heading, {})[name] = marks
    measured = any(row.main.measured is not None for row in rows)
    notes = ["several seeds: mean and range"] if first_seed else []
    notes += [] if group.papers else ["the paper's errors belong to other images and are not drawn"]
    return Panel(title, "; ".join(notes), "error in per cent, with the 95 % interval", drawn) if measured else None


def _place(row: Row) -> tuple[str, str]:
    """Heading and label of a row."""
    if row.table not in APPENDIX_A.titles:
        return f"S = {row.S}", row.net
    cells = (LABELS[title](row) for title in APPENDIX_A.labels)
    return APPENDIX_A.titles[row.table], ", ".join(cell for cell in cells if cell != DASH)


def _error_marks(series: str, rows: Sequence[Row], papers: bool) -> Iterator[Mark]:
    """The printed error if it applies, then the measured ones of all seeds as one mark."""
    printed = rows[0].main.printed
    if papers and printed is not None:
        yield Mark("the paper", printed, None)
    errors = [error for row in rows if (error := row.main.measured) is not None and math.isfinite(error)]
    if errors:
        interval = rows[0].main.interval if len(rows) == 1 else (min(errors), max(errors))
        yield Mark(series, fmean(errors), interval)
