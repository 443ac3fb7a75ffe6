"""What a net answers for images, as stored, and its errors, or those of several nets together. No torch."""

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
    """Posteriors (n, classes) under a protocol, averaged over Q and methods, with labels (n,)."""

    method: str
    Q: tuple[int, ...]
    values: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def ranks(self) -> Ranks:
        """Where the true classes stand."""
        return Ranks(self.labels, true_class_rank(self.values, self.labels))

    @property
    def measured(self) -> Measured:
        """The errors."""
        return Measured.of(self.method, self.Q, self.ranks)


@dataclass(frozen=True)
class Measured:
    """The errors of one net, or of several fused, under one protocol."""

    method: str
    Q: tuple[int, ...]
    top1: ErrorRate
    top5: ErrorRate

    @classmethod
    def of(cls, method: str, Q: tuple[int, ...], ranks: Ranks) -> Measured:
        """The errors that ranks of the true classes make."""
        return cls(method, Q, ranks.top1, ranks.top5)


def methods_of(method: str) -> tuple[str, ...]:
    """The methods whose posteriors make up a method: itself, or those that it is the mean of."""
    return COMBINED.get(method, (method,))


@dataclass(frozen=True)
class NetResults:
    """What a net answers for the images of an index, stored in a run directory: the keys, and the posteriors read."""

    run: RunDirectory
    weights: str
    """SHA-256 of the net."""
    data: str
    """Fingerprint of the index."""
    testing: Evaluation
    boxes: str = ""
    """Fingerprint of the true boxes, for nets that predict boxes."""

    def posteriors(self, method: str, Q: int) -> PosteriorsKey:
        """The key of posteriors by one method at one Q. A centre crop is never mirrored."""
        flip = self.testing.flip and method != "centre"
        return PosteriorsKey(self.weights, self.data, method, Q, flip, self.testing.precision)

    def features(self, layer: str, Q: int, boxes: str = "") -> FeaturesKey:
        """The key of features of the images, or of the boxes of a fingerprint, at one Q."""
        return FeaturesKey(self.weights, layer, self.data, Q, self.testing.flip, self.testing.precision, boxes)

    def centre_boxes(self, Q: int) -> FoundKey:
        """The key of Table 8's test: the centre crop, the true class."""
        return FoundKey((self._places(CENTRE, Q, ""),))

    def places(self, Q: Iterable[int], guesses: str) -> tuple[PlacesKey, ...]:
        """The keys of what Table 9's test pools: all places at each Q, for guesses of a hash."""
        return tuple(self._places(DENSE, side, guesses) for side in Q)

    def _places(self, method: str, Q: int, guesses: str) -> PlacesKey:
        return PlacesKey(method, Q, self.weights, self.data, self.boxes, guesses, self.testing.precision)

    def lacking(self, tests: Iterable[tuple[str, Iterable[int]]]) -> list[PosteriorsKey]:
        """The keys of posteriors that are not stored, of tests by a method at each of some Q, ascending in Q."""
        wanted = {self.posteriors(part, Q) for method, sides in tests for part in methods_of(method) for Q in sides}
        return sorted((key for key in wanted if not key.exists(self.run)), key=lambda key: (key.Q, key.method))

    def test(self, method: str, Q: tuple[int, ...]) -> StoredTest | None:
        """The posteriors that a test by a method at some Q together is the mean of; None while some are not stored."""
        if self.lacking([(method, Q)]):
            return None
        sets = [tuple(self.posteriors(part, side) for side in Q) for part in methods_of(method)]
        return StoredTest(self.run, tuple(sets))

    def scored(self, method: str, Q: tuple[int, ...]) -> Scored | None:
        """Posteriors averaged over several Q inside each method, then over methods; None while some are not stored.

        Raises UserError for a stored file that cannot be used.
        """
        test = self.test(method, Q)
        return Scored(method, Q, test.values(), test.labels()) if test else None

    def measured(self, method: str, Q: tuple[int, ...]) -> Measured | None:
        """The errors of :meth:`scored`; posteriors are read the first time only. Raises UserError."""
        test = self.test(method, Q)
        return Measured.of(method, Q, predictions([test])) if test else None


def fuse(nets: Sequence[Scored]) -> Scored:
    """The mean over nets, each already averaged over its own Q (Section 4.4)."""
    assert len({net.method for net in nets}) == 1, "fusion of different methods"
    assert all(np.array_equal(net.labels, nets[0].labels) for net in nets), "fusion over different images"
    Q = fused_Q([net.Q for net in nets])
    return Scored(nets[0].method, Q, average([net.values for net in nets]), nets[0].labels)


def fused_Q(sides: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The Q of several nets fused: that of all, or every Q that one of them has."""
    different = set(sides)
    return different.pop() if len(different) == 1 else tuple(sorted(set().union(*different)))
