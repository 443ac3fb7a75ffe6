"""The whole report, and in it the paper's Tables 1-7, measured beside printed, from run directories. No torch.

Runs of different images, classes or geometry never share a table: they form groups, each with tables of its own.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from vggrepro.evaluation.errors import Ranks
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.models.table1 import architecture
from vggrepro.paper import Row as PrintedRow
from vggrepro.paper import TestedNet, facts, scale_text
from vggrepro.reporting import words
from vggrepro.reporting.box_claims import check_box_claims
from vggrepro.reporting.class_claims import check_claims, dense_over_centre, spreads_over_seeds, start_from_parent
from vggrepro.reporting.found_boxes import BoxCache
from vggrepro.reporting.localisation import box_rows, box_spreads
from vggrepro.reporting.predictions import PredictionCache
from vggrepro.reporting.report import BoxRow, BoxSpread, Group, Report, Row, Spread, Verdict
from vggrepro.reporting.run_notes import note_of
from vggrepro.reporting.runs import (
    Asked,
    Recipe,
    Setting,
    StoredRun,
    by_output,
    departures_of,
    recipe_of,
    recipes_of,
    setting_of,
    variants_by,
)
from vggrepro.reporting.stored_transfers import stored_transfers
from vggrepro.reporting.transfer import transfer_rows
from vggrepro.reporting.transfer_claims import check_transfer_claims

TITLES = {
    1: "Table 1: weight layers of the nets",
    2: "Table 2: parameters",
    3: "Table 3: one test scale, dense (Section 4.1)",
    4: "Table 4: several test scales, dense (Section 4.2)",
    5: "Table 5: dense, multi-crop, and both (Section 4.3)",
    6: "Table 6: fusion of nets (Section 4.4)",
    7: "Table 7: the state of the art (Section 4.5)",
}
_SHARED = ("group", "table", "net", "S", "Q", "method", "printed_top1", "printed_top5")
"""What rows that differ by seed have in common."""
_PAPER = "ilsvrc-2012"  # the group of rows that no run has measured yet


def build_report(runs: Sequence[StoredRun], cache: PredictionCache | None = None) -> Report:
    """The tables, claims and ledgers of some runs; with none, the paper's tables, not measured. Raises UserError."""
    cache = cache or PredictionCache()
    grouped: dict[Setting, list[StoredRun]] = {}
    for run in runs:
        if run.dataset:
            grouped.setdefault(setting_of(run), []).append(run)
    groups, rows, seeds, claims, gains, starts = [], _counts(), [], [], [], []
    localised: list[BoxRow] = []
    box_seeds: list[BoxSpread] = []
    for number, (setting, members) in enumerate(grouped.items(), 1):
        group = Group(
            id=f"{number}-{setting.fingerprint[:8]}",
            title=setting.title,
            papers=setting.is_the_papers,
            runs=[note_of(run) for run in members],
        )
        groups.append(group)
        classifiers, localisers = by_output(members)
        own = _rows(group.id, setting, classifiers, cache)
        rows += own
        boxes = BoxCache(localisers)
        own_boxes = box_rows(group.id, setting, localisers, boxes)
        localised += own_boxes
        box_seeds += box_spreads(own_boxes, localisers)
        seeds += _spreads(own, classifiers)
        recipes = recipes_of(classifiers)
        spreads = spreads_over_seeds(recipes, cache)
        claims += check_claims(group.id, recipes, cache, spreads)
        claims += check_box_claims(group.id, localisers, boxes)
        gains += dense_over_centre(group.id, recipes, cache)
        starts += start_from_parent(group.id, classifiers, cache, spreads)
    if not groups:
        groups.append(Group(id=_PAPER, title="ILSVRC-2012: no run yet", papers=True, runs=[]))
        rows += _rows(_PAPER, None, [], cache)
        localised += box_rows(_PAPER, None, [], BoxCache([]))
        claims += [*check_claims(_PAPER, {}, cache, {}), *check_box_claims(_PAPER, [], BoxCache([]))]
    tests = stored_transfers(runs)
    apart = list({run.path: run for one in tests for run in one.runs if not run.dataset}.values())
    return Report(
        groups=groups,
        rows=sorted(rows, key=lambda row: row.table),
        seeds=seeds,
        claims=claims,
        boxes=localised,
        box_seeds=box_seeds,
        transfer=transfer_rows(tests),
        transfer_claims=check_transfer_claims(tests),
        transfer_runs=[note_of(run) for run in apart],
        dense_over_centre=gains,
        start_from_parent=starts,
        left_out=[run.name for run in runs if not run.dataset and run not in apart],
    )


def _counts() -> list[Row]:
    """Tables 1 and 2: what our nets have, beside what the paper prints of them."""
    rows = []
    for net in facts().architectures:
        ours = architecture(net)
        for table, printed, measured, same in (
            (1, facts().weight_layers_printed[net], ours.weight_layers, ours.weight_layers),
            (2, facts().parameters_printed_millions[net], ours.parameters, round(ours.parameters / 1e6)),
        ):
            verdict: Verdict = "agrees" if same == printed else "differs"
            rows.append(
                Row(group=None, table=table, net=net, printed_count=printed, measured_count=measured, verdict=verdict)
            )
    return rows


def _rows(group: str, setting: Setting | None, runs: list[StoredRun], cache: PredictionCache) -> list[Row]:
    """Tables 3-7: every row of the paper at least once, and what was measured beside them."""
    recipes: dict[Recipe, list[StoredRun]] = {}
    for run in runs:
        recipes.setdefault(recipe_of(run), []).append(run)
    rows: list[Row] = []
    for table in (3, 4, 5, 6):
        printed_rows = facts().table(table)
        for printed in printed_rows:
            own = _measured(group, setting, printed, recipes, cache)
            rows += [*own, *_test_row(own[0], printed.top5_test)]
        if table == 6:
            continue
        methods = ("dense", "multicrop", "both") if table == 5 else ("dense",)
        known = {(row.nets[0], row.S) for row in printed_rows}
        for recipe, candidates in recipes.items():
            if recipe not in known:
                for run in candidates:
                    own = [
                        _row(group, setting, table, None, method, [(run, run.Q_of(table))], cache) for method in methods
                    ]
                    # the paper has no multi-crop figures of this net; where it was so tested, dense is shown beside it
                    if table != 5 or any(row.measured_top1 is not None for row in own[1:]):
                        rows += own
    rows.sort(key=_paper_order)
    return rows + _table7(group, rows)


def _paper_order(row: Row) -> tuple[int, int, str]:
    """Table by table in the order of the columns of Table 1; rows of one net stay as they are."""
    columns = list(facts().architectures)
    at = columns.index(row.net) if row.net in columns and row.table < 6 else len(columns)
    return row.table, at, row.net if row.table < 6 else ""


def _measured(
    group: str,
    setting: Setting | None,
    printed: PrintedRow,
    recipes: dict[Recipe, list[StoredRun]],
    cache: PredictionCache,
) -> list[Row]:
    """One row for each run of the printed row's recipe, or one that says what is missing."""
    candidates = [recipes.get((member.net, member.S), []) for member in printed.members]
    if not all(candidates):
        missing = [
            f"{member.net} at S = {scale_text(member.S)}"
            for member, found in zip(printed.members, candidates, strict=True)
            if not found
        ]
        return [_unmeasured(group, printed, f"no run of {', '.join(missing)}")]

    def asked(run: StoredRun, member: TestedNet) -> Asked:
        at_paper = setting is not None and setting.is_the_papers
        return run, member.Q if at_paper else run.Q_of(printed.table)

    if len(printed.members) == 1:
        chosen = [[asked(run, printed.members[0])] for run in candidates[0]]
    else:  # of several variants each net's most faithful one, fused seed by seed
        chosen = [
            [asked(run, member) for run, member in zip(fused, printed.members, strict=True)]
            for fused in _by_seed(recipes_of(run for found in candidates for run in found), printed)
        ]
    return [_row(group, setting, printed.table, printed, printed.method, one, cache) for one in chosen]


def _by_seed(recipes: dict[Recipe, list[StoredRun]], printed: PrintedRow) -> list[list[StoredRun]]:
    """The runs of a fused row, once for each seed that all its nets have; without such a seed, the first of each."""
    members = [{run.config.run.seed: run for run in recipes[member.net, member.S]} for member in printed.members]
    shared = sorted(set.intersection(*(set(runs) for runs in members)))
    if not shared:
        return [[next(iter(runs.values())) for runs in members]]
    return [[runs[seed] for runs in members] for seed in shared]


def _row(
    group: str,
    setting: Setting | None,
    table: int,
    printed: PrintedRow | None,
    method: str,
    asked: list[Asked],
    cache: PredictionCache,
) -> Row:
    runs = [run for run, _ in asked]
    ranks = cache.ranks(asked, method)
    named: dict[str, Any] = {
        "group": group,
        "table": table,
        "net": words.FUSED.join(run.net for run in runs),
        "S": words.FUSED.join(dict.fromkeys(run.config.data.S_text for run in runs)),
        "Q": words.FUSED.join(dict.fromkeys(", ".join(map(str, Q)) for _, Q in asked)),
        "method": method,
        "flip": all(run.config.evaluation.flip for run in runs) and method != "centre",
        "precision": words.FUSED.join(dict.fromkeys(run.config.evaluation.precision for run in runs)),
        "run": words.FUSED.join(run.name for run in runs),
        "departures": departures_of(runs),
        "printed_top1": printed.top1 if printed else None,
        "printed_top5": printed.top5 if printed else None,
    }
    if ranks is None:
        lacking = [run.what_is_missing(Q, method) for run, Q in asked if cache.ranks([(run, Q)], method) is None]
        return Row(verdict="not measured", note="; ".join(lacking), **named)
    named |= {
        "measured_top1": ranks.top1.percent,
        "measured_top5": ranks.top5.percent,
        "interval_top1": ranks.top1.interval,
        "interval_top5": ranks.top5.interval,
        "n": ranks.top1.n,
    }
    obstacle = _obstacle(setting, printed, runs)
    if printed is None or obstacle:
        return Row(verdict="not comparable", note=obstacle, **named)
    return Row(**named, **_against(ranks, printed))


def _against(ranks: Ranks, printed: PrintedRow) -> dict[str, Any]:
    """Differences, verdict and, where it differs, in which column."""
    held = {"top-1": AgainstPrinted(ranks.top1, printed.top1), "top-5": AgainstPrinted(ranks.top5, printed.top5)}
    off = [f"{column} {one.verdict}" for column, one in held.items() if one.verdict in ("lower", "higher")]
    return {
        "difference_top1": held["top-1"].difference,
        "difference_top5": held["top-5"].difference,
        "verdict": "differs" if off else "agrees",
        "note": ", ".join(off),
    }


def _obstacle(setting: Setting | None, printed: PrintedRow | None, runs: list[StoredRun]) -> str:
    """Why the paper's figure is not about what was measured; empty where it is."""
    assert setting is not None
    if printed is None:
        return words.NO_SUCH_ROW
    if not setting.is_the_papers:
        return words.OTHER_SETTING
    if any(not run.config.evaluation.flip for run in runs):
        return "the mirrored images are left out (evaluation.flip)"
    return ""


def _unmeasured(group: str, printed: PrintedRow, why: str) -> Row:
    return Row(
        group=group,
        table=printed.table,
        net=words.FUSED.join(printed.nets),
        S=words.FUSED.join(dict.fromkeys(scale_text(member.S) for member in printed.members)),
        Q=words.FUSED.join(dict.fromkeys(", ".join(map(str, member.Q)) for member in printed.members)),
        method=printed.method,
        printed_top1=printed.top1,
        printed_top5=printed.top5,
        verdict="not measured",
        note=why,
    )


def _test_row(row: Row, top5_test: float | None) -> list[Row]:
    """The row of the test set that the paper prints beside a row of the validation set."""
    if top5_test is None:
        return []
    named: dict[str, Any] = {key: getattr(row, key) for key in ("group", "table", "net", "S", "Q", "method")}
    return [Row(**named, split="test", printed_top5=top5_test, verdict="cannot be measured", note=words.NO_TEST_LABELS)]


def _table7(group: str, rows: list[Row]) -> list[Row]:
    """Table 7: VGG's rows are rows of Tables 5 and 6; the others are of other papers."""
    made_of = {
        "VGG, 2 nets, multi-crop and dense": (6, 2, "both"),
        "VGG, 1 net, multi-crop and dense": (5, 1, "both"),
        "VGG, ILSVRC submission, 7 nets, dense": (6, 7, "dense"),
    }
    result = []
    for system in facts().state_of_the_art:
        other = Row(
            group=group,
            table=7,
            net=system.method,
            printed_top1=system.top1,
            printed_top5=system.top5,
            verdict="cannot be measured",
            note=words.OTHER_PAPER,
        )
        if system.method in made_of:
            table, nets, method = made_of[system.method]
            result += [
                row.model_copy(update={"table": 7, "net": f"{system.method}: {row.net}"})
                for row in rows
                if (row.table, row.method, row.split) == (table, method, "val")
                and row.net.count(words.FUSED) + 1 == nets
                and row.printed_top1 is not None
                and (nets > 1 or row.net == "E")
            ]
        elif system.top5 is not None:
            result.append(other)
        result += _test_row(other, system.top5_test)
    return result


def _spreads(rows: list[Row], runs: list[StoredRun]) -> list[Spread]:
    """Mean and spread of the rows that differ in nothing but the seed."""
    variant = {
        run.name: run.variant for variants in variants_by(recipe_of, runs).values() for same in variants for run in same
    }
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        made_of = (row.run or "").split(words.FUSED)
        if row.measured_top1 is not None and row.table < 7 and all(name in variant for name in made_of):
            key = (row.table, row.Q, row.method, *(variant[name] for name in made_of))
            alike.setdefault(key, []).append(row)
    spreads = []
    for same in alike.values():
        first = same[0]
        if len(same) < 2:
            continue
        top1, top5 = ([getattr(row, key) for row in same] for key in ("measured_top1", "measured_top5"))
        spreads.append(
            Spread(
                **{key: getattr(first, key) for key in _SHARED},
                seeds=len(same),
                mean_top1=statistics.mean(top1),
                spread_top1=statistics.stdev(top1),
                mean_top5=statistics.mean(top5),
                spread_top5=statistics.stdev(top5),
                runs=[row.run for row in same if row.run],
            )
        )
    return spreads
