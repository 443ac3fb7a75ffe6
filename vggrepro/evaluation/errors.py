"""Error rates from posteriors, with their uncertainty. No torch: arithmetic on arrays."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.paper import value

GUESSES: int = value("localisation_guesses")
"""Classes that may be named for an image, which is right when one of them is: in top-5 and localisation errors."""
Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class ErrorRate:
    """Share of images whose true class is not among the first k guesses."""

    wrong: int
    n: int

    @property
    def percent(self) -> float:
        """The error in per cent."""
        return 100 * self.wrong / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval, per cent."""
        share, spread = self.wrong / self.n, Z_95**2 / self.n
        middle = share + spread / 2
        half = Z_95 * math.sqrt(share * (1 - share) / self.n + spread / (4 * self.n))
        return tuple(100 * min(max((middle + sign * half) / (1 + spread), 0.0), 1.0) for sign in (-1, 1))  # type: ignore[return-value]


def true_class_rank(scores: NDArray[Any], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(n,) how many classes are guessed before the true one; scores (n, classes), larger is better.

    Of equal scores the lower class number is guessed first, so a net that says nothing is right by chance only. An
    image with a score that is not a number is wrong, however many guesses count: its rank is beyond all.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return np.where(np.isfinite(scores).all(axis=1), rank, np.iinfo(rank.dtype).max)


@dataclass(frozen=True)
class Ranks:
    """Where n images' true classes stand among a net's guesses: all that error rates and paired tests need."""

    labels: NDArray[np.integer[Any]]
    """(n,) true classes, in the index's order."""
    rank: NDArray[np.integer[Any]]
    """(n,) how many classes are guessed before the true one."""

    @cached_property
    def right1(self) -> NDArray[np.bool_]:
        """(n,) whether the true class is the first guess."""
        return self.rank < 1

    @cached_property
    def right5(self) -> NDArray[np.bool_]:
        """(n,) whether it is among the first five."""
        return self.rank < GUESSES

    @property
    def top1(self) -> ErrorRate:
        """Top-1 error."""
        return ErrorRate(int((~self.right1).sum()), len(self.rank))

    @property
    def top5(self) -> ErrorRate:
        """Top-5 error."""
        return ErrorRate(int((~self.right5).sum()), len(self.rank))
