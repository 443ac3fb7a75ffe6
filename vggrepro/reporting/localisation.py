"""The paper's Tables 8-10 (Appendix A), measured beside printed, from stored boxes. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vggrepro.evaluation.box_store import CENTRE, DENSE
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import BoxRow as PrintedRow
from vggrepro.paper import facts, scale_text, value
from vggrepro.reporting.found_boxes import AskedBoxes, BoxCache, StoredBoxes, kind_of
from vggrepro.reporting.report import BoxRow, Verdict
from vggrepro.reporting.runs import Setting, StoredRun

BOX_TITLES = {
    8: "Table 8: localisation given the class, centre crop (Appendix A)",
    9: "Table 9: localisation, dense, five guesses of the class (Appendix A)",
    10: "Table 10: localisation, the state of the art (Appendix A)",
}
_FUSED = " + "


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
    printed_rows = [row for row in facts().localisation[table] if len(row.members) == 1]
    used: set[tuple[str, tuple[int, ...]]] = set()
    for printed in printed_rows:
        (member,) = printed.members
        several = len(member.Q) > 1
        fits = [run for run in runs if kind_of(run) == (member.S, printed.regression, printed.fine_tune)]
        asked = [(run, run.config.multi_Q if several else run.config.single_Q) for run in fits if run.net == member.net]
        for one in asked:
            used.add((one[0].name, one[1]))
            yield from _row(group, setting, table, printed, [one], cache)
        if not asked:
            yield from _unmeasured(group, printed)
    for run in runs:
        for Q in dict.fromkeys((run.config.single_Q, run.config.multi_Q) if table == 9 else (run.config.single_Q,)):
            if (run.name, Q) not in used:
                yield from _row(group, setting, table, None, [(run, Q)], cache)


def _pooled_rows(group: str, setting: Setting | None, runs: Sequence[StoredRun], cache: BoxCache) -> Iterator[BoxRow]:
    """The rows of several nets whose boxes are pooled."""
    by_weights = {run.weights: run for run in runs}
    (printed,) = (row for row in facts().localisation[9] if len(row.members) > 1)
    wanted = {(member.S, len(member.Q) > 1) for member in printed.members}
    measured = False
    for stored in cache.pooled():
        sides: dict[str, list[int]] = {}
        for part in stored.protocol.parts:
            sides.setdefault(part.weights, []).append(part.Q)
        asked = [(by_weights[weights], tuple(Q)) for weights, Q in sides.items()]
        kinds = {(run.net, *kind_of(run)[1:]) for run, _ in asked}
        papers = kinds == {(value("localisation_net"), "PCR", "all")} and wanted == {
            (run.S, len(Q) > 1) for run, Q in asked
        }
        measured |= papers
        yield from _row(group, setting, 9, printed if papers else None, asked, cache)
    if not measured:
        yield from _unmeasured(group, printed)


def _row(
    group: str,
    setting: Setting | None,
    table: int,
    printed: PrintedRow | None,
    asked: list[AskedBoxes],
    cache: BoxCache,
) -> Iterator[BoxRow]:
    runs = [run for run, _ in asked]
    stored = cache.of(asked, CENTRE if table == 8 else DENSE)
    named: dict[str, Any] = {
        "group": group,
        "table": table,
        "net": _FUSED.join(run.net for run in runs),
        "S": _FUSED.join(run.config.data.S_text for run in runs),
        "Q": _FUSED.join(", ".join(map(str, Q)) for _, Q in asked),
        "regression": _FUSED.join(dict.fromkeys(kind_of(run)[1] for run in runs)),
        "fine_tune": _FUSED.join(dict.fromkeys(kind_of(run)[2] for run in runs)),
        "run": _FUSED.join(run.name for run in runs),
        "departures": len({str(departure) for run in runs for departure in run.departures}),
        "printed": printed.error if printed else None,
    }
    if stored is None:
        lacking = [run.what_boxes_lack() for run in runs]
        yield BoxRow(verdict="not measured", note="; ".join(dict.fromkeys(lacking)), **named)
    else:
        named |= {"measured": stored.error.percent, "interval": stored.error.interval, "n": stored.error.n}
        named |= {"guesses": None if table == 8 else f"{stored.guesses} (top-5 error {stored.top5:.1f} %)"}
        yield BoxRow(**named, **_against(stored, setting, printed))
    if printed:
        yield from _test_row(printed, named)


def _against(stored: StoredBoxes, setting: Setting | None, printed: PrintedRow | None) -> dict[str, Any]:
    """The verdict, with the difference where there is one to be had."""
    assert setting is not None
    if printed is None:
        return {"verdict": "not comparable", "note": "the paper has no such row"}
    if not setting.is_the_papers:
        return {"verdict": "not comparable", "note": "another data set or geometry than the paper's"}
    held = AgainstPrinted(stored.error, printed.error)
    verdict: Verdict = "differs" if held.verdict in ("lower", "higher") else "agrees"
    return {"verdict": verdict, "difference": held.difference, "note": held.verdict if verdict == "differs" else ""}


def _unmeasured(group: str, printed: PrintedRow) -> Iterator[BoxRow]:
    named: dict[str, Any] = {
        "group": group,
        "table": printed.table,
        "net": _FUSED.join(member.net for member in printed.members),
        "S": _FUSED.join(scale_text(member.S) for member in printed.members),
        "Q": _FUSED.join(", ".join(map(str, member.Q)) for member in printed.members),
        "regression": printed.regression,
        "fine_tune": printed.fine_tune,
        "printed": printed.error,
    }
    what = "pooled boxes; see `vggrepro localise`" if len(printed.members) > 1 else "run of this recipe"
    yield BoxRow(verdict="not measured", note=f"no {what}", **named)
    yield from _test_row(printed, named)


def _test_row(printed: PrintedRow, named: dict[str, Any]) -> Iterator[BoxRow]:
    if printed.error_test is None:
        return
    kept = {key: named[key] for key in ("group", "table", "net", "S", "Q", "regression", "fine_tune")}
    note = "the labels of the ILSVRC test set were never published, and its server is closed"
    yield BoxRow(**kept, split="test", printed=printed.error_test, verdict="cannot be measured", note=note)


def _yardsticks(group: str, runs: Sequence[StoredRun], cache: BoxCache) -> Iterator[BoxRow]:
    """What boxes that know nothing of an image get, on the images and with the guesses of the rows above."""
    for table, method in ((8, CENTRE), (9, DENSE)):
        stored = {
            (run.boxes_fingerprint, one.guesses): one
            for run in runs
            if (one := cache.of([(run, run.config.single_Q)], method))
        }
        for one in stored.values():
            for name, error in one.yardsticks().items():
                guesses = None if table == 8 else f"{one.guesses} (top-5 error {one.top5:.1f} %)"
                yield BoxRow(
                    group=group, table=table, net=name, guesses=guesses, measured=error.percent,
                    interval=error.interval, n=error.n, verdict="not comparable", note="a yardstick",
                )  # fmt: skip


def _table10(group: str, rows: Sequence[BoxRow]) -> list[BoxRow]:
    """VGG's row is one of Table 9; the others are of other papers."""
    made = []
    for system in facts().localisation_state_of_the_art:
        if system.method == "VGG":
            made += [
                row.model_copy(update={"table": 10, "net": f"VGG: {row.net}"})
                for row in rows
                if row.table == 9 and row.printed in (system.error, system.error_test) and _FUSED in row.net
            ]
            continue
        named: dict[str, Any] = {"group": group, "table": 10, "net": system.method}
        named |= {"verdict": "cannot be measured", "note": "a figure of another paper"}
        if system.error is not None:
            made.append(BoxRow(**named, printed=system.error))
        if system.error_test is not None:
            made.append(BoxRow(**named, split="test", printed=system.error_test))
    return made
