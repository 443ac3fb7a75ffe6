"""Tables 11 and 12 for readers."""

from collections.abc import Iterator

from vggrepro.reporting import words
from vggrepro.reporting.blocks import (
    DASH,
    Block,
    Bullets,
    Columns,
    Heading,
    Sheet,
    Text,
    count_text,
    interval_text,
    printed_text,
    sheet_of,
    signed_text,
)
from vggrepro.reporting.claim_blocks import claim_sheet
from vggrepro.reporting.report import Report, TransferRow
from vggrepro.reporting.run_notes import ledger_blocks, run_sheet
from vggrepro.reporting.transfer import TRANSFER_TITLES


def transfer_blocks(report: Report) -> Iterator[Block]:
    """The tables of Appendix B, as far as there is something to say."""
    papers = any(group.papers for group in report.groups)
    any_shown = False
    for table, title in TRANSFER_TITLES.items():
        # beside runs to which the paper's figures do not apply, its rows without a run say nothing
        shown = [row for row in report.transfer if row.table == table and (papers or row.measured is not None)]
        if not shown:
            continue
        any_shown = True
        yield Heading(2, title)
        yield _sheet(shown)
        if notes := list(dict.fromkeys(_notes(shown))):
            yield Bullets(notes)
    if any_shown:
        yield Text(
            "Features: the activations of the last hidden layer, densely applied to the whole image, averaged over "
            "places and over the mirror image, of length 1 at each Q, then averaged or stacked; of several nets they "
            "are stacked. A linear SVM a class; C is chosen on held-out training samples. In per cent: mean average "
            "precision as PASCAL VOC defines it, or mean class recall with its standard deviation over random splits. "
            "Interval: 95 %, over the choice of test samples (Bayesian bootstrap). A figure agrees where Welch's t "
            "over the splits, or else the interval, allows it."
        )
    if claims := [claim for claim in report.transfer_claims if papers or claim.n]:
        yield Heading(3, "What Appendix B claims")
        yield claim_sheet(claims)
        yield Text(
            "Effect: rise of the figure, in points; interval and p from the same random weights of the test samples on "
            "both sides; several seeds: over these (Student's t)."
        )
    if report.transfer_runs:
        yield Heading(3, "Runs of these tables alone")
        yield run_sheet(report.transfer_runs)
        yield from ledger_blocks(report.transfer_runs)


def _notes(rows: list[TransferRow]) -> Iterator[str]:
    """Why a row differs, has nothing measured, or cannot have."""
    for row in rows:
        if row.verdict == "cannot be measured":
            yield f"other systems: cannot be measured: {row.note}"
        elif row.verdict == "not measured":
            yield row.note
        elif row.note and row.printed is not None:
            yield f"{row.run} on {row.set}: {row.note}"


def figure_text(figure: float | None, spread: float | None) -> str:
    """A figure for a cell, per cent, with its spread."""
    if figure is None:
        return DASH
    return f"{figure:.1f}" if spread is None else f"{figure:.1f} +- {spread:.1f}"


def _sheet(rows: list[TransferRow]) -> Sheet:
    def printed(row: TransferRow) -> str:
        return printed_text(figure_text(row.printed, row.printed_spread), yardstick=row.verdict != "not comparable")

    columns: Columns = {
        "data set": ([row.set for row in rows], False),
        "measure": ([words.MEASURES[row.measure] for row in rows], False),
        "net": ([row.net + (", image and box" if row.boxes else "") for row in rows], False),
        "layer": ([row.layer or DASH for row in rows], False),
        "Q": ([(row.Q or DASH) + (f", {row.combine}" if row.combine else "") for row in rows], False),
        "printed": ([printed(row) for row in rows], True),
        "measured": ([figure_text(row.measured, row.spread) for row in rows], True),
        "difference": ([signed_text(row.difference) for row in rows], True),
        "95 % interval": ([interval_text(row.interval) for row in rows], True),
        "classes": ([count_text(row.classes) for row in rows], True),
        "learnt from": ([count_text(row.train) for row in rows], True),
        "n": ([count_text(row.n) for row in rows], True),
        "verdict": ([row.verdict for row in rows], False),
        "departures": ([count_text(row.departures) for row in rows], True),
        "run": ([row.run or DASH for row in rows], False),
    }
    if all(row.difference is None for row in rows):
        del columns["difference"]
    return sheet_of(columns, "measured")
