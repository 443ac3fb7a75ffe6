"""The paper's Tables 8-10 (Appendix A), measured beside printed, from stored boxes. No torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vggrepro.evaluation.box_store import CENTRE, DENSE
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import BoxRow as PrintedRow
from vggrepro.paper import TestedNet, facts, scale_text
from vggrepro.reporting import words
from vggrepro.reporting.found_boxes import AskedBoxes, BoxCache, StoredBoxes, kind_of, own_Q
from vggrepro.reporting.report import BoxRow, BoxSpread, Verdict
from vggrepro.reporting.runs import Setting, StoredRun, chosen_by, departures_of

BOX_TITLES = {
    8: "Table 8: localisation given the class, centre crop (Appendix A)",
    9: "Table 9: localisation, dense, five guesses of the class (Appendix A)",
    10: "Table 10: localisation, the state of the art (Appendix A)",
}


def box_rows(group: str, setting: Setting | None, runs: Sequence[StoredRun], cache: BoxCache) -> list[BoxRow]:
    """Tables 8-10: every row of the paper at least once, and what was measured beside them. Raises UserError."""
    rows = [
        *_single_rows(group, setting, runs, cache, 8),
        *_single_rows(group, setting, runs, cache, 9),
        *_pooled_rows(group, setting, runs, cache),
    ]
    rows += _yardsticks(group, runs, cache)
    rows.sort(key=lambda row: row.table)  # stable: the paper's order inside
    return rows + _table10(group, rows)


def _single_rows(
    group: str, setting: Setting | None, runs: Sequence[StoredRun], cache: BoxCache, table: int
) -> Iterator[BoxRow]:
    """The rows of one net by itself: the paper's, and those of runs that it has no row for."""
    method = CENTRE if table == 8 else DENSE
    used: set[tuple[str, tuple[int, ...]]] = set()
    for printed in facts().localisation[table]:
        if len(printed.members) > 1:
            continue
        (member,) = printed.members
        fits = [
            run
            for run in runs
            if (run.net, *kind_of(run)) == (member.net, member.S, printed.regression, printed.fine_tune)
        ]
        asked = [(run, Q) for run in fits if (Q := _Q_of(run, member, setting, method))]
        rows = [_row(group, setting, table, printed, [one], cache) for one in asked]
        rows = rows or [_unmeasured(group, printed)]
        used |= {(run.name, Q) for run, Q in asked}
        yield from (*rows, *_test_row(printed, rows[0]))
    for run in runs:
        own = (own_Q(run, method, several=False), own_Q(run, method, several=True))
        for Q in dict.fromkeys(own):
            if (run.name, Q) not in used:
                yield _row(group, setting, table, None, [(run, Q)], cache)


def _Q_of(run: StoredRun, member: TestedNet, setting: Setting | None, method: str) -> tuple[int, ...]:
    """The Q that a run is tested at for a row of the paper: the row's own, or in another geometry the run's; () if it
    has but one where the row has several."""
    if setting is not None and setting.is_the_papers:
        return member.Q
    Q = own_Q(run, method, several=len(member.Q) > 1)
    return Q if len(Q) > 1 or len(member.Q) == 1 else ()


def _pooled_rows(group: str, setting: Setting | None, runs: Sequence[StoredRun], cache: BoxCache) -> Iterator[BoxRow]:
    """The rows of several nets whose boxes are pooled."""
    (printed,) = (row for row in facts().localisation[9] if len(row.members) > 1)
    nets: dict[str | None, StoredRun] = {}
    for run in runs:  # a copy of a run has the same net
        nets.setdefault(run.weights, run)
    papers: list[BoxRow] = []
    others: list[BoxRow] = []
    for stored in cache.pooled():
        sides: dict[str, list[int]] = {}
        for part in stored.protocol.parts:
            sides.setdefault(part.weights, []).append(part.Q)
        # in the order of the runs, in whichever they were pooled
        asked = [(run, tuple(sorted(sides[run.weights]))) for run in nets.values() if run.weights in sides]
        is_papers = _is_papers_pool(asked, printed, setting)
        row = _row(group, setting, 9, printed if is_papers else None, asked, cache)
        (papers if is_papers else others).append(row)
    order = {run.name: number for number, run in enumerate(runs)}
    for rows in (papers, others):
        rows.sort(key=lambda row: ([order[name] for name in (row.run or "").split(words.FUSED)], row.Q))
    rows = papers or [_unmeasured(group, printed)]
    yield from (*rows, *_test_row(printed, rows[0]), *others)


def _is_papers_pool(asked: Sequence[AskedBoxes], printed: PrintedRow, setting: Setting | None) -> bool:
    """Whether nets and Q are those of a pooled row: each once, at its Q, or in another geometry at one or several."""
    exact = setting is not None and setting.is_the_papers

    def tested(Q: tuple[int, ...]) -> object:
        return Q if exact else len(Q) > 1

    ours = Counter((run.net, *kind_of(run), tested(Q)) for run, Q in asked)
    return ours == Counter(
        (member.net, member.S, printed.regression, printed.fine_tune, tested(member.Q)) for member in printed.members
    )


def _row(
    group: str,
    setting: Setting | None,
    table: int,
    printed: PrintedRow | None,
    asked: Sequence[AskedBoxes],
    cache: BoxCache,
) -> BoxRow:
    runs = [run for run, _ in asked]
    method = CENTRE if table == 8 else DENSE
    stored = cache.of(asked, method)
    named: dict[str, Any] = {
        "group": group,
        "table": table,
        "net": words.FUSED.join(run.net for run in runs),
        "S": words.FUSED.join(run.config.data.S_text for run in runs),
        "Q": words.FUSED.join(", ".join(map(str, Q)) for _, Q in asked),
        "regression": words.FUSED.join(dict.fromkeys(kind_of(run)[1] for run in runs)),
        "fine_tune": words.FUSED.join(dict.fromkeys(kind_of(run)[2] for run in runs)),
        "run": words.FUSED.join(run.name for run in runs),
        "departures": departures_of(runs),
        "printed": printed.error if printed else None,
    }
    if stored is None:
        lacking = [run.what_boxes_lack(Q, method) for run, Q in asked]
        return BoxRow(verdict="not measured", note="; ".join(lacking), **named)
    named |= {"measured": stored.error.percent, "interval": stored.error.interval, "n": stored.error.n}
    return BoxRow(**named, guesses=_named_by(stored), **_against(stored, setting, printed, runs[0]))


def _named_by(stored: StoredBoxes) -> str | None:
    """Who named the classes, where somebody had to."""
    return None if stored.is_centre else f"{stored.guesses} (top-5 error {stored.top5:.1f} %)"


def _against(
    stored: StoredBoxes, setting: Setting | None, printed: PrintedRow | None, run: StoredRun
) -> dict[str, Any]:
    """The verdict, with the difference where there is one to be had."""
    assert setting is not None
    if printed is None:
        return {"verdict": "not comparable", "note": words.NO_SUCH_ROW}
    if not setting.is_the_papers:
        return {"verdict": "not comparable", "note": words.OTHER_SETTING}
    if stored.error.n < run.usable_val:
        note = f"{run.usable_val - stored.error.n:,} of {run.usable_val:,} validation images have no box"
        return {"verdict": "not comparable", "note": note}
    held = AgainstPrinted(stored.error, printed.error)
    verdict: Verdict = "differs" if held.verdict in ("lower", "higher") else "agrees"
    return {"verdict": verdict, "difference": held.difference, "note": held.verdict if verdict == "differs" else ""}


def _unmeasured(group: str, printed: PrintedRow) -> BoxRow:
    what = "pooled boxes; see `vggrepro localise`" if len(printed.members) > 1 else "run of this recipe"
    return BoxRow(
        group=group,
        table=printed.table,
        net=words.FUSED.join(member.net for member in printed.members),
        S=words.FUSED.join(scale_text(member.S) for member in printed.members),
        Q=words.FUSED.join(", ".join(map(str, member.Q)) for member in printed.members),
        regression=printed.regression,
        fine_tune=printed.fine_tune,
        printed=printed.error,
        verdict="not measured",
        note=f"no {what}",
    )


def _test_row(printed: PrintedRow, beside: BoxRow) -> list[BoxRow]:
    """The row of the test set, once, however many runs are measured beside it."""
    if printed.error_test is None:
        return []
    kept = {key: getattr(beside, key) for key in ("group", "table", "net", "S", "Q", "regression", "fine_tune")}
    return [
        BoxRow(
            **kept, split="test", printed=printed.error_test, verdict="cannot be measured", note=words.NO_TEST_LABELS
        )
    ]


def _yardsticks(group: str, runs: Sequence[StoredRun], cache: BoxCache) -> Iterator[BoxRow]:
    """What boxes that know nothing of an image get, on the images and with the guesses of the rows above."""
    for table, method in ((8, CENTRE), (9, DENSE)):
        asked = [(run, own_Q(run, method, several=several)) for run in runs for several in (False, True)]
        stored = {one.sought: one for each in asked if (one := cache.of([each], method))}
        for one in stored.values():
            for name, error in one.yardsticks().items():
                yield BoxRow(
                    group=group, table=table, net=name, guesses=_named_by(one), measured=error.percent,
                    interval=error.interval, n=error.n, verdict="not comparable", note="a yardstick",
                )  # fmt: skip


def box_spreads(rows: Sequence[BoxRow], runs: Sequence[StoredRun]) -> list[BoxSpread]:
    """Mean and spread of the rows that differ in nothing but the seed; each has the best guesses that it has.

    A pooled row counts where all its nets are of one seed, so that no net counts twice.
    """
    chosen = {run.name: run for same in chosen_by(_recipe, runs).values() for run in same}
    alike: dict[tuple[object, ...], dict[int, BoxRow]] = {}
    for row in rows:
        made_of = [chosen.get(name) for name in (row.run or "").split(words.FUSED)]
        known = [run for run in made_of if run]
        seeds = {run.config.run.seed for run in known}
        if row.table < 10 and row.measured is not None and len(known) == len(made_of) and len(seeds) == 1:
            variants = [(run.variant, run.config.localisation, run.boxes_fingerprint) for run in known]
            alike.setdefault((row.table, row.Q, *variants), {}).setdefault(seeds.pop(), row)
    return [
        BoxSpread(
            **{key: getattr(first, key) for key in ("group", "table", "net", "S", "Q", "regression", "fine_tune")},
            seeds=len(same),
            mean=statistics.mean(errors),
            spread=statistics.stdev(errors),
            runs=[row.run for row in same.values() if row.run],
        )
        for same in alike.values()
        if len(errors := [row.measured for row in same.values() if row.measured is not None]) > 1
        for first in [next(iter(same.values()))]
    ]


def _recipe(run: StoredRun) -> tuple[object, ...]:
    return run.net, kind_of(run)


def _table10(group: str, rows: Sequence[BoxRow]) -> list[BoxRow]:
    """VGG's row is one of Table 9; the others are of other papers."""
    made = []
    for system in facts().localisation_state_of_the_art:
        if system.method == "VGG":
            made += [
                row.model_copy(update={"table": 10, "net": f"VGG: {row.net}"})
                for row in rows
                if row.table == 9 and row.printed in (system.error, system.error_test) and words.FUSED in row.net
            ]
            continue
        named: dict[str, Any] = {"group": group, "table": 10, "net": system.method}
        named |= {"verdict": "cannot be measured", "note": words.OTHER_PAPER}
        if system.error is not None:
            made.append(BoxRow(**named, printed=system.error))
        if system.error_test is not None:
            made.append(BoxRow(**named, split="test", printed=system.error_test))
    return made
