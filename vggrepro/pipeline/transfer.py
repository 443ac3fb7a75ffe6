"""Linear classifiers on features of transfer data sets (Appendix B), for a stage, a graph, or nets by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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
    """Tests a finished stage on its transfer data sets, and logs the figures. Raises UserError and Interrupted."""
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
    """Tests the stacked descriptors of a graph's stages, by seed, with the first stage's transfer settings.

    This needs the separate tests of all stages, so the job that finishes last does it, and logs the figures in a run to
    which it may write. Raises UserError and Interrupted.
    """
    by_seed: dict[int, list[Config]] = {}
    for config in stages:
        if config.transfer.sets:
            by_seed.setdefault(config.run.seed, []).append(config)
    for configs in by_seed.values():
        if len(configs) < 2 or not from_first_rank(all(is_finished(each) and is_transferred(each) for each in configs)):
            continue
        nets = [Net.of_stage(config).under(configs[0].transfer) for config in configs]
        for name in configs[0].transfer.sets:
            if not all(name in config.transfer.sets for config in configs):
                continue
            tests = _test(nets, open_set(name, configs[0], session), session)
            if session.topology.is_first and (owner := _writable(nets)):
                owner.log(_figures(nets, tests, owner), session)


def _writable(nets: Iterable[Net]) -> Net | None:
    """Returns the first net whose run directory this job may write to, or None."""
    for net in nets:
        with suppress(lease.LeaseLost):
            lease.require(net.run.path)
            return net
    return None


def transfer_nets(
    runs: Sequence[Path], changes: Sequence[str], submission: Path | None = None, sets: Mapping[str, str] | None = None
) -> list[Transferred] | None:
    """Tests nets separately, then with stacked descriptors; returns None except on rank 0.

    All use the transfer settings of the first net, with its data sets unless `sets` replaces them. The figures of runs'
    final nets are logged with their other metrics. `submission` is a folder for files of all nets together for the
    challenge's server. Raises UserError and Interrupted.
    """
    nets = [net_at(run, changes, sets) for run in runs]
    config = nets[0].config
    nets = [net.under(config.transfer) for net in nets]
    if not config.transfer.sets:
        raise UserError(f"{runs[0]} names no data set (transfer.sets); add --data NAME=PATH, e.g. caltech101=PATH")
    for name in config.transfer.sets:
        _specs(nets, name)  # raises before any work
    results: list[Transferred] = []
    with open_session([net.config for net in nets], training=False) as session:
        for net in nets if session.topology.is_first else ():
            net.note_weights()
        opened = [open_set(name, config, session) for name in config.transfer.sets]
        if submission:
            if not any(data.submission for data in opened):
                raise UserError(
                    f"--submission: {', '.join(config.transfer.sets)}: no test images without labels; put the test "
                    f"archive of VOC 2012 beside its other one, or omit --submission"
                )
            submission.mkdir(parents=True, exist_ok=True)
        for data in opened:
            for group in [*([net] for net in nets), *([nets] if len(nets) > 1 else [])]:
                tests = _test(group, data, session)
                if session.topology.is_first and all(net.is_as_trained for net in group):
                    group[0].log(_figures(group, tests, group[0]), session)
                results += tests
            if submission and data.submission:
                _submit(nets, data, submission, session)
        return results if session.topology.is_first else None


def _specs(nets: Sequence[Net], name: str) -> list[tuple[FeatureSpec, ...]]:
    """Returns the tests of nets with equal `transfer` sections on a data set, as a spec per net. Raises UserError."""
    return list(zip(*(feature_specs(name, net.config) for net in nets), strict=True))


def _test(nets: Sequence[Net], data: TransferSet, session: Session) -> list[Transferred]:
    """Runs and stores every test of nets on a data set. Every rank calls it; the list is empty except on rank 0."""
    results = []
    for specs in _specs(nets, data.name):
        samples = Descriptors(data, tuple(nets), specs)
        transfer(samples, session)
        if session.topology.is_first:
            stored = load_transferred(samples.protocol, nets[0].run)
            assert stored is not None, samples
            results.append(stored)
    return results


def _figures(nets: Sequence[Net], tests: Iterable[Transferred], owner: Net) -> dict[str, float]:
    """Returns the figures by their names in the metrics of `owner`, e.g. `transfer_mine_and_E_stack_Q_40_50_recall`."""
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
    """Tests nets on a data set unless that is done; stores the scores in the first net's run. Every rank calls it."""
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
        session.watch.rest()  # a split may take longer than the timeouts of ranks and collectives
        with first_rank_first(session.topology):
            if session.topology.is_first and not key.exists(run):
                values = samples.values() if values is None else values
                echo(
                    f"{' + '.join(net.config.name for net in samples.nets)}: {data.name}, split {key.split + 1} of "
                    f"{len(data.partitions)}: linear SVM on {len(partition.train):,} x {values.shape[1]:,} features"
                )
                result = classify(values, data.targets, partition, data.measure, session.cores)
                key.save(
                    run,
                    result.tested,
                    C=result.C,
                    validated=list(result.validated.items()),
                    unfinished=result.unfinished,
                    runs=[net.name for net in samples.nets],
                    source=data.index.source,
                    images=len(data.index.split("val")),
                    classes=len(data.classes),
                    rejected=data.rejected,
                    train=len(partition.train),
                    test=len(partition.test),
                )


def _require_positives(data: TransferSet) -> None:
    """Raises UserError if no sample of a training, validation or test set belongs to a class."""
    for partition in data.partitions:
        parts = {"training": partition.fit, "validation": partition.validation, "test": partition.test}
        for name, rows in parts.items():
            if not (data.targets[rows] > 0).any():
                raise UserError(
                    f"{data.name}: none of the {len(rows)} {name} samples of {data.index.source} belongs to a class; "
                    f"give the complete data set"
                )


def _submit(nets: Sequence[Net], data: TransferSet, folder: Path, session: Session) -> None:
    """Writes files for the challenge's server, which alone has the labels of the images."""
    assert data.submission is not None, data.name
    samples = Descriptors(data, tuple(nets), _specs(nets, data.name)[-1 if data.boxes is not None else 0])
    session.watch.rest()
    with first_rank_first(session.topology):
        if session.topology.is_first:
            tested = classify(samples.values(), data.targets, data.submission, data.measure, session.cores).tested
            kind = "comp10_action" if data.boxes is not None else "comp2_cls"
            for class_name, scores in zip(data.classes, tested.scores.T, strict=True):
                lines = [f"{data.names[row]} {score:.6f}\n" for row, score in zip(tested.rows, scores, strict=True)]
                RunDirectory(folder).write_text(f"{kind}_test_{class_name}.txt", "".join(lines))
