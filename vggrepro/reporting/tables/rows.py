"""What the rows of all tables have in common: the verdict on a figure, rows of the paper alone, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import PrintedRow, System, scale_text
from vggrepro.reporting.stored.runs import RunAtQ, StoredRun, departures_of
from vggrepro.reporting.tables import labels
from vggrepro.reporting.tables.labels import Q_text, fused
from vggrepro.reporting.tables.report import FigureName, Measurement, Row, SeedMean, Spread, Verdict

Printed = Mapping[FigureName, float | None]
"""What the paper prints, per cent; None or nothing where it prints none."""
PREFIXES: Mapping[FigureName, str] = {"top1": "top-1 ", "top5": "top-5 ", "only": ""}
"""What tells the figures of a row apart, for a reader."""


class Judged(TypedDict, total=False):
    """What a :class:`Row` says of its figures."""

    figures: dict[FigureName, Measurement]
    verdict: Verdict
    note: str
    n: int


class OfProtocol(Judged, total=False):
    """What else a :class:`Row` of nets says."""

    method: str
    flip: bool | None
    precision: str | None
    regression: str
    fine_tune: str
    guesses: str | None


_LABELS = ("table", "net", "S", "Q", "method", "regression", "fine_tune")


def unmeasured(printed: Printed, note: str, verdict: Verdict = "not measured") -> Judged:
    """What there is to say in a :class:`Row` of what the paper alone has figures."""
    figures = {name: Measurement(printed=figure) for name, figure in printed.items() if figure is not None}
    return {"figures": figures, "verdict": verdict, "note": note}


def obstacle(printed: PrintedRow | None, papers: bool, other: str) -> str:
    """Why a printed row is not about what was measured; `papers`: whether the paper's images and geometry were."""
    return labels.NO_SUCH_ROW if printed is None else other if papers else labels.OTHER_SETTING


def judge(measured: Mapping[FigureName, ErrorRate], printed: Printed, obstacle: str) -> Judged:
    """What there is to say in a :class:`Row` of measured errors beside the printed ones, unless of an obstacle."""
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
    n = next(iter(measured.values())).n
    return {"figures": figures, "verdict": verdict, "note": obstacle or ", ".join(off), "n": n}


def row_of_nets(
    table: int, tested: Sequence[RunAtQ], printed: PrintedRow | None, *, alike_once: bool, **more: Unpack[OfProtocol]
) -> Row:
    """A row of runs, or where there are none of the paper's nets; `alike_once` is of S and Q, `more` all the rest."""
    members = printed.members if printed else ()
    setups = [(run.net, run.config.data.S_text, Q_text(Q)) for run, Q in tested] or [
        (member.net, scale_text(member.S), Q_text(member.Q)) for member in members
    ]
    nets, scales, sides = zip(*setups, strict=True)
    return Row(
        table=table,
        net=fused(nets),
        S=fused(scales, alike_once=alike_once),
        Q=fused(sides, alike_once=alike_once),
        run=fused(run.name for run, _ in tested) or None,
        departures=departures_of(run for run, _ in tested) if tested else None,
        **more,
    )


def row_of_test_set(
    beside: Row, name: FigureName, printed: float | None, note: str = labels.NO_TEST_LABELS
) -> list[Row]:
    """The row of the test set, if the paper prints one beside a row of the validation set."""
    if printed is None:
        return []
    row_labels: dict[str, Any] = {label: getattr(beside, label) for label in _LABELS}
    return [Row(**row_labels, split="test", **unmeasured({name: printed}, note, "cannot be measured"))]


def system_row(table: int, system: System, printed: Printed) -> Row:
    """A row of Table 7 or 10 that is of another paper."""
    return Row(table=table, net=system.method, **unmeasured(printed, labels.OTHER_PAPER, "cannot be measured"))


def spreads(rows: Iterable[Row], runs: Iterable[StoredRun]) -> list[Spread]:
    """Mean and spread of the rows of some runs that differ in nothing but the seed.

    A row of several nets counts where all are of one seed, so that no net counts twice.
    """
    known = {run.name: run for run in runs}
    alike: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in rows:
        nets = [known.get(name) for name in (row.run or "").split(labels.FUSED)]
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
    row_labels: dict[str, Any] = {label: getattr(rows[0], label) for label in ("group", *_LABELS)}
    return Spread(**row_labels, figures=figures, seeds=len(rows), runs=[row.run for row in rows if row.run])
