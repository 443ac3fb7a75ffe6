"""Data sets that features are tested on (Appendix B): images, targets and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.index import Index
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.paper import Measure


@dataclass(frozen=True)
class Drawing:
    """Settings of random splits; only the seed matters if splits are published. Raises UserError for small numbers."""

    seed: int
    splits: int
    train_per_class: int
    """Training images per class, including those that select hyper-parameters."""
    test_per_class: int | None
    """Maximum number of test images per class; None: all that remain."""

    def __post_init__(self) -> None:
        least = {"splits": 1, "train_per_class": 2, "test_per_class": 1}
        for name, lowest in least.items():
            if (number := getattr(self, name)) is not None and number < lowest:
                raise UserError(f"{name}={number} must be at least {lowest}")


@dataclass(frozen=True)
class Partition:
    """Rows of the training, validation and test samples of a data set."""

    fit: Ints
    """Training samples while hyper-parameters are selected."""
    validation: Ints
    """Samples that select hyper-parameters, and are training samples after that."""
    test: Ints

    @property
    def train(self) -> Ints:
        """Training samples of the final classifier."""
        return np.concatenate([self.fit, self.validation])


@dataclass(frozen=True)
class TransferSet:
    """A downloaded data set. A sample is an image, or a person in an image."""

    name: str
    """A key of `paper.facts().transfer`, or the user's name for a folder of classes."""
    index: Index
    """All images, in `val`."""
    classes: tuple[str, ...]
    measure: Measure
    image: Ints
    """Image numbers in `index.split("val")`, shape (samples,)."""
    targets: NDArray[np.int8]
    """1: positive; -1: negative; 0: difficult, which is ignored; shape (samples, classes)."""
    partitions: Sequence[Partition]
    submission: Partition | None = None
    """All labelled samples, and as `test` those whose labels only the challenge's server has."""
    boxes: NDArray[np.float64] | None = None
    """Left, top, right and bottom of the persons, px, shape (samples, 4)."""
    names: Sequence[str] = ()
    """Sample names, shape (samples,): `accordion/image_0001.jpg`, `2007_000032`, `2010_006215 1`."""
    rejected: int = 0
    """Number of files in a folder of classes that are not usable as images, and are not samples."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of images, classes, targets and boxes, independent of paths and splits."""
        names = "\n".join([self.index.fingerprint, *self.classes, ""])
        return _sha256(
            names.encode(), _raw(self.targets, "<i1"), _raw(self.image, "<i8"), self.boxes_fingerprint.encode()
        )

    @cached_property
    def boxes_fingerprint(self) -> str:
        """SHA-256 (hex) of the persons' boxes and image numbers; empty without boxes."""
        return "" if self.boxes is None else _sha256(_raw(self.boxes, "<f8"), _raw(self.image, "<i8"))

    @cached_property
    def split_fingerprint(self) -> str:
        """SHA-256 (hex) of the splits."""
        parts = [rows for split in self.partitions for rows in (split.fit, split.validation, split.test)]
        return _sha256(*(len(rows).to_bytes(8, "little") + _raw(rows, "<i8") for rows in parts))


def _raw(array: NDArray[Any], kind: str) -> bytes:
    return np.ascontiguousarray(array, kind).tobytes()


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
