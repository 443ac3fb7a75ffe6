"""Shared parts of all tables: verdicts on figures, rows without measurements, means over seeds."""

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
"""Printed figures, per cent; None or no key if the paper prints none."""
PREFIXES: Mapping[FigureName, str] = {"top1": "top-1 ", "top5": "top-5 ", "only": ""}
"""Prefixes that distinguish the figures of a row in notes."""


class Judged(TypedDict, total=False):
    """Fields of a :class:`Row` about its figures."""

    figures: dict[FigureName, Measurement]
    verdict: Verdict
    note: str
    n: int


class RowFields(Judged, total=False):
    """Further fields of a :class:`Row` of nets."""

    method: str
    flip: bool | None
    precision: str | None
    regression: str
    fine_tune: str
    guesses: str | None


_LABELS = ("table", "net", "S", "Q", "method", "regression", "fine_tune")


def unmeasured(printed: Printed, note: str, verdict: Verdict = "not measured") -> Judged:
    """Returns the fields of a :class:`Row` with printed figures only."""
    figures = {name: Measurement(printed=figure) for name, figure in printed.items() if figure is not None}
    return {"figures": figures, "verdict": verdict, "note": note}


def obstacle(printed: PrintedRow | None, papers: bool, other: str) -> str:
    """Returns why a measurement is not comparable; `papers`: whether it has the paper's images and geometry."""
    return labels.NO_SUCH_ROW if printed is None else other if papers else labels.OTHER_SETTING


def judge(measured: Mapping[FigureName, ErrorRate], printed: Printed, obstacle: str) -> Judged:
    """Returns the fields of a :class:`Row` with measured errors, compared with the printed ones unless obstructed."""
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
    table: int, tested: Sequence[RunAtQ], printed: PrintedRow | None, *, alike_once: bool, **more: Unpack[RowFields]
) -> Row:
    """Returns a row of runs, or of the paper's nets if there are none; `alike_once` prints equal S and Q once."""
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
    """Returns the row of the test set, if the paper prints one beside the validation set's."""
    if printed is None:
        return []
    row_labels: dict[str, Any] = {label: getattr(beside, label) for label in _LABELS}
    return [Row(**row_labels, split="test", **unmeasured({name: printed}, note, "cannot be measured"))]


def system_row(table: int, system: System, printed: Printed) -> Row:
    """Returns a row of another paper in Table 7 or 10."""
    return Row(table=table, net=system.method, **unmeasured(printed, labels.OTHER_PAPER, "cannot be measured"))


def spreads(rows: Iterable[Row], runs: Iterable[StoredRun]) -> list[Spread]:
    """Returns mean and spread of the rows of runs that differ only in the seed.

    A row of several nets counts only if they share a seed, so that no net counts twice.
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
    return [_spread(list(by_seed.values())) for by_seed in alike.values() if len(by_seed) > 1]


def _spread(rows: Sequence[Row]) -> Spread:
    figures: dict[FigureName, SeedMean] = {}
    for name, first in rows[0].figures.items():
        errors = [error for row in rows if (error := row.figures[name].measured) is not None]
        mean, spread = statistics.mean(errors), statistics.stdev(errors)
        figures[name] = SeedMean(printed=first.printed, mean=mean, spread=spread)
    row_labels: dict[str, Any] = {label: getattr(rows[0], label) for label in ("group", *_LABELS)}
    return Spread(**row_labels, figures=figures, seeds=len(rows), runs=[row.run for row in rows if row.run])
