"""Stored results of a net, and the errors of one net or of several fused. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Evaluation
from vggrepro.evaluation.box_store import CENTRE, DENSE, FoundKey, PlacesKey
from vggrepro.evaluation.errors import ErrorRate, Ranks, true_class_rank
from vggrepro.evaluation.features import FeaturesKey
from vggrepro.evaluation.posteriors import PosteriorsKey, average
from vggrepro.evaluation.predictions import StoredTest, predictions
from vggrepro.storage.directory import RunDirectory

COMBINED: Mapping[str, tuple[str, ...]] = {"both": ("dense", "multicrop")}
"""Methods that are the mean of others (Section 4.3)."""


@dataclass(frozen=True)
class Scored:
    """Posteriors under a protocol, averaged over Q and methods."""

    method: str
    Q: tuple[int, ...]
    values: NDArray[np.float32]
    """Posteriors, shape (n, classes)."""
    labels: NDArray[np.int64]
    """True classes, shape (n,)."""

    @property
    def ranks(self) -> Ranks:
        """Ranks of the true classes."""
        return Ranks(self.labels, true_class_rank(self.values, self.labels))

    @property
    def measured(self) -> Measured:
        """Top-1 and top-5 error."""
        return Measured.of(self.method, self.Q, self.ranks)


@dataclass(frozen=True)
class Measured:
    """Errors of one net, or of several fused, under a protocol."""

    method: str
    Q: tuple[int, ...]
    top1: ErrorRate
    top5: ErrorRate

    @classmethod
    def of(cls, method: str, Q: tuple[int, ...], ranks: Ranks) -> Measured:
        """Computes the errors from the ranks of the true classes."""
        return cls(method, Q, ranks.top1, ranks.top5)


def methods_of(method: str) -> tuple[str, ...]:
    """Returns the methods whose posteriors a method averages: itself, or its components."""
    return COMBINED.get(method, (method,))


@dataclass(frozen=True)
class NetResults:
    """Results of a net for the images of an index in a run directory: their keys and the stored posteriors."""

    run: RunDirectory
    weights: str
    """SHA-256 of the net."""
    data: str
    """Fingerprint of the index."""
    testing: Evaluation
    boxes: str = ""
    """Fingerprint of the true boxes, for localisation nets."""

    def posteriors(self, method: str, Q: int) -> PosteriorsKey:
        """Returns the key of posteriors by a method at one Q. A centre crop is never mirrored."""
        flip = self.testing.flip and method != "centre"
        return PosteriorsKey(self.weights, self.data, method, Q, flip, self.testing.precision)

    def features(self, layer: str, Q: int, boxes: str = "") -> FeaturesKey:
        """Returns the key of features of the images, or of the boxes of a fingerprint, at one Q."""
        return FeaturesKey(self.weights, layer, self.data, Q, self.testing.flip, self.testing.precision, boxes)

    def centre_boxes(self, Q: int) -> FoundKey:
        """Returns the key of Table 8's test: the centre crop with the true class."""
        return FoundKey((self._places(CENTRE, Q, ""),))

    def places(self, Q: Iterable[int], guesses: str) -> tuple[PlacesKey, ...]:
        """Returns the keys of the boxes that Table 9's test pools: all positions at each Q, for guesses of a hash."""
        return tuple(self._places(DENSE, side, guesses) for side in Q)

    def _places(self, method: str, Q: int, guesses: str) -> PlacesKey:
        return PlacesKey(method, Q, self.weights, self.data, self.boxes, guesses, self.testing.precision)

    def lacking(self, tests: Iterable[tuple[str, Iterable[int]]]) -> list[PosteriorsKey]:
        """Returns the keys of the posteriors that tests (method, Q) need and that are not stored, ascending in Q."""
        wanted = {self.posteriors(part, Q) for method, sides in tests for part in methods_of(method) for Q in sides}
        return sorted((key for key in wanted if not key.exists(self.run)), key=lambda key: (key.Q, key.method))

    def test(self, method: str, Q: tuple[int, ...]) -> StoredTest | None:
        """Returns the stored posteriors that a test by a method at some Q averages; None if some are missing."""
        if self.lacking([(method, Q)]):
            return None
        sets = [tuple(self.posteriors(part, side) for side in Q) for part in methods_of(method)]
        return StoredTest(self.run, tuple(sets))

    def scored(self, method: str, Q: tuple[int, ...]) -> Scored | None:
        """Returns posteriors averaged over Q inside each method, then over methods; None if some are missing.

        Raises:
            UserError: a stored file cannot be used.
        """
        test = self.test(method, Q)
        return Scored(method, Q, test.values(), test.labels()) if test else None

    def measured(self, method: str, Q: tuple[int, ...]) -> Measured | None:
        """Returns the errors of :meth:`scored`; posteriors are read the first time only. Raises UserError."""
        test = self.test(method, Q)
        return Measured.of(method, Q, predictions([test])) if test else None


def fuse(nets: Sequence[Scored]) -> Scored:
    """Averages nets that are each averaged over their Q (Section 4.4)."""
    assert len({net.method for net in nets}) == 1, "fusion of different methods"
    assert all(np.array_equal(net.labels, nets[0].labels) for net in nets), "fusion over different images"
    Q = fused_Q([net.Q for net in nets])
    return Scored(nets[0].method, Q, average([net.values for net in nets]), nets[0].labels)


def fused_Q(sides: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the Q of fused nets: their common Q, or the union."""
    different = set(sides)
    return different.pop() if len(different) == 1 else tuple(sorted(set().union(*different)))
