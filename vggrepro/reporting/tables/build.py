"""The full report of some runs: Tables 1-12, measured beside printed, the paper's claims and the ledgers. No torch.

Runs with different images, classes or geometry never share a table: they form groups with separate tables.
"""

from collections.abc import Sequence
from itertools import chain

from vggrepro.models.table1 import architecture, architecture_of
from vggrepro.paper import facts
from vggrepro.reporting.claims.box_claims import check_box_claims
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.claims.class_claims import (
    check_claims,
    dense_over_centre,
    spreads_over_seeds,
    start_from_parent,
)
from vggrepro.reporting.claims.transfer_claims import check_transfer_claims
from vggrepro.reporting.stored.found_boxes import BoxCache, kind_of
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import Setting, StoredRun, chosen_by, recipe_of, setting_of, variants_by
from vggrepro.reporting.stored.stored_transfers import stored_transfers
from vggrepro.reporting.tables.classification import error_rows
from vggrepro.reporting.tables.localisation import box_rows
from vggrepro.reporting.tables.report import Group, Report, Row, RunNote, Spread, Verdict
from vggrepro.reporting.tables.rows import spreads
from vggrepro.reporting.tables.transfer import transfer_rows

_NO_RUN = Group(id="ilsvrc-2012", title="ILSVRC-2012: no run yet", papers=True, runs=[])


def build_report(runs: Sequence[StoredRun], cache: PredictionCache | None = None) -> Report:
    """Returns the tables, claims and ledgers of some runs; without runs, the paper's tables. Raises UserError."""
    cache = cache or PredictionCache()
    groups = _groups(runs) or [(_NO_RUN, [])]
    rows, seeds = _counts(), list[Spread]()
    claims, gains, starts = list[Claim](), list[Claim](), list[Claim]()
    for group, members in groups:
        classifiers = [run for run in members if not run.config.localisation]
        localisers = [run for run in members if run.config.localisation]
        boxes = BoxCache(localisers)
        found = error_rows(classifiers, cache, papers=group.papers) + box_rows(localisers, boxes, papers=group.papers)
        found = [row.model_copy(update={"group": group.id}) for row in found]
        rows += found
        alike = list(chain.from_iterable(variants_by(recipe_of, classifiers).values()))
        alike += chosen_by(lambda run: (run.net, kind_of(run)), localisers).values()
        seeds += spreads(found, chain.from_iterable(alike))
        recipes = chosen_by(recipe_of, classifiers)
        over_seeds = spreads_over_seeds(recipes, cache)
        claims += check_claims(group.id, recipes, cache, over_seeds)
        claims += check_box_claims(group.id, localisers, boxes)
        gains += dense_over_centre(group.id, recipes, cache)
        starts += start_from_parent(group.id, classifiers, cache, over_seeds)
    tests = stored_transfers(runs)
    ungrouped = list({run.path: run for test in tests for run in test.runs if not run.dataset}.values())
    return Report(
        groups=[group for group, _ in groups],
        rows=sorted([*rows, *transfer_rows(tests)], key=lambda row: row.table),
        seeds=seeds,
        claims=claims,
        transfer_claims=check_transfer_claims(tests),
        transfer_runs=[RunNote.of(run) for run in ungrouped],
        dense_over_centre=gains,
        start_from_parent=starts,
        left_out=[run.name for run in runs if not run.dataset and run not in ungrouped],
    )


def _groups(runs: Sequence[StoredRun]) -> list[tuple[Group, list[StoredRun]]]:
    """Groups the runs that have begun by what they must share for a common table."""
    grouped: dict[Setting, list[StoredRun]] = {}
    for run in runs:
        if run.dataset:
            grouped.setdefault(setting_of(run), []).append(run)
    return [
        (
            Group(
                id=f"{number}-{setting.fingerprint[:8]}",
                title=setting.title,
                papers=setting.is_the_papers,
                weight_layers={
                    run.net: architecture_of(run.config).weight_layers
                    for run in members
                    if run.net in facts().architectures and not run.config.localisation
                },
                runs=[RunNote.of(run) for run in members],
            ),
            members,
        )
        for number, (setting, members) in enumerate(grouped.items(), 1)
    ]


def _counts() -> list[Row]:
    """Returns the rows of Tables 1 and 2: our nets' counts beside the printed ones."""
    rows = []
    for net in facts().architectures:
        ours = architecture(net)
        for table, printed, measured, same in (
            (1, facts().weight_layers_printed[net], ours.weight_layers, ours.weight_layers),
            (2, facts().parameters_printed_millions[net], ours.parameters, round(ours.parameters / 1e6)),
        ):
            verdict: Verdict = "agrees" if same == printed else "differs"
            rows.append(Row(table=table, net=net, printed_count=printed, measured_count=measured, verdict=verdict))
    return rows
