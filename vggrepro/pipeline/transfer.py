"""Linear classifiers on features of other data sets (Appendix B): those of a stage, of a graph, or of nets by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vggrepro.config.settings import Config
from vggrepro.data.transfer import TransferSet
from vggrepro.errors import UserError
from vggrepro.evaluation.asked import Asked, asked_of, drawing_of
from vggrepro.evaluation.transfers import (
    NetProtocol,
    TransferProtocol,
    Transferred,
    is_stored,
    load_transferred,
    save_split,
    save_truth,
    truth_file,
)
from vggrepro.pipeline.features import FeatureNet, described, net_at, net_of_stage, open_set
from vggrepro.pipeline.session import Session, open_session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.progress import echo
from vggrepro.ranks.collectives import first_rank_first, from_first_rank
from vggrepro.storage import lease
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished, known_weights, note_weights, relocated

_DONE = "transfers.json"  # what a stage was tested on, and how


def transfer_stage(config: Config, session: Session) -> None:
    """Tests a finished stage on the data sets that it names, and logs the figures. Raises UserError and Interrupted."""
    run = RunDirectory(config.directory)
    if from_first_rank(is_transferred(config)):
        return
    net = net_of_stage(config)
    with mirrored(config, run, session.topology):
        files: set[str] = set()
        for name in config.transfer.sets:
            tests = _test([net], open_set(name, config, session), session)
            if session.topology.is_first:
                if not run.says("evaluation", record := _figures([net], tests, net)):
                    _log(run, config, record)
                files |= {file.name for one in tests for file in _files(one, run.transfers)}
        if session.topology.is_first:
            run.write_json(_DONE, {"asked": _asked(config, net.weights), "files": sorted(files)})


def is_transferred(config: Config) -> bool:
    """Whether a stage was tested on all data sets that its configuration names, and what it was told is still there."""
    if not config.transfer.sets:
        return True
    run = RunDirectory(config.directory)
    weights, done = known_weights(run), run.read_json(_DONE)
    if not (weights and done and done["asked"] == _asked(config, weights)):
        return False
    files = done.get("files")
    return bool(files) and all((run.transfers / name).exists() for name in files)


def _asked(config: Config, weights: str) -> str:
    told = (weights, config.transfer.model_dump_json(), config.evaluation.flip, config.evaluation.precision)
    return hashlib.sha256(repr(told).encode()).hexdigest()


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
        if len(same) < 2 or not from_first_rank(all(is_finished(one) and is_transferred(one) for one in same)):
            continue
        nets = [net_of_stage(config).under(same[0].transfer) for config in same]
        for name in same[0].transfer.sets:
            if not all(name in one.transfer.sets for one in same):
                continue
            tests = _test(nets, open_set(name, same[0], session), session)
            if session.topology.is_first and (owner := _writable(nets)):
                record = _figures(nets, tests, owner)
                if not owner.run.says("evaluation", record):
                    with mirrored(owner.stage, owner.run, session.topology):
                        _log(owner.run, owner.stage, record)


def _writable(nets: Iterable[FeatureNet]) -> FeatureNet | None:
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
        _asked_together(nets, name)  # before anything is computed
    found: list[Transferred] = []
    with open_session([net.config for net in nets], training=False) as session:
        for run, net in zip(runs, nets, strict=True):
            if session.topology.is_first and run.is_dir() and known_weights(net.run) is None:
                note_weights(net.run, net.weights, net.step)
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
                if session.topology.is_first:
                    _log_final(some, tests, session)
                found += tests
            if submission and data.submission:
                _submit(nets, data, submission, session)
        return found if session.topology.is_first else None


def _asked_together(nets: Sequence[FeatureNet], name: str) -> list[tuple[Asked, ...]]:
    """How some nets, under one `transfer` section, are tested on a data set: one entry a net. Raises UserError."""
    return list(zip(*(asked_of(name, net.config) for net in nets), strict=True))


def _test(nets: Sequence[FeatureNet], data: TransferSet, session: Session) -> list[Transferred]:
    """Every test of some nets on one data set, stored; every rank calls it, the first has the results."""
    found = []
    for asked in _asked_together(nets, data.name):
        transfer(nets, asked, data, session)
        if session.topology.is_first:
            found.append(transferred(nets, asked, data))
    return found


def _figures(nets: Sequence[FeatureNet], tests: Iterable[Transferred], owner: FeatureNet) -> dict[str, float]:
    """Figures under the names that they have in the metrics of one of the nets: `transfer_mine_stack_3Q_recall`.

    Scales that the configuration says are named: `Q_40_50`; the others' names follow the data set's: `_and_E`.
    """
    figures: dict[str, float] = {}
    others = "".join(f"_and_{net.config.name.replace('+', '_')}" for net in nets if net is not owner)
    for one in tests:
        asked, Q = one.protocol, one.protocol.nets[0].Q
        scales = "_".join(["Q", *map(str, Q)]) if nets[0].config.transfer.scales else f"{len(Q)}Q"
        how = f"{asked.combine}_{scales}{'_boxes' if asked.boxes else ''}"
        name = f"transfer_{asked.set}{others}_{how}_{asked.measure}"
        figures[name] = one.result.mean
        if one.result.spread is not None:
            figures[f"{name}_spread"] = one.result.spread
    return figures


def _log_final(nets: Sequence[FeatureNet], tests: Iterable[Transferred], session: Session) -> None:
    """Adds figures to the metrics of the first net's run, unless they are not of final nets, or not of their protocol.

    On the first rank.
    """
    for net in nets:
        tested, own = net.config.evaluation, net.stage.evaluation
        if known_weights(net.run) != net.weights or (tested.flip, tested.precision) != (own.flip, own.precision):
            return
    first = nets[0]
    record = _figures(nets, tests, first)
    if not first.run.says("evaluation", record):
        trained = {"evaluation": first.stage.evaluation, "transfer": first.stage.transfer}
        config = relocated(first.config.model_copy(update=trained), first.run.path)
        with mirrored(config, first.run, session.topology):
            _log(first.run, config, record)


def _log(run: RunDirectory, config: Config, record: Mapping[str, float]) -> None:
    run.append({"kind": "evaluation", "step": config.train.iterations, **record})


def transfer(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet, session: Session) -> None:
    """Tests nets on a data set, several with their descriptors stacked, and stores what came of it in the first's run.

    `asked` has one entry a net. Every rank calls it; what is stored is not computed again. Raises UserError, and
    Interrupted between two splits.
    """
    from vggrepro.evaluation.svm import classify

    folder = nets[0].run.transfers
    protocol = protocol_of(nets, asked, data)
    if from_first_rank(is_stored(protocol, folder)):
        return
    _require_positives(data)
    for net, one in zip(nets, asked, strict=True):
        net.extract(data, one, session)
    samples: NDArray[Any] | None = None
    if session.topology.is_first:
        save_truth(data.targets, folder, data.fingerprint)
    for number, partition in enumerate(data.partitions):
        session.watch.leave_together()
        session.watch.rest()  # a split may take longer than a rank may be silent, or a collective may wait
        with first_rank_first(session.topology):
            if session.topology.is_first and not protocol.file(folder, number).exists():
                if samples is None:
                    samples = described(nets, asked, data)
                echo(
                    f"{_names(nets)}: {data.name}, split {number + 1} of {len(data.partitions)}: linear SVM on "
                    f"{len(partition.train):,} x {samples.shape[1]:,} features"
                )
                found = classify(samples, data.targets, partition, data.measure, session.cores)
                said = {
                    "runs": [net.name for net in nets],
                    "source": data.index.source,
                    "images": len(data.index.split("val")),
                    "classes": len(data.classes),
                    "rejected": data.rejected,
                    "train": len(partition.train),
                    "test": len(partition.test),
                }
                save_split(protocol, number, found, folder, **said)


def _require_positives(data: TransferSet) -> None:
    """Raises UserError for samples none of which is of any class: there would be nothing to learn or to measure."""
    for partition in data.partitions:
        parts = {"are learnt from": partition.fit, "decide C": partition.held_out, "are tested on": partition.test}
        for what, rows in parts.items():
            if not (data.targets[rows] > 0).any():
                raise UserError(
                    f"{data.name}: none of the {len(rows)} samples of {data.index.source} that {what} is of any class; "
                    f"give the whole data set"
                )


def protocol_of(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet) -> TransferProtocol:
    """Under which the test of some nets on a data set is stored."""
    each = tuple(
        NetProtocol(net.weights, net.layer, one.Q, net.config.evaluation.flip, net.config.evaluation.precision)
        for net, one in zip(nets, asked, strict=True)
    )
    drawing = asdict(drawing_of(data.name, nets[0].config.transfer))
    how = (asked[0].combine, asked[0].boxes, drawing, len(data.partitions))
    return TransferProtocol(data.name, data.fingerprint, data.measure, each, *how, rows=data.split_fingerprint)


def transferred(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet) -> Transferred:
    """What :func:`transfer` stored. Raises UserError."""
    found = load_transferred(protocol_of(nets, asked, data), nets[0].run.transfers)
    assert found is not None, (nets, asked)
    return found


def _names(nets: Iterable[FeatureNet]) -> str:
    return " + ".join(net.config.name for net in nets)


def _files(found: Transferred, folder: Path) -> list[Path]:
    """Where a test is stored."""
    asked = found.protocol
    return [truth_file(folder, asked.data), *(asked.file(folder, split) for split in range(asked.splits))]


def _submit(nets: Sequence[FeatureNet], data: TransferSet, folder: Path, session: Session) -> None:
    """Writes the files that the challenge's server takes, of the images that only it has labels of."""
    from vggrepro.evaluation.svm import classify

    assert data.submission is not None, data.name
    asked = _asked_together(nets, data.name)[-1 if data.boxes is not None else 0]
    session.watch.rest()
    with first_rank_first(session.topology):
        if session.topology.is_first:
            found = classify(described(nets, asked, data), data.targets, data.submission, data.measure, session.cores)
            kind = "comp10_action" if data.boxes is not None else "comp2_cls"
            for number, of_class in enumerate(data.classes):
                lines = [
                    f"{data.names[row]} {score:.6f}\n"
                    for row, score in zip(found.tested.rows, found.tested.scores[:, number], strict=True)
                ]
                RunDirectory(folder).write_text(f"{kind}_test_{of_class}.txt", "".join(lines))
