"""Tables 3-7 of the paper (Section 4), measured beside printed, from stored posteriors. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from vggrepro.paper import PrintedErrors, facts, scale_text
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import Recipe, RunAtQ, StoredRun, chosen_by, recipe_of
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

_TABLE_7 = {
    "VGG, 2 nets, multi-crop and dense": (6, 2, "both"),
    "VGG, 1 net, multi-crop and dense": (5, 1, "both"),
    "VGG, ILSVRC submission, 7 nets, dense": (6, 7, "dense"),
}
"""VGG's rows of Table 7: the table they come from, the number of nets and the method."""


def error_rows(runs: Sequence[StoredRun], cache: PredictionCache, *, papers: bool) -> list[Row]:
    """Returns Tables 3-7: every row of the paper at least once, with the measured errors beside it.

    `papers`: whether the runs have the paper's images and geometry. Raises UserError.
    """
    recipes: dict[Recipe, list[StoredRun]] = {}
    for run in runs:
        recipes.setdefault(recipe_of(run), []).append(run)
    rows: list[Row] = []
    for table in (3, 4, 5, 6):
        printed_rows = facts().table(table)
        for printed in printed_rows:
            missing = [
                f"{member.net} at S = {scale_text(member.S)}"
                for member in printed.members
                if (member.net, member.S) not in recipes
            ]
            nets = [[]] if missing else _nets_of(printed, recipes, papers)
            measured = [_row(table, printed.method, tested, printed, cache, papers, missing) for tested in nets]
            rows += [*measured, *row_of_test_set(measured[0], "top5", printed.top5_test)]
        known = {(row.nets[0], row.S) for row in printed_rows}
        methods = ("dense", "multicrop", "both") if table == 5 else ("dense",)
        others = [run for recipe, runs in recipes.items() if recipe not in known for run in runs]
        for run in others if table < 6 else ():
            measured = [_row(table, method, [(run, run.Q_of(table))], None, cache, papers) for method in methods]
            # the paper has no multi-crop figures of this net; if it was tested so, its dense row stands beside
            if table != 5 or any(row.top1.measured is not None for row in measured[1:]):
                rows += measured
    rows.sort(key=_paper_order)
    return rows + _table7(rows)


def _paper_order(row: Row) -> tuple[int, int, str]:
    """Sort key: the table, then the column of Table 1; rows of the same net keep their order."""
    columns = list(facts().architectures)
    column = columns.index(row.net) if row.net in columns and row.table < 6 else len(columns)
    return row.table, column, row.net if row.table < 6 else ""


def _nets_of(printed: PrintedErrors, recipes: Mapping[Recipe, Sequence[StoredRun]], papers: bool) -> list[list[RunAtQ]]:
    """Returns the runs with their Q for each row to be measured beside a printed one."""
    candidates = [recipes[member.net, member.S] for member in printed.members]
    if len(candidates) == 1:
        chosen = [[run] for run in candidates[0]]
    else:  # the most faithful variant of each net, fused seed by seed
        chosen = _by_seed(chosen_by(recipe_of, chain.from_iterable(candidates)), printed)
    return [
        [
            (run, member.Q if papers else run.Q_of(printed.table))
            for run, member in zip(runs, printed.members, strict=True)
        ]
        for runs in chosen
    ]


def _by_seed(recipes: Mapping[Recipe, Sequence[StoredRun]], printed: PrintedErrors) -> list[list[StoredRun]]:
    """Returns the runs of a fused row for each seed that all its nets share; without one, the first run of each."""
    members = [{run.config.run.seed: run for run in recipes[member.net, member.S]} for member in printed.members]
    shared = sorted(set.intersection(*(set(runs) for runs in members)))
    if not shared:
        return [[next(iter(runs.values())) for runs in members]]
    return [[runs[seed] for runs in members] for seed in shared]


def _row(
    table: int,
    method: str,
    tested: Sequence[RunAtQ],
    printed: PrintedErrors | None,
    cache: PredictionCache,
    papers: bool,
    missing: Sequence[str] = (),
) -> Row:
    runs = [run for run, _ in tested]
    figures: Printed = {"top1": printed.top1, "top5": printed.top5} if printed else {}
    ranks = cache.ranks(tested, method) if tested else None
    if ranks:
        flipped = all(run.config.evaluation.flip for run in runs)
        other = "" if flipped else "the mirrored images are left out (evaluation.flip)"
        judged = judge({"top1": ranks.top1, "top5": ranks.top5}, figures, obstacle(printed, papers, other))
    else:
        lacking = [run.missing_tests(Q, method) for run, Q in tested if cache.ranks([(run, Q)], method) is None]
        judged = unmeasured(figures, "; ".join(lacking) or f"no run of {', '.join(missing)}")
    return row_of_nets(
        table,
        tested,
        printed,
        alike_once=True,
        method=method,
        flip=all(run.config.evaluation.flip for run in runs) and method != "centre" if runs else None,
        precision=fused((run.config.evaluation.precision for run in runs), alike_once=True) or None,
        **judged,
    )


def _table7(rows: Sequence[Row]) -> list[Row]:
    """Returns Table 7: VGG's rows come from Tables 5 and 6, the others from other papers."""
    table_rows: list[Row] = []
    for system in facts().state_of_the_art:
        other = system_row(7, system, {"top1": system.top1, "top5": system.top5})
        if system.method in _TABLE_7:
            table, nets, method = _TABLE_7[system.method]
            table_rows += [
                row.model_copy(update={"table": 7, "net": f"{system.method}: {row.net}"})
                for row in rows
                if (row.table, row.method, row.split) == (table, method, "val")
                and row.net.count(labels.FUSED) + 1 == nets
                and row.top1.printed is not None
                and (nets > 1 or row.net == "E")
            ]
        elif system.top5 is not None:
            table_rows.append(other)
        table_rows += row_of_test_set(other, "top5", system.top5_test)
    return table_rows
