"""The store of predictions: the outcome of a test for each image, computed once from posteriors. No torch.

The posteriors of a test, of one net or of several fused, are a mean of stored sets of 200 MB each for ILSVRC. Tables,
claims and comparisons need 20 bytes per image of this mean, which are stored beside the first net's posteriors.
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

_ROWS_AT_ONCE = 512
"""Number of images whose posteriors are in memory at a time."""


@dataclass(frozen=True)
class Predictions(Ranks):
    """Predictions of a test for n images, in the index's order."""

    guesses: NDArray[np.integer[Any]]
    """Classes with the largest posteriors, best first, shape (n, 5); ties go to the lower class number."""
    confidence: NDArray[np.float32]
    """Posterior of the true class, shape (n,)."""

    @classmethod
    def of(cls, values: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> Predictions:
        """Computes predictions from posteriors (n, classes), in the smallest integer type that holds a class."""
        classes = values.shape[1]
        dtype = np.min_scalar_type(classes)
        remaining, guesses = values.copy(), np.empty((len(values), min(GUESSES, classes)), dtype)
        for k in range(guesses.shape[1]):  # far faster than sorting a thousand classes
            guesses[:, k] = remaining.argmax(axis=1)
            remaining[np.arange(len(remaining)), guesses[:, k]] = -np.inf
        not_finite = ~np.isfinite(values).all(axis=1)
        guesses[not_finite] = np.argsort(-values[not_finite], axis=1, kind="stable")[:, :GUESSES]
        rank = np.minimum(true_class_rank(values, labels), np.iinfo(dtype).max)
        confidence = values[np.arange(len(labels)), labels]
        return cls(labels.astype(dtype), rank.astype(dtype), guesses, confidence)

    @property
    def guess(self) -> NDArray[np.integer[Any]]:
        """First guesses, shape (n,)."""
        return self.guesses[:, 0]

    def wrong_by_class(self) -> dict[int, float]:
        """Returns the top-1 error of each class that has images, as a fraction."""
        return {int(label): float((~self.right1[self.labels == label]).mean()) for label in np.unique(self.labels)}


@dataclass(frozen=True)
class StoredTest:
    """A test of a net: the mean of stored posteriors over Q inside each method, then over methods."""

    run: RunDirectory
    sets: tuple[tuple[PosteriorsKey, ...], ...]
    """Keys by method and Q."""

    @cached_property
    def headers(self) -> list[ArrayHeader]:
        """Headers of the posteriors of all sets in order. Raises UserError."""
        return [array_header(key.file(self.run), "values") for key in chain.from_iterable(self.sets)]

    def labels(self) -> NDArray[np.int64]:
        """Reads the true classes, shape (n,). Raises UserError."""
        return read_arrays(self.sets[0][0].file(self.run), "labels")["labels"]

    def values(self) -> NDArray[np.float32]:
        """Computes the mean of the sets, shape (n, classes). Raises UserError."""
        return np.concatenate(list(self.blocks()))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the mean for some images at a time, shape (rows, classes). Raises UserError."""
        readers = [[array_rows(key.file(self.run), "values", _ROWS_AT_ONCE) for key in over_Q] for over_Q in self.sets]
        for by_method in zip(*(zip(*over_Q, strict=True) for over_Q in readers), strict=True):
            yield average([average(over_Q) for over_Q in by_method])


@dataclass(frozen=True)
class PredictionsKey(Key[Predictions]):
    """Key of the predictions of a test: the sets of posteriors and their checksums."""

    folder = "predictions"
    value_type = Predictions

    nets: tuple[tuple[tuple[PosteriorsKey, ...], ...], ...]
    """Keys of the posteriors by net, method and Q."""
    checksums: tuple[int, ...]
    """CRC-32 of all posteriors in order."""

    @classmethod
    def of(cls, tests: Sequence[StoredTest]) -> PredictionsKey:
        """Returns the key of a test of some nets. Raises UserError."""
        checksums = tuple(header.checksum for test in tests for header in test.headers)
        return cls(tuple(test.sets for test in tests), checksums)

    @property
    def stem(self) -> str:
        """Methods and Q of the first net, the number of nets, and a hash."""
        methods = "_".join(over_Q[0].method for over_Q in self.nets[0])
        Q = "_".join(str(key.Q) for key in self.nets[0][0])
        return f"{methods}-Q{Q}-nets{len(self.nets)}-{digest(self)}"


def predictions(tests: Sequence[StoredTest]) -> Predictions:
    """Returns the predictions of one net, or of several fused (Section 4.4), tested on the same images.

    They are computed once, by a single process, and stored in the first net's run directory. Raises UserError.
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
    with suppress(UserError):  # a damaged file is written again
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
    joined = {
        column.name: np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Predictions)
    }
    return Predictions(**joined)


@cache
def _note_unwritable(folder: Path, reason: str | None) -> None:
    warn(f"{folder} cannot be written to ({reason}): posteriors are read again each time")
