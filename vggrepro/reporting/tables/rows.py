"""What the rows of all tables have in common: the verdict on a figure, rows of the paper alone, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import PrintedRow, System, scale_text
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables import words
from vggrepro.reporting.tables.report import FigureName, Measurement, Row, SeedMean, Spread, Verdict
from vggrepro.reporting.tables.words import Q_text

Printed = Mapping[FigureName, float | None]
"""What the paper prints, per cent; None or nothing where it prints none."""
PREFIXES: Mapping[FigureName, str] = {"top1": "top-1 ", "top5": "top-5 ", "only": ""}
"""What tells the figures of a row apart, for a reader."""


@dataclass(frozen=True)
class Judgement:
    """What there is to say of a row's figures."""

    figures: dict[FigureName, Measurement]
    verdict: Verdict
    note: str = ""
    n: int | None = None


def unmeasured(printed: Printed, note: str, verdict: Verdict = "not measured") -> Judgement:
    """Of what the paper alone has figures."""
    return Judgement(
        {name: Measurement(printed=error) for name, error in printed.items() if error is not None}, verdict, note
    )


def judge(measured: Mapping[FigureName, ErrorRate], printed: Printed, obstacle: str) -> Judgement:
    """Measured errors beside the printed ones; an obstacle says why these are not about what was measured."""
    figures: dict[FigureName, Measurement] = {}
    off = []
    for name, error in measured.items():
        beside, difference = printed.get(name), None
        if beside is not None and not obstacle:
            against = AgainstPrinted(error, beside)
            difference = against.difference
            if against.verdict in ("lower", "higher"):
                off.append(f"{PREFIXES[name]}{against.verdict}")
        figures[name] = Measurement(
            printed=beside, measured=error.percent, interval=error.interval, difference=difference
        )
    verdict: Verdict = "not comparable" if obstacle else "differs" if off else "agrees"
    return Judgement(figures, verdict, obstacle or ", ".join(off), next(iter(measured.values())).n)


def nets_of(
    tested: Sequence[tuple[StoredRun, tuple[int, ...]]], printed: PrintedRow | None
) -> list[tuple[str, str, str]]:
    """(net, S, Q) of each net of a row: of its runs, or where there are none of the paper's."""
    members = printed.members if printed else ()
    return [(run.net, run.config.data.S_text, Q_text(Q)) for run, Q in tested] or [
        (member.net, scale_text(member.S), Q_text(member.Q)) for member in members
    ]


def row_of_test_set(
    beside: Row, name: FigureName, printed: float | None, note: str = words.NO_TEST_LABELS
) -> list[Row]:
    """The row of the test set, if the paper prints one beside a row of the validation set."""
    if printed is None:
        return []
    return [
        Row(
            table=beside.table,
            net=beside.net,
            S=beside.S,
            Q=beside.Q,
            method=beside.method,
            regression=beside.regression,
            fine_tune=beside.fine_tune,
            split="test",
            figures={name: Measurement(printed=printed)},
            verdict="cannot be measured",
            note=note,
        )
    ]


def system_row(table: int, system: System, printed: Printed) -> Row:
    """A row of Table 7 or 10 that is of another paper."""
    of = unmeasured(printed, words.OTHER_PAPER, "cannot be measured")
    return Row(table=table, net=system.method, figures=of.figures, verdict=of.verdict, note=of.note)


def spreads(rows: Iterable[Row], runs: Iterable[StoredRun]) -> list[Spread]:
    """Mean and spread of the rows of some runs that differ in nothing but the seed.

    A row of several nets counts where all are of one seed, so that no net counts twice.
    """
    known = {run.name: run for run in runs}
    alike: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in rows:
        nets = [known.get(name) for name in (row.run or "").split(words.FUSED)]
        found = [run for run in nets if run]
        seeds = {run.config.run.seed for run in found}
        if row.main.measured is not None and row.table not in (7, 10) and len(found) == len(nets) and len(seeds) == 1:
            variants = [(run.variant, run.config.localisation, run.boxes_fingerprint) for run in found]
            alike.setdefault((row.table, row.Q, row.method, *variants), {}).setdefault(seeds.pop(), row)
    return [_spread(list(same.values())) for same in alike.values() if len(same) > 1]


def _spread(rows: Sequence[Row]) -> Spread:
    figures: dict[FigureName, SeedMean] = {}
    for name, first in rows[0].figures.items():
        errors = [error for row in rows if (error := row.figures[name].measured) is not None]
        mean, spread = statistics.mean(errors), statistics.stdev(errors)
        figures[name] = SeedMean(printed=first.printed, mean=mean, spread=spread)
    return Spread(
        group=rows[0].group,
        table=rows[0].table,
        net=rows[0].net,
        S=rows[0].S,
        Q=rows[0].Q,
        method=rows[0].method,
        regression=rows[0].regression,
        fine_tune=rows[0].fine_tune,
        figures=figures,
        seeds=len(rows),
        runs=[row.run for row in rows if row.run],
    )
