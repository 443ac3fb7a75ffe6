"""Linear classifiers on features of other data sets (Appendix B): those of a stage, of a graph, or of nets by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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
)
from vggrepro.pipeline.features import FeatureNet, described, net_at, net_of_stage, open_set
from vggrepro.pipeline.session import Session, open_session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.progress import echo
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished, known_weights, note_weights

_DONE = "transfers.json"  # what a stage was tested on, and how


def transfer_stage(config: Config, session: Session) -> None:
    """Tests a finished stage on the data sets that it names, and logs the figures. Raises UserError and Interrupted."""
    run = RunDirectory(config.directory)
    if from_first_rank(is_transferred(config)):
        return
    net = net_of_stage(config)
    with mirrored(config, run, session.topology):
        for name in config.transfer.sets:
            _test([net], name, session)
        if session.topology.is_first:
            run.write_json(_DONE, {"asked": _asked(config, net.weights)})


def is_transferred(config: Config) -> bool:
    """Whether a stage was tested on all data sets that its configuration names."""
    if not config.transfer.sets:
        return True
    run = RunDirectory(config.directory)
    weights, done = known_weights(run), run.read_json(_DONE)
    return bool(weights and done and done["asked"] == _asked(config, weights))


def _asked(config: Config, weights: str) -> str:
    told = (weights, config.transfer.model_dump_json(), config.evaluation.flip, config.evaluation.precision)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def transfer_together(stages: Iterable[Config], session: Session) -> None:
    """Tests the stages of a graph that name data sets together, their descriptors stacked, seed by seed.

    Nothing is done while one of them is not tested by itself: who comes last does it. Raises UserError and Interrupted.
    """
    by_seed: dict[int, list[Config]] = {}
    for config in stages:
        if config.transfer.sets:
            by_seed.setdefault(config.run.seed, []).append(config)
    for same in by_seed.values():
        if len(same) < 2 or not from_first_rank(all(is_finished(one) and is_transferred(one) for one in same)):
            continue
        nets = [net_of_stage(config) for config in same]
        with mirrored(same[0], nets[0].run, session.topology):
            for name in same[0].transfer.sets:
                if all(name in one.transfer.sets for one in same):
                    _test(nets, name, session)


def transfer_nets(
    runs: Sequence[Path], changes: Sequence[str], submission: Path | None = None
) -> list[Transferred] | None:
    """Tests nets, run directories or checkpoints, on the data sets that `changes` to their configurations name.

    Each by itself, then all of them with their descriptors stacked; None on all ranks but the first. With `submission`
    the files for the challenge's server are written there, of all nets together. Raises UserError and Interrupted.
    """
    nets = [net_at(run, changes) for run in runs]
    sets = nets[0].config.transfer.sets
    if not sets:
        raise UserError(f"{runs[0]} names no data set (transfer.sets); say --data NAME=PATH, e.g. caltech101=PATH")
    found: list[Transferred] = []
    with open_session([net.config for net in nets], training=False) as session:
        for run, net in zip(runs, nets, strict=True):
            if session.topology.is_first and run.is_dir() and known_weights(net.run) is None:
                note_weights(net.run, net.weights, 0)
        for name in sets:
            for some in [*([net] for net in nets), *([nets] if len(nets) > 1 else [])]:
                with mirrored(some[0].config, some[0].run, session.topology):
                    found += _test(some, name, session)
            if submission:
                _submit(nets, name, submission, session)
        return found if session.topology.is_first else None


def _test(nets: Sequence[FeatureNet], name: str, session: Session) -> list[Transferred]:
    """Every test of some nets on one of their data sets, stored, and logged in the first's run; on every rank."""
    data = open_set(name, nets[0].config, session)
    found = []
    for asked in zip(*(asked_of(name, net.config) for net in nets), strict=True):
        transfer(nets, asked, data, session)
        found.append(transferred(nets, asked, data) if session.topology.is_first else None)
    tests = [one for one in found if one is not None]
    if session.topology.is_first:
        run = nets[0].run
        record = {key: figure for one in tests for key, figure in _figures(nets, one).items()}
        known: dict[str, Any] = {}
        for one in run.records("evaluation"):
            known |= one
        if not record.items() <= known.items():
            run.append({"kind": "evaluation", "step": nets[0].config.train.iterations} | record)
    return tests


def _figures(nets: Sequence[FeatureNet], found: Transferred) -> dict[str, float]:
    """A test's figures under the names that metrics have: `transfer_caltech101_stack_3Q_recall`."""
    asked = found.protocol
    others = "".join(f"_and_{net.config.name}" for net in nets[1:])
    how = f"{asked.combine}_{len(asked.nets[0].Q)}Q{'_boxes' if asked.boxes else ''}"
    name = f"transfer_{asked.set}{others}_{how}_{asked.measure}"
    spread = found.result.spread
    return {name: found.result.mean} | ({} if spread is None else {f"{name}_spread": spread})


def transfer(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet, session: Session) -> None:
    """Tests nets on a data set, several with their descriptors stacked, and stores what came of it in the first's run.

    `asked` has one entry a net. Every rank calls it; what is stored is not computed again. Raises UserError, and
    Interrupted between two splits.
    """
    from vggrepro.evaluation.svm import classify

    first, folder = nets[0], nets[0].run.path / "transfers"
    protocol = protocol_of(nets, asked, data)
    if from_first_rank(is_stored(protocol, folder)):
        return
    for net, one in zip(nets, asked, strict=True):
        net.extract(data, one.Q, session)
        if one.boxes:
            net.extract(data, one.Q, session, boxes=True)
    samples: NDArray[Any] | None = None
    for number, partition in enumerate(data.partitions):
        session.watch.leave_together()
        with session.watch.waiting():
            if session.topology.is_first and not protocol.file(folder, number).exists():
                if samples is None:
                    samples = described(nets, asked, data)
                    save_truth(data.targets, first.run.transfers, data.fingerprint)
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
            from_first_rank(None)


def protocol_of(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet) -> TransferProtocol:
    """Under which the test of some nets on a data set is stored."""
    each = tuple(
        NetProtocol(net.weights, net.layer, one.Q, net.config.evaluation.flip, net.config.evaluation.precision)
        for net, one in zip(nets, asked, strict=True)
    )
    drawing = asdict(drawing_of(data.name, nets[0].config.transfer))
    how = (asked[0].combine, asked[0].boxes, drawing, len(data.partitions))
    return TransferProtocol(data.name, data.fingerprint, data.measure, each, *how)


def transferred(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet) -> Transferred:
    """What :func:`transfer` stored. Raises UserError."""
    found = load_transferred(protocol_of(nets, asked, data), nets[0].run.path / "transfers")
    assert found is not None, (nets, asked)
    return found


def _names(nets: Iterable[FeatureNet]) -> str:
    return " + ".join(net.config.name for net in nets)


def _submit(nets: Sequence[FeatureNet], name: str, folder: Path, session: Session) -> None:
    """Writes the files that the challenge's server takes, where a data set has images that only it has labels of."""
    from vggrepro.evaluation.svm import classify

    data = open_set(name, nets[0].config, session)
    if data.submission is None:
        raise UserError(
            f"--submission: {name} has no test images without labels; put its test archive beside the others, or leave "
            f"--submission out"
        )
    asked = tuple(asked_of(name, net.config)[-1 if data.boxes is not None else 0] for net in nets)
    with session.watch.waiting():
        if session.topology.is_first:
            found = classify(described(nets, asked, data), data.targets, data.submission, data.measure, session.cores)
            kind = "comp10_action" if data.boxes is not None else "comp2_cls"
            folder.mkdir(parents=True, exist_ok=True)
            for number, of_class in enumerate(data.classes):
                lines = [
                    f"{data.names[row]} {score:.6f}\n"
                    for row, score in zip(found.tested.rows, found.tested.scores[:, number], strict=True)
                ]
                RunDirectory(folder).write_text(f"{kind}_test_{of_class}.txt", "".join(lines))
        from_first_rank(None)
