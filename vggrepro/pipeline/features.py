"""Nets as feature extractors: how the paper takes features of a data set, and their store (Appendix B)."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Transfer
from vggrepro.data.transfer import TransferSet
from vggrepro.errors import UserError
from vggrepro.evaluation.asked import Asked, asked_of, drawing_of
from vggrepro.evaluation.features import FeatureProtocol, descriptors, load_features, save_features, stacked
from vggrepro.evaluation.parts import Parts, write_arrays
from vggrepro.models.table1 import architecture_of
from vggrepro.pipeline.session import Session
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import locate, stage_at

if TYPE_CHECKING:
    from vggrepro.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class FeatureNet:
    """A net whose features are taken."""

    config: Config
    """How it is tested."""
    stage: Config
    """As its run directory has it, or the checkpoint."""
    weights: str
    """Hash of the net."""
    step: int
    """After how many iterations."""
    run: RunDirectory
    """Where its features are stored."""
    load: Callable[[], Checkpoint]

    def under(self, settings: Transfer) -> FeatureNet:
        """The net, tested in this way."""
        return replace(self, config=self.config.model_copy(update={"transfer": settings}))

    @property
    def name(self) -> str:
        """`experiment:stage`."""
        return f"{self.config.run.experiment}:{self.config.name}"

    @property
    def layer(self) -> str:
        """Whose activations its features are."""
        return architecture_of(self.config).feature_layer

    def protocol(self, data: TransferSet, Q: int, *, boxes: bool) -> FeatureProtocol:
        """Of its features of a data set's images, or boxes, at one Q."""
        testing = self.config.evaluation
        of = data.boxes_fingerprint if boxes else ""
        own = (self.weights, self.layer, data.index.fingerprint, Q, testing.flip, testing.precision, of)
        return FeatureProtocol(*own)

    def extract(self, data: TransferSet, asked: Asked, session: Session) -> None:
        """Computes and stores the features that are asked for and not stored yet; every rank calls it.

        Raises UserError, and Interrupted; the same call then goes on.
        """
        for boxes in (False, True) if asked.boxes else (False,):
            self._extract(data, asked.Q, session, boxes=boxes)

    def _extract(self, data: TransferSet, Q: Sequence[int], session: Session, *, boxes: bool) -> None:
        from vggrepro.evaluation.methods import Settings, features, region_views, whole_views
        from vggrepro.evaluation.share import compute
        from vggrepro.evaluation.stage import as_the_net_expects
        from vggrepro.models.precision import set_arithmetic
        from vggrepro.training.stage import net_of

        wanted = [(side, self.protocol(data, side, boxes=boxes)) for side in Q]
        missing = from_first_rank([not one.file(self.run.features).exists() for _, one in wanted])
        if not any(missing):
            return
        testing = self.config.evaluation
        set_arithmetic(session.device, testing.precision)
        kept, settings = self.load(), Settings(testing.flip, testing.batch)
        net = net_of(kept, session.device)
        loader = as_the_net_expects(session.loader(self.config), kept.preprocessing)
        split, batch, crop = data.index.split("val"), testing.batch // settings.views, net.architecture.crop
        if boxes:
            split = split.take(data.image)
        for side, protocol in (one for one, lacks in zip(wanted, missing, strict=True) if lacks):
            parts = Parts(protocol.file(self.run.features))
            if boxes:
                assert data.boxes is not None, data.name
                views = region_views(split, data.boxes, side, batch, crop)
            else:
                views = whole_views(split, side, batch, crop)
            compute(
                parts,
                lambda shown: features(net, shown.images, settings).cpu().numpy()[:, None],
                loader,
                split,
                views,
                session.watch,
                testing.precision,
                name=self.config.name,
                doing=f"features of {data.name}{', boxes' if boxes else ''} at Q={side}",
            )
            if session.topology.is_first:
                _, values = parts.gather(len(split))
                if not np.isfinite(values).all():
                    raise UserError(
                        f"features of {data.name} by {self.name} at Q={side} are not all finite numbers; its weights "
                        f"are damaged, or evaluation.precision={testing.precision} is too low for them"
                    )
                save_features(protocol, values, self.run.features)
                parts.remove()

    def descriptors(self, data: TransferSet, asked: Asked) -> NDArray[np.float32]:
        """(samples, d) of length 1, of what is stored. Raises UserError."""
        image = descriptors(self._stored(data, asked.Q, boxes=False), asked.combine)
        if not np.array_equal(data.image, np.arange(len(image))):  # a copy of gigabytes
            image = image[data.image]
        if not asked.boxes:
            return image
        return stacked([image, descriptors(self._stored(data, asked.Q, boxes=True), asked.combine)])

    def _stored(self, data: TransferSet, Q: Sequence[int], *, boxes: bool) -> Iterator[NDArray[np.float32]]:
        for side in Q:
            values = load_features(self.protocol(data, side, boxes=boxes), self.run.features)
            assert values is not None, (self, side)
            yield values


def net_of_stage(config: Config) -> FeatureNet:
    """The final net of a finished stage. Raises UserError."""
    from vggrepro.training.stage import load_final, weights_of

    run, step = RunDirectory(config.directory), config.train.iterations
    return FeatureNet(config, config, weights_of(config), step, run, lambda: load_final(config))


def net_at(path: Path, changes: Sequence[str], sets: Mapping[str, str] | None = None) -> FeatureNet:
    """A net by its run directory or checkpoint, with `section.key=value` changes. Raises UserError.

    `sets` take the place of the data sets that its own configuration names.
    """
    from vggrepro.storage import checkpoint

    file, folder = locate(path)
    kept, run = checkpoint.load(file), RunDirectory(folder)
    if kept.stage.localisation:
        raise UserError(f"{path} predicts boxes; name a net that predicts classes, whose features are of the image")
    weights = checkpoint.weights_hash(kept.weights)
    stage = stage_at(folder) if path.is_dir() else kept.stage
    config = stage
    if sets:
        config = stage.model_copy(update={"transfer": stage.transfer.model_copy(update={"sets": {}})})
        changes = [*changes, f"transfer.sets={json.dumps(dict(sets), ensure_ascii=False)}"]
    return FeatureNet(override(config, changes, path), stage, weights, kept.step, run, lambda: kept)


def open_set(name: str, config: Config, session: Session) -> TransferSet:
    """One of a stage's data sets; rank 0 makes what others then find made. Raises UserError."""
    from vggrepro.data.transfer_scan import open_transfer
    from vggrepro.progress import progress
    from vggrepro.ranks.collectives import first_rank_first

    source, drawing, cache = config.transfer.sets[name], drawing_of(name, config.transfer), config.run.root / "index"
    with (
        first_rank_first(session.topology),
        progress(f"reading {name}", None, shown=session.topology.is_first) as update,
    ):
        return open_transfer(name, source, drawing, cache, lambda done, total: update(done, f"of {total}"))


@dataclass(frozen=True)
class Extracted:
    """The samples of a data set as one net, or several stacked, describe them."""

    data: TransferSet
    descriptors: NDArray[np.float32]
    """(samples, d), each of length 1."""
    asked: tuple[Asked, ...]
    """How each net's were made."""


def extract(nets: Sequence[FeatureNet], name: str, session: Session, *, boxes: bool = False) -> Extracted | None:
    """Features of one of the nets' data sets, computed where they are not stored; None on all ranks but the first.

    As the paper takes them, or as the nets' configurations say; with `boxes` those of the persons beside those of the
    images. Raises UserError and Interrupted.
    """
    asked = tuple(replace(asked_of(name, net.config)[0], boxes=boxes) for net in nets)
    data = open_set(name, nets[0].config, session)
    if boxes and data.boxes is None:
        raise UserError(f"--boxes: {name} has no boxes; leave it out")
    for net, one in zip(nets, asked, strict=True):
        net.extract(data, one, session)
    if not session.topology.is_first:
        return None
    return Extracted(data, described(nets, asked, data), asked)


def described(nets: Sequence[FeatureNet], asked: Sequence[Asked], data: TransferSet) -> NDArray[np.float32]:
    """(samples, d) descriptors of what is stored, those of several nets stacked. Raises UserError."""
    each = [net.descriptors(data, one) for net, one in zip(nets, asked, strict=True)]
    return stacked(each) if len(each) > 1 else each[0]


def write_features(file: Path, nets: Sequence[FeatureNet], found: Extracted) -> None:
    """Writes samples for other programs, all or nothing: an npz of plain arrays, without pickles (docs/transfer.md).

    X (samples, d) float32; Y (samples, classes) int8, 1, -1, or 0 for difficult; where each sample is of one class also
    y (samples,) int64; names and classes; split (splits, samples) int8, 1 learnt from, 2 held out, 3 tested, 0 neither;
    made_of, JSON. Raises UserError.
    """
    data = found.data
    split = np.zeros((len(data.partitions), len(data.image)), np.int8)
    for number, partition in enumerate(data.partitions):
        for code, rows in enumerate((partition.fit, partition.held_out, partition.test), 1):
            split[number, rows] = code
    made = [
        {"net": net.name, "weights": net.weights, "layer": net.layer} | asdict(one)
        for net, one in zip(nets, found.asked, strict=True)
    ]
    arrays: dict[str, NDArray[Any]] = {
        "X": found.descriptors,
        "Y": data.targets,
        "names": np.array(data.names),
        "classes": np.array(data.classes),
        "split": split,
        "made_of": np.array(json.dumps(made)),
    }
    if data.measure == "recall":
        arrays["y"] = data.targets.argmax(axis=1).astype(np.int64)
    try:
        write_arrays(file, **arrays)
    except OSError as error:
        raise _unwritable(file, error) from None


def require_writable(file: Path) -> None:
    """Raises UserError where :func:`write_features` could not write, which is known before features are computed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> UserError:
    return UserError(f"--out {file} cannot be written ({error.strerror}); choose another place")
