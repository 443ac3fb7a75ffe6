"""Feature extraction from transfer data sets, and storage of the features (Appendix B)."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.parsing import checked
from vggrepro.config.settings import Config, Transfer
from vggrepro.data.loading.loader import Batch
from vggrepro.data.transfer.transfer_scan import open_transfer
from vggrepro.data.transfer.transfer_set import TransferSet
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.feature_spec import FeatureSpec, drawing_of, feature_specs
from vggrepro.evaluation.features import Features, FeaturesKey, descriptors, stacked
from vggrepro.evaluation.methods import features, images_at_once, region_views, uncropped_views
from vggrepro.evaluation.run_split import Computation, SplitPass
from vggrepro.evaluation.store import array_rows, write_arrays
from vggrepro.evaluation.transfers import NetProtocol, TransferProtocol
from vggrepro.paper import Combine
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import Session
from vggrepro.ranks.collectives import from_first_rank

_ROWS = 512
"""Rows of features in memory at a time."""


@dataclass(frozen=True)
class Descriptors:
    """Stacked descriptors of the samples of a data set by one or several nets."""

    data: TransferSet
    nets: tuple[Net, ...]
    specs: tuple[FeatureSpec, ...]
    """Specification of each net's descriptors."""

    def extract(self, session: Session) -> None:
        """Computes and stores the missing features; every rank must call it. Raises UserError and Interrupted."""
        for net, spec in zip(self.nets, self.specs, strict=True):
            keys = [key for keys in self._keys(net, spec) for key in keys]
            if missing := from_first_rank([key for key in keys if not key.exists(net.run)]):
                self._extract(net, missing, session)

    def _extract(self, net: Net, keys: Iterable[FeaturesKey], session: Session) -> None:
        data, testing = self.data, net.config.evaluation
        model, loader = net.opened(session)
        batch, crop = images_at_once(testing), model.architecture.crop

        def predict(shown: Batch) -> NDArray[np.float32]:
            return features(model, shown.images, testing).cpu().numpy()[:, None]

        def to_value(Q: int, _: Ints, values: NDArray[np.float32]) -> Features:
            if not np.isfinite(values).all():
                raise UserError(
                    f"features of {data.name} by {net.name} at Q={Q} are not all finite numbers; its weights are "
                    f"damaged, or evaluation.precision={testing.precision} is too low for them"
                )
            return Features(values)

        for key in keys:
            split = data.index.split("val")
            if key.boxes:
                assert data.boxes is not None, data.name
                split = split.take(data.image)
                views = region_views(split, data.boxes, key.Q, batch, crop)
            else:
                views = uncropped_views(split, key.Q, batch, crop)
            computation = Computation(key, predict, partial(to_value, key.Q))
            shown = SplitPass(split, loader, session.watch, testing.precision)
            doing = f"features of {data.name}{', boxes' if key.boxes else ''} at Q={key.Q}"
            shown.store([computation], net.run, views, doing)

    def _keys(self, net: Net, spec: FeatureSpec) -> list[list[FeaturesKey]]:
        """Returns the keys at each Q for the images, followed by those for boxes if the specification has boxes."""
        results = net.results(self.data.index.fingerprint)
        regions = ["", self.data.boxes_fingerprint] if spec.boxes else [""]
        return [[results.features(net.layer, Q, region) for Q in spec.Q] for region in regions]

    def values(self) -> NDArray[np.float32]:
        """Reads the descriptors of unit length, shape (samples, d). Raises UserError."""
        values, filled = np.empty((len(self.data.image), 0), np.float32), 0
        for sets in zip(*map(self._blocks, self.nets, self.specs), strict=True):
            block = stacked(sets) if len(sets) > 1 else sets[0]
            if not filled:  # allocated once, because this may take gigabytes
                values = np.empty((len(values), block.shape[1]), np.float32)
            values[filled : filled + len(block)] = block
            filled += len(block)
        assert filled == len(values), "features of other samples"
        return values

    def _blocks(self, net: Net, spec: FeatureSpec) -> Iterator[NDArray[np.float32]]:
        image, *boxes = (_descriptors(net, keys, spec.combine) for keys in self._keys(net, spec))
        if not np.array_equal(self.data.image, np.arange(len(self.data.index.split("val")))):
            of_image, chosen = np.concatenate(list(image)), self.data.image
            image = (of_image[chosen[first : first + _ROWS]] for first in range(0, len(chosen), _ROWS))
        for sets in zip(image, *boxes, strict=True):
            yield stacked(sets) if boxes else sets[0]

    @property
    def protocol(self) -> TransferProtocol:
        """Protocol under which the tests of the nets on the data set are stored."""
        data, spec, first = self.data, self.specs[0], self.nets[0].config
        nets = tuple(
            NetProtocol(net.weights, net.layer, each.Q, net.config.evaluation.flip, net.config.evaluation.precision)
            for net, each in zip(self.nets, self.specs, strict=True)
        )
        drawing = asdict(drawing_of(data.name, first.transfer))
        how = (spec.combine, spec.boxes, drawing, len(data.partitions))
        return TransferProtocol(data.name, data.fingerprint, data.measure, nets, *how, rows=data.split_fingerprint)


def _descriptors(net: Net, keys: Iterable[FeaturesKey], combine: Combine) -> Iterator[NDArray[np.float32]]:
    """Yields blocks of descriptors, combined from stored features at several Q."""
    readers = [array_rows(key.file(net.run), "values", _ROWS) for key in keys]
    return (descriptors(at_scales, combine) for at_scales in zip(*readers, strict=True))


def net_at(path: Path, changes: Sequence[str], sets: Mapping[str, str] | None = None) -> Net:
    """Opens a net by its run directory or checkpoint; `sets` replaces its transfer data sets. Raises UserError."""
    net = Net.at(path, changes)
    if net.predicts_boxes:
        raise UserError(f"{path} predicts boxes; name a net that predicts classes")
    if not sets:
        return net
    return net.under(checked(Transfer, **net.config.transfer.model_dump() | {"sets": dict(sets)}))


def open_set(name: str, config: Config, session: Session) -> TransferSet:
    """Opens a transfer data set of a stage; rank 0 indexes it for the others. Raises UserError."""
    source, drawing, cache = config.transfer.sets[name], drawing_of(name, config.transfer), config.run.root / "index"
    with session.opening(f"reading {name}") as update:
        return open_transfer(name, source, drawing, cache, lambda done, total: update(done, f"of {total}"))


def extract(nets: Sequence[Net], name: str, session: Session, *, boxes: bool = False) -> Descriptors | None:
    """Extracts features of a transfer data set, with `boxes` also those of persons; returns None except on rank 0."""
    specs = tuple(replace(feature_specs(name, net.config)[0], boxes=boxes) for net in nets)
    data = open_set(name, nets[0].config, session)
    if boxes and data.boxes is None:
        raise UserError(f"--boxes: {name} has no boxes; omit the option")
    samples = Descriptors(data, tuple(nets), specs)
    samples.extract(session)
    return samples if session.topology.is_first else None


def write_features(file: Path, samples: Descriptors) -> tuple[int, int]:
    """Writes samples for other programs atomically, as an npz of plain arrays without pickles (docs/transfer.md).

    The arrays are X, float32 (samples, d); Y, int8 (samples, classes) with 1, -1, or 0 for difficult; y, int64
    (samples,), if each sample has one class; names; classes; split, int8 (splits, samples) with 1 for training, 2 for
    validation, 3 for test, 0 for unused; and made_of, JSON. Returns (samples, d). Raises UserError.
    """
    data, values = samples.data, samples.values()
    split = np.zeros((len(data.partitions), len(data.image)), np.int8)
    for number, partition in enumerate(data.partitions):
        for code, rows in enumerate((partition.fit, partition.validation, partition.test), 1):
            split[number, rows] = code
    sources = [
        {"net": net.name, "weights": net.weights, "layer": net.layer} | asdict(spec)
        for net, spec in zip(samples.nets, samples.specs, strict=True)
    ]
    arrays: dict[str, NDArray[Any]] = {
        "X": values,
        "Y": data.targets,
        "names": np.array(data.names),
        "classes": np.array(data.classes),
        "split": split,
        "made_of": np.array(json.dumps(sources)),
    }
    if data.measure == "recall":
        arrays["y"] = data.targets.argmax(axis=1).astype(np.int64)
    try:
        write_arrays(file, **arrays)
    except OSError as error:
        raise _unwritable(file, error) from None
    return values.shape


def require_writable(file: Path) -> None:
    """Raises UserError if :func:`write_features` could not write the file, before features are computed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> UserError:
    return UserError(f"--out {file} cannot be written ({error.strerror}); choose another path")
