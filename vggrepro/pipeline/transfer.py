"""Linear classifiers on features of other data sets (Appendix B): those of a stage, of a graph, or of nets by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vggrepro.config.settings import Config
from vggrepro.data.transfer.transfer_set import TransferSet
from vggrepro.errors import UserError
from vggrepro.evaluation.feature_spec import FeatureSpec, feature_specs
from vggrepro.evaluation.svm import classify
from vggrepro.evaluation.transfers import Transferred, load_transferred, save_truth
from vggrepro.pipeline.done import TRANSFERS, is_transferred, transfers_hash
from vggrepro.pipeline.features import Descriptors, net_at, open_set
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import Session, open_session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.progress import echo
from vggrepro.ranks.collectives import first_rank_first, from_first_rank
from vggrepro.storage import lease
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished


def transfer_stage(config: Config, session: Session) -> None:
    """Tests a finished stage on the data sets that it names, and logs the figures. Raises UserError and Interrupted."""
    run = RunDirectory(config.directory)
    if from_first_rank(is_transferred(config)):
        return
    net = Net.of_stage(config)
    with mirrored(config, run, session.topology):
        files: set[str] = set()
        for name in config.transfer.sets:
            tests = _test([net], open_set(name, config, session), session)
            if session.topology.is_first:
                if record := net.new_record(_figures([net], tests, net)):
                    run.append(record)
                files |= {file.name for test in tests for file in test.protocol.files(run)}
        if session.topology.is_first:
            run.write_json(TRANSFERS, {"asked": transfers_hash(config, net.weights), "files": sorted(files)})


def transfer_together(stages: Iterable[Config], session: Session) -> None:
    """Tests the stages of a graph that name data sets together, their descriptors stacked, seed by seed.

    As the configuration of the first says. Nothing is done while one of them is not tested by itself: who comes last
    does it, and logs the figures in a run that it may write to. Raises UserError and Interrupted.
    """
    by_seed: dict[int, list[Config]] = {}
    for config in stages:
        if config.transfer.sets:
            by_seed.setdefault(config.run.seed, []).append(config)
    for same in by_seed.values():
        if len(same) < 2 or not from_first_rank(all(is_finished(config) and is_transferred(config) for config in same)):
            continue
        nets = [Net.of_stage(config).under(same[0].transfer) for config in same]
        for name in same[0].transfer.sets:
            if not all(name in config.transfer.sets for config in same):
                continue
            tests = _test(nets, open_set(name, same[0], session), session)
            if session.topology.is_first and (owner := _writable(nets)):
                owner.log(_figures(nets, tests, owner), session)


def _writable(nets: Iterable[Net]) -> Net | None:
    """The first of some nets whose run is not another job's; None: all are."""
    for net in nets:
        try:
            lease.require(net.run.path)
        except lease.LeaseLost:
            continue
        return net
    return None


def transfer_nets(
    runs: Sequence[Path],
    changes: Sequence[str],
    submission: Path | None = None,
    *,
    sets: Mapping[str, str] | None = None,
) -> list[Transferred] | None:
    """Tests nets, run directories or checkpoints, on `sets`, or the data sets that the first's configuration names.

    Each by itself, then all of them with their descriptors stacked, all as the first's configuration says; None on all
    ranks but the first. Figures of runs' final nets are logged with their other metrics. With `submission` the files
    for the challenge's server are written there, of all nets together. Raises UserError and Interrupted.
    """
    nets = [net_at(run, changes, sets) for run in runs]
    own = nets[0].config
    nets = [net.under(own.transfer) for net in nets]
    if not own.transfer.sets:
        raise UserError(f"{runs[0]} names no data set (transfer.sets); say --data NAME=PATH, e.g. caltech101=PATH")
    for name in own.transfer.sets:
        _specs(nets, name)  # before anything is computed
    found: list[Transferred] = []
    with open_session([net.config for net in nets], training=False) as session:
        for net in nets if session.topology.is_first else ():
            net.note_weights()
        opened = [open_set(name, own, session) for name in own.transfer.sets]
        if submission:
            if not any(data.submission for data in opened):
                raise UserError(
                    f"--submission: {', '.join(own.transfer.sets)}: no test images without labels; put the test "
                    f"archive of VOC 2012 beside its other one, or leave --submission out"
                )
            submission.mkdir(parents=True, exist_ok=True)
        for data in opened:
            for some in [*([net] for net in nets), *([nets] if len(nets) > 1 else [])]:
                tests = _test(some, data, session)
                if session.topology.is_first and all(net.is_as_trained for net in some):
                    some[0].log(_figures(some, tests, some[0]), session)
                found += tests
            if submission and data.submission:
                _submit(nets, data, submission, session)
        return found if session.topology.is_first else None


def _specs(nets: Sequence[Net], name: str) -> list[tuple[FeatureSpec, ...]]:
    """How some nets, under one `transfer` section, are tested on a data set: one per net. Raises UserError."""
    return list(zip(*(feature_specs(name, net.config) for net in nets), strict=True))


def _test(nets: Sequence[Net], data: TransferSet, session: Session) -> list[Transferred]:
    """Every test of some nets on one data set, stored; every rank calls it, the first has the results."""
    found = []
    for specs in _specs(nets, data.name):
        samples = Descriptors(data, tuple(nets), specs)
        transfer(samples, session)
        if session.topology.is_first:
            stored = load_transferred(samples.protocol, nets[0].run)
            assert stored is not None, samples
            found.append(stored)
    return found


def _figures(nets: Sequence[Net], tests: Iterable[Transferred], owner: Net) -> dict[str, float]:
    """Figures under the names that they have in the metrics of one of the nets: `transfer_mine_stack_3Q_recall`.

    Scales that the configuration says are named: `Q_40_50`; the others' names follow the data set's: `_and_E`.
    """
    figures: dict[str, float] = {}
    others = "".join(f"_and_{net.config.name.replace('+', '_')}" for net in nets if net is not owner)
    for test in tests:
        protocol, Q = test.protocol, test.protocol.nets[0].Q
        scales = "_".join(["Q", *map(str, Q)]) if nets[0].config.transfer.scales else f"{len(Q)}Q"
        how = f"{protocol.combine}_{scales}{'_boxes' if protocol.boxes else ''}"
        name = f"transfer_{protocol.set}{others}_{how}_{protocol.measure}"
        figures[name] = test.result.mean
        if test.result.spread is not None:
            figures[f"{name}_spread"] = test.result.spread
    return figures


def transfer(samples: Descriptors, session: Session) -> None:
    """Tests nets on a data set and stores the scores in the first one's run.

    Every rank calls it; what is stored is not computed again. Raises UserError, and Interrupted between two splits.
    """
    data, run, protocol = samples.data, samples.nets[0].run, samples.protocol
    if from_first_rank(all(file.exists() for file in protocol.files(run))):
        return
    _require_positives(data)
    samples.extract(session)
    values: NDArray[Any] | None = None
    if session.topology.is_first:
        save_truth(data.targets, run, data.fingerprint)
    for key, partition in zip(protocol.keys, data.partitions, strict=True):
        session.watch.stop_if_requested()
        session.watch.rest()  # a split may take longer than a rank may be silent, or a collective may wait
        with first_rank_first(session.topology):
            if session.topology.is_first and not key.exists(run):
                values = samples.values() if values is None else values
                echo(
                    f"{' + '.join(net.config.name for net in samples.nets)}: {data.name}, split {key.split + 1} of "
                    f"{len(data.partitions)}: linear SVM on {len(partition.train):,} x {values.shape[1]:,} features"
                )
                found = classify(values, data.targets, partition, data.measure, session.cores)
                key.save(
                    run,
                    found.tested,
                    C=found.C,
                    validated=list(found.validated.items()),
                    unfinished=found.unfinished,
                    runs=[net.name for net in samples.nets],
                    source=data.index.source,
                    images=len(data.index.split("val")),
                    classes=len(data.classes),
                    rejected=data.rejected,
                    train=len(partition.train),
                    test=len(partition.test),
                )


def _require_positives(data: TransferSet) -> None:
    """Raises UserError for samples none of which is of any class: there would be nothing to learn or to measure."""
    for partition in data.partitions:
        parts = {"are learnt from": partition.fit, "decide C": partition.validation, "are tested on": partition.test}
        for what, rows in parts.items():
            if not (data.targets[rows] > 0).any():
                raise UserError(
                    f"{data.name}: none of the {len(rows)} samples of {data.index.source} that {what} is of any class; "
                    f"give the whole data set"
                )


def _submit(nets: Sequence[Net], data: TransferSet, folder: Path, session: Session) -> None:
    """Writes the files that the challenge's server takes, of the images that only it has labels of."""
    assert data.submission is not None, data.name
    samples = Descriptors(data, tuple(nets), _specs(nets, data.name)[-1 if data.boxes is not None else 0])
    session.watch.rest()
    with first_rank_first(session.topology):
        if session.topology.is_first:
            found = classify(samples.values(), data.targets, data.submission, data.measure, session.cores)
            kind = "comp10_action" if data.boxes is not None else "comp2_cls"
            for number, of_class in enumerate(data.classes):
                lines = [
                    f"{data.names[row]} {score:.6f}\n"
                    for row, score in zip(found.tested.rows, found.tested.scores[:, number], strict=True)
                ]
                RunDirectory(folder).write_text(f"{kind}_test_{of_class}.txt", "".join(lines))
