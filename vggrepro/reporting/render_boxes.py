"""Tables 8-10 for readers."""

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
    error_text,
    interval_text,
    printed_text,
    sheet_of,
    signed_text,
)
from vggrepro.reporting.localisation import BOX_TITLES
from vggrepro.reporting.report import BoxRow, BoxSpread, Group, Report


def box_blocks(report: Report, group: Group) -> Iterator[Block]:
    """A group's tables of Appendix A, as far as there is something to say."""
    rows = [row for row in report.boxes if row.group == group.id]
    any_shown = False
    for table, title in BOX_TITLES.items():
        # where the paper's figures do not apply, its rows without a run say nothing
        shown = [row for row in rows if row.table == table and (group.papers or row.measured is not None or row.run)]
        if not shown or (table == 10 and not group.papers):
            continue
        any_shown = True
        yield Heading(3, title)
        yield _sheet(shown, group)
        if spreads := [one for one in report.box_seeds if (one.group, one.table) == (group.id, table)]:
            yield Text(words.OVER_SEEDS)
            yield _spread_sheet(spreads)
        if notes := list(dict.fromkeys(_notes(shown, group))):
            yield Bullets(notes)
    if any_shown:
        yield Text(
            "A box is right when its intersection over union with an object's is above 0.5. SCR predicts one box for "
            "all classes, PCR one for each; trained are all layers, or the fully-connected ones alone (fc). Table 8: "
            "the true class is given, and the net sees the centre crop. Tables 9 and 10: five classes are guessed, and "
            "one of them must be the true one with a right box; the net predicts a box at every place of the whole "
            "image, and near ones are merged. Images without a box are left out."
        )


def _notes(rows: list[BoxRow], group: Group) -> Iterator[str]:
    """Why a row differs, has nothing measured, or cannot have."""
    for row in rows:
        if row.verdict == "cannot be measured":
            yield f"{'test set' if row.fine_tune else 'other systems'}: cannot be measured: {row.note}"
        elif row.verdict == "not measured":
            yield row.note
        elif group.papers and row.run and row.note:
            yield f"{row.run}: {row.note}"


def _spread_sheet(spreads: list[BoxSpread]) -> Sheet:
    header = ("net", "S", "Q", "regression", "trained", "seeds", "mean", "sd", "runs")
    rows = [
        (
            *(one.net, one.S, one.Q, one.regression, one.fine_tune, str(one.seeds)),
            *(f"{points:.2f}" for points in (one.mean, one.spread)),
            ", ".join(one.runs),
        )
        for one in spreads
    ]
    return Sheet(header, rows, strong=6, numbers=frozenset({5, 6, 7}))


def _sheet(rows: list[BoxRow], group: Group) -> Sheet:
    columns: Columns = {
        "net": ([row.net + (", test set" if row.split == "test" else "") for row in rows], False),
        "S": ([row.S or DASH for row in rows], False),
        "Q": ([row.Q or DASH for row in rows], False),
        "regression": ([row.regression or DASH for row in rows], False),
        "trained": ([row.fine_tune or DASH for row in rows], False),
        "classes from": ([row.guesses or DASH for row in rows], False),
        "printed": ([printed_text(error_text(row.printed), yardstick=group.papers) for row in rows], True),
        "measured": ([error_text(row.measured) for row in rows], True),
        "difference": ([signed_text(row.difference) for row in rows], True),
        "95 % interval": ([interval_text(row.interval) for row in rows], True),
        "n": ([count_text(row.n) for row in rows], True),
        "verdict": ([row.verdict for row in rows], False),
        "departures": ([count_text(row.departures) for row in rows], True),
        "run": ([row.run or DASH for row in rows], False),
    }
    if not group.papers:  # no difference is taken there
        del columns["difference"]
    if all(row.guesses is None for row in rows):
        del columns["classes from"]
    return sheet_of(columns, "measured")
