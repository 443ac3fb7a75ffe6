"""Tests of nets that predict boxes, each separately and all pooled, with classes from the best posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.evaluation.boxes import Guesses
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.pipeline.boxes import BoxNet, BoxTest, PooledErrors
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import open_session
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.reporting.stored.find_runs import find_runs, resolve
from vggrepro.reporting.tables import labels
from vggrepro.reporting.tables.build import build_report
from vggrepro.storage.status import relocated, stage_at


@dataclass(frozen=True)
class Localised:
    """Result of `vggrepro localise`."""

    tested: list[PooledErrors]
    """Errors of each net, followed by those of all nets pooled."""
    guesses: Guesses
    full_image: ErrorRate
    """Baseline, given the class: every box is the full image."""
    random: ErrorRate
    """Baseline, given the class: every box lies between two random points."""


def localise(
    runs: Sequence[Path],
    classifiers: Sequence[Path] = (),
    method: str = "dense",
    scales: tuple[int, ...] | None = None,
    overrides: Sequence[str] = (),
) -> Localised | None:
    """Tests nets that predict boxes, and all of them pooled before merging; returns None except on rank 0.

    `scales` defaults to each configuration's Q of Table 9: one, and several pooled. The fused posteriors of
    `classifiers` by `method` at their Q of Table 4 give the guessed classes, by default those of the best row of the
    experiment's Tables 4 to 6. Missing results are stored in the run directories, pooled ones in the first. Raises
    UserError and Interrupted.
    """
    nets = [_net_at(run, overrides) for run in runs]
    with open_session([net.config for net in nets], training=False) as session:
        test = BoxTest.opened(nets[0].config, session)
        for net in nets[1:]:
            if session.index(net.config).fingerprint != test.index.fingerprint:
                raise UserError(f"{net.config.directory} and {runs[0]} see different images; give them one data.index")
        if classifiers:
            stages = [stage_at(run) for run in classifiers]
        else:
            stages, method = from_first_rank(
                _best(runs[0].resolve().parent, test.index.fingerprint) if session.topology.is_first else None
            )
        guesses = test.guesses(stages, method)
        tests_of_nets = [(net, (scales,) if scales else (net.config.single_Q, net.config.multi_Q)) for net in nets]
        pools = [[(net, Q)] for net, tests in tests_of_nets for Q in dict.fromkeys(tests)]
        if len(nets) > 1:
            pools.append([(net, scales or net.config.multi_Q) for net in nets])
        for net, tests in tests_of_nets:
            test.predict(net, guesses, {side for Q in tests for side in Q})
        if not session.topology.is_first:
            return None
        return Localised([test.errors(pool, guesses) for pool in pools], guesses, *test.baselines())


def _net_at(run: Path, changes: Sequence[str]) -> BoxNet:
    """Opens a finished net that predicts boxes, and its parent in the same experiment. Raises UserError."""
    net = Net.at(run, changes)
    if not net.predicts_boxes:
        raise UserError(f"{run} predicts classes, not boxes; test it with `vggrepro evaluate {run}`")
    return BoxNet(net, stage_at(run.resolve().parent / net.load().provenance["parent"]["name"]))


def _best(experiment: Path, data: str) -> tuple[list[Config], str]:
    """Finds the runs and method of an experiment's best row in Tables 4 to 6 by top-5 error. Raises UserError."""
    runs = [run for run in find_runs([experiment]) if run.dataset.get("fingerprint") == data]
    rows = [row for row in build_report(runs).rows if row.table in (4, 5, 6) and row.top5.measured is not None]
    if not rows:
        raise UserError(f"no run of {experiment} has posteriors for class guesses; name runs: --classes-from RUN")
    best = min(rows, key=lambda row: (row.top5.measured, row.top1.measured))
    assert best.run is not None
    assert best.method is not None
    return [relocated(run.config, run.path) for run in resolve(best.run.split(labels.FUSED), [experiment])], best.method
