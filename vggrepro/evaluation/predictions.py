"""The store of predictions: what a test of nets says of each image, computed from posteriors once. No torch.

A test is of one net or of several fused, and its posteriors are a mean of stored sets, 200 MB each for ILSVRC. All that
tables, claims and comparisons need of that mean is 20 bytes per image, and lies beside the posteriors of the first net.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.errors import GUESSES, Ranks, true_class_rank
from vggrepro.evaluation.posteriors import PosteriorsKey, average
from vggrepro.evaluation.store import ArrayHeader, Key, array_header, array_rows, digest, read_arrays
from vggrepro.files import exclusive
from vggrepro.progress import warn
from vggrepro.storage.directory import RunDirectory

_ROWS = 512
"""Images whose posteriors are in memory at a time."""


@dataclass(frozen=True)
class Predictions(Ranks):
    """What a test predicts for n images, in the index's order."""

    guesses: NDArray[np.integer[Any]]
    """(n, 5) classes with the largest posteriors, best first; of equal ones the lower number first."""
    confidence: NDArray[np.float32]
    """(n,) posterior of the true class."""

    @classmethod
    def of(cls, values: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> Predictions:
        """The predictions of posteriors (n, classes), in the smallest integers that hold a class and a rank."""
        classes = values.shape[1]
        small = np.min_scalar_type(classes)
        left, guesses = values.copy(), np.empty((len(values), min(GUESSES, classes)), small)
        for place in range(guesses.shape[1]):  # far quicker than sorting a thousand classes
            guesses[:, place] = left.argmax(axis=1)
            left[np.arange(len(left)), guesses[:, place]] = -np.inf
        odd = ~np.isfinite(values).all(axis=1)
        guesses[odd] = np.argsort(-values[odd], axis=1, kind="stable")[:, :GUESSES]
        rank = np.minimum(true_class_rank(values, labels), np.iinfo(small).max)
        confidence = values[np.arange(len(labels)), labels]
        return cls(labels.astype(small), rank.astype(small), guesses, confidence)

    @property
    def guess(self) -> NDArray[np.integer[Any]]:
        """(n,) first guesses."""
        return self.guesses[:, 0]

    def wrong_by_class(self) -> dict[int, float]:
        """For each class that has images, the share of them whose first guess is wrong."""
        return {int(label): float((~self.right1[self.labels == label]).mean()) for label in np.unique(self.labels)}


@dataclass(frozen=True)
class StoredTest:
    """A test of one net: the mean of stored posteriors over Q inside each method, then over methods."""

    run: RunDirectory
    sets: tuple[tuple[PosteriorsKey, ...], ...]
    """By method and Q."""

    @cached_property
    def headers(self) -> list[ArrayHeader]:
        """Of the posteriors of all sets in a row; their shapes (images, classes) should be alike. Raises UserError."""
        return [array_header(key.file(self.run), "values") for key in chain.from_iterable(self.sets)]

    def labels(self) -> NDArray[np.int64]:
        """(n,) true classes. Raises UserError."""
        return read_arrays(self.sets[0][0].file(self.run), "labels")["labels"]

    def values(self) -> NDArray[np.float32]:
        """(n, classes) the mean of the sets. Raises UserError."""
        return np.concatenate(list(self.blocks()))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The mean, some images at a time: (rows, classes). Raises UserError."""
        readers = [[array_rows(key.file(self.run), "values", _ROWS) for key in over_Q] for over_Q in self.sets]
        for by_method in zip(*(zip(*over_Q, strict=True) for over_Q in readers), strict=True):
            yield average([average(over_Q) for over_Q in by_method])


@dataclass(frozen=True)
class PredictionsKey(Key[Predictions]):
    """Identifies the predictions of a test by the sets of posteriors and their contents."""

    folder = "predictions"
    value_type = Predictions

    nets: tuple[tuple[tuple[PosteriorsKey, ...], ...], ...]
    """Of each net the sets by method and Q."""
    checksums: tuple[int, ...]
    """CRC-32 of all posteriors in a row."""

    @classmethod
    def of(cls, tests: Sequence[StoredTest]) -> PredictionsKey:
        """The key of a test of some nets. Raises UserError."""
        checksums = tuple(header.checksum for test in tests for header in test.headers)
        return cls(tuple(test.sets for test in tests), checksums)

    @property
    def stem(self) -> str:
        """Methods and Q of the first net, how many nets, and a hash."""
        methods = "_".join(over_Q[0].method for over_Q in self.nets[0])
        Q = "_".join(str(key.Q) for key in self.nets[0][0])
        return f"{methods}-Q{Q}-nets{len(self.nets)}-{digest(self)}"


def predictions(tests: Sequence[StoredTest]) -> Predictions:
    """The predictions of one net, or of several fused (Section 4.4), tested on the same images.

    They are computed once, by one process, and stored in the first net's run directory. Raises UserError.
    """
    key, run = PredictionsKey.of(tests), tests[0].run
    if found := _load(key, run):
        return found
    with exclusive(run.path / ".predictions.lock"):
        if found := _load(key, run):  # another process was faster
            return found
        found = _compute(tests)
        try:
            key.save(run, found)
        except OSError as error:
            _note_unwritable(run.path / key.folder, error.strerror)
        return found


def _load(key: PredictionsKey, run: RunDirectory) -> Predictions | None:
    with suppress(UserError):  # a damaged file is made again
        return key.load(run)
    return None


def _compute(tests: Sequence[StoredTest]) -> Predictions:
    labels = tests[0].labels()
    assert all(np.array_equal(test.labels(), labels) for test in tests[1:]), "fusion over different images"
    parts, first = [], 0
    for nets in zip(*(test.blocks() for test in tests), strict=True):
        values = average(nets)
        parts.append(Predictions.of(values, labels[first : first + len(values)]))
        first += len(values)
    joined = {each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Predictions)}
    return Predictions(**joined)


@cache
def _note_unwritable(folder: Path, reason: str | None) -> None:
    warn(f"{folder} cannot be written to ({reason}): posteriors are read again each time")
