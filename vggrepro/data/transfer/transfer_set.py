"""Data sets that features are tested on (Appendix B): their images, what is to be recognised, how they are split."""

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
    """How a folder of classes is split at random. Where a data set has splits of its own only the seed counts.

    Raises UserError for numbers that leave nothing to learn from, or nothing to test on.
    """

    seed: int
    splits: int
    train_per_class: int
    """Images; some of them decide hyper-parameters."""
    test_per_class: int | None
    """Most of a class; None: all the rest."""

    def __post_init__(self) -> None:
        least = {"splits": 1, "train_per_class": 2, "test_per_class": 1}
        for name, lowest in least.items():
            if (number := getattr(self, name)) is not None and number < lowest:
                raise UserError(f"{name}={number} is too few; give {lowest} or more")


@dataclass(frozen=True)
class Partition:
    """Rows of a data set's samples: those that are learnt from, and those that the result is measured on."""

    fit: Ints
    """Learnt from while hyper-parameters are chosen."""
    validation: Ints
    """Decide hyper-parameters, and are learnt from after that."""
    test: Ints

    @property
    def train(self) -> Ints:
        """All that the final classifier learns from."""
        return np.concatenate([self.fit, self.validation])


@dataclass(frozen=True)
class TransferSet:
    """A data set as it is downloaded. A sample is an image, or a person in one."""

    name: str
    """A key of `paper.facts().transfer`, or the user's own for a folder of classes."""
    index: Index
    """All its images, in `val`."""
    classes: tuple[str, ...]
    measure: Measure
    image: Ints
    """(samples,) rows of `index.split("val")`."""
    targets: NDArray[np.int8]
    """(samples, classes) 1: of the class; -1: not; 0: difficult, which counts neither way."""
    partitions: Sequence[Partition]
    submission: Partition | None = None
    """All labelled samples, and as `test` those whose labels only the challenge's server has."""
    boxes: NDArray[np.float64] | None = None
    """(samples, 4) left, top, right, bottom of the person, px."""
    names: Sequence[str] = ()
    """(samples,) what each is called: `accordion/image_0001.jpg`, `2007_000032`, `2010_006215 1`."""
    rejected: int = 0
    """Files of a folder of classes that cannot be used as images, and are no samples."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of images, classes, targets and boxes, wherever the files lie; not of how they are split."""
        names = "\n".join([self.index.fingerprint, *self.classes, ""])
        return _sha256(
            names.encode(), _raw(self.targets, "<i1"), _raw(self.image, "<i8"), self.boxes_fingerprint.encode()
        )

    @cached_property
    def boxes_fingerprint(self) -> str:
        """SHA-256 (hex) of the persons' boxes, and of which images they are in; empty without."""
        return "" if self.boxes is None else _sha256(_raw(self.boxes, "<f8"), _raw(self.image, "<i8"))

    @cached_property
    def split_fingerprint(self) -> str:
        """SHA-256 (hex) of how the samples are split."""
        parts = [rows for one in self.partitions for rows in (one.fit, one.validation, one.test)]
        return _sha256(*(len(rows).to_bytes(8, "little") + _raw(rows, "<i8") for rows in parts))


def _raw(array: NDArray[Any], kind: str) -> bytes:
    return np.ascontiguousarray(array, kind).tobytes()


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
