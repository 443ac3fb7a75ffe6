"""Tables 8-10 of the paper (Appendix A), measured beside printed, from stored boxes. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from vggrepro.evaluation.box_store import CENTRE, DENSE
from vggrepro.evaluation.boxes import error_of
from vggrepro.paper import PrintedBoxes, TestedNet, facts
from vggrepro.reporting.stored.found_boxes import BoxCache, StoredBoxes, configured_Q, kind_of
from vggrepro.reporting.stored.runs import RunAtQ, StoredRun
from vggrepro.reporting.tables import labels
from vggrepro.reporting.tables.labels import fused
from vggrepro.reporting.tables.report import Row
from vggrepro.reporting.tables.rows import (
    Printed,
    judge,
    obstacle,
    row_of_nets,
    row_of_test_set,
    system_row,
    unmeasured,
)


def box_rows(runs: Sequence[StoredRun], cache: BoxCache, *, papers: bool) -> list[Row]:
    """Returns Tables 8-10: every row of the paper at least once, with the measured errors beside it.

    `papers`: whether the runs have the paper's images and geometry. Raises UserError.
    """
    rows = [
        *_single_rows(runs, cache, 8, papers),
        *_single_rows(runs, cache, 9, papers),
        *_pooled_rows(runs, cache, papers),
        *_baseline_rows(runs, cache),
    ]
    rows.sort(key=lambda row: row.table)  # stable: keeps the paper's order inside a table
    return rows + _table10(rows)


def _single_rows(runs: Sequence[StoredRun], cache: BoxCache, table: int, papers: bool) -> Iterator[Row]:
    """Yields the rows of single nets: the paper's, then those of runs without a row in the paper."""
    method = CENTRE if table == 8 else DENSE
    used: set[tuple[str, tuple[int, ...]]] = set()
    for printed in facts().localisation[table]:
        if len(printed.members) > 1:
            continue
        (member,) = printed.members
        kind = (member.net, member.S, printed.regression, printed.fine_tune)
        matches = [run for run in runs if (run.net, *kind_of(run)) == kind]
        tested = [(run, Q) for run in matches if (Q := _Q_of(run, member, method, papers))]
        rows = [_row(table, nets, printed, cache, papers) for nets in [[net] for net in tested] or [[]]]
        used |= {(run.name, Q) for run, Q in tested}
        yield from (*rows, *row_of_test_set(rows[0], "only", printed.error_test))
    for run in runs:
        for Q in dict.fromkeys(configured_Q(run, method, several=several) for several in (False, True)):
            if (run.name, Q) not in used:
                yield _row(table, [(run, Q)], None, cache, papers)


def _Q_of(run: StoredRun, member: TestedNet, method: str, papers: bool) -> tuple[int, ...]:
    """Returns the row's Q, or in another geometry the run's; () if the run has a single Q and the row several."""
    if papers:
        return member.Q
    Q = configured_Q(run, method, several=len(member.Q) > 1)
    return Q if len(Q) > 1 or len(member.Q) == 1 else ()


def _pooled_rows(runs: Sequence[StoredRun], cache: BoxCache, papers: bool) -> Iterator[Row]:
    """Yields the rows of nets whose boxes are pooled."""
    (printed,) = (row for row in facts().localisation[9] if len(row.members) > 1)
    nets: dict[str | None, StoredRun] = {}
    for run in runs:  # a copy of a run has the same net
        nets.setdefault(run.weights, run)
    rows: list[Row] = []
    for stored in cache.pooled():
        sides: dict[str, list[int]] = {}
        for part in stored.protocol.parts:
            sides.setdefault(part.weights, []).append(part.Q)
        # in the order of the runs, whatever the order of pooling
        tested = [(run, tuple(sorted(sides[run.weights]))) for run in nets.values() if run.weights in sides]
        beside = printed if _is_papers_pool(tested, printed, papers) else None
        rows.append(_row(9, tested, beside, cache, papers))
    order = {run.name: number for number, run in enumerate(runs)}
    rows.sort(key=lambda row: ([order[name] for name in (row.run or "").split(labels.FUSED)], row.Q))
    of_paper = [row for row in rows if row.main.printed is not None] or [_row(9, [], printed, cache, papers)]
    yield from (*of_paper, *row_of_test_set(of_paper[0], "only", printed.error_test))
    yield from (row for row in rows if row.main.printed is None)


def _is_papers_pool(tested: Sequence[RunAtQ], printed: PrintedBoxes, papers: bool) -> bool:
    """Whether nets and Q match a pooled row; in another geometry, one or several Q are enough to match."""

    def scales(Q: tuple[int, ...]) -> object:
        return Q if papers else len(Q) > 1

    ours = Counter((run.net, *kind_of(run), scales(Q)) for run, Q in tested)
    return ours == Counter(
        (member.net, member.S, printed.regression, printed.fine_tune, scales(member.Q)) for member in printed.members
    )


def _row(table: int, tested: Sequence[RunAtQ], printed: PrintedBoxes | None, cache: BoxCache, papers: bool) -> Row:
    runs = [run for run, _ in tested]
    method = CENTRE if table == 8 else DENSE
    figures: Printed = {"only": printed.error} if printed else {}
    kinds = [kind_of(run)[1:] for run in runs] or [(row.regression, row.fine_tune) for row in (printed,) if row]
    if stored := cache.of(tested, method):
        error = error_of(stored.right)
        n, images = error.n, runs[0].usable_val
        other = f"{images - n:,} of {images:,} validation images have no box" if n < images else ""
        judged = judge({"only": error}, figures, obstacle(printed, papers, other))
    else:
        pooled = printed is not None and len(printed.members) > 1
        what = "pooled boxes; see `vggrepro localise`" if pooled else "run of this recipe"
        lacking = "; ".join(run.missing_boxes(Q, method) for run, Q in tested)
        judged = unmeasured(figures, lacking or f"no {what}")
    return row_of_nets(
        table,
        tested,
        printed,
        alike_once=False,
        regression=fused((regression for regression, _ in kinds), alike_once=True),
        fine_tune=fused((fine_tune for _, fine_tune in kinds), alike_once=True),
        guesses=_guesses(stored) if stored else None,
        **judged,
    )


def _guesses(stored: StoredBoxes) -> str | None:
    """Returns the source of the class guesses and its error; None for the centre crop, which needs none."""
    return None if stored.is_centre else f"{stored.guesses} (top-5 error {stored.top5:.1f} %)"


def _baseline_rows(runs: Sequence[StoredRun], cache: BoxCache) -> Iterator[Row]:
    """Yields the errors of boxes that do not depend on the image, with the images and guesses of the rows above."""
    for table, method in ((8, CENTRE), (9, DENSE)):
        tested = [(run, configured_Q(run, method, several=several)) for run in runs for several in (False, True)]
        stored = {boxes.target_key: boxes for net in tested if (boxes := cache.of([net], method))}
        for boxes in stored.values():
            for name, error in boxes.baselines().items():
                yield Row(table=table, net=name, guesses=_guesses(boxes), **judge({"only": error}, {}, "a yardstick"))


def _table10(rows: Sequence[Row]) -> list[Row]:
    """Returns Table 10: VGG's rows come from Table 9, the others from other papers."""
    table_rows: list[Row] = []
    for system in facts().localisation_state_of_the_art:
        if system.method == "VGG":
            table_rows += [
                row.model_copy(update={"table": 10, "net": f"VGG: {row.net}"})
                for row in rows
                if row.table == 9 and row.main.printed in (system.error, system.error_test) and labels.FUSED in row.net
            ]
            continue
        other = system_row(10, system, {"only": system.error})
        table_rows += [other] if system.error is not None else []
        table_rows += row_of_test_set(other, "only", system.error_test, labels.OTHER_PAPER)
    return table_rows
