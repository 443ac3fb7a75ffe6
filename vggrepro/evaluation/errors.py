"""Error rates and their uncertainty. No torch: arithmetic on arrays."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.paper import value

GUESSES: int = value("localisation_guesses")
"""Guesses per image in top-5 and localisation errors; the image is right if one of them is."""
Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class ErrorRate:
    """Fraction of n images that are wrong."""

    wrong: int
    n: int

    @property
    def percent(self) -> float:
        """Error in per cent."""
        return 100 * self.wrong / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval, per cent."""
        p, spread = self.wrong / self.n, Z_95**2 / self.n
        middle = p + spread / 2
        half = Z_95 * math.sqrt(p * (1 - p) / self.n + spread / (4 * self.n))
        return tuple(100 * min(max((middle + sign * half) / (1 + spread), 0.0), 1.0) for sign in (-1, 1))  # type: ignore[return-value]


def true_class_rank(scores: NDArray[Any], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Counts the classes that are ranked above the true one.

    For equal scores, the lower class number ranks first, so a constant net is right by chance only. An image with a
    score that is not finite is wrong for any number of guesses: it gets the largest rank.

    Args:
        scores: Shape (n, classes); larger is better.
        labels: True classes, shape (n,).

    Returns:
        Ranks from 0, shape (n,).
    """
    true_scores = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > true_scores) | ((scores == true_scores) & earlier)).sum(axis=1)
    return np.where(np.isfinite(scores).all(axis=1), rank, np.iinfo(rank.dtype).max)


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true classes of n images: all that error rates and paired tests need."""

    labels: NDArray[np.integer[Any]]
    """True classes in the index's order, shape (n,)."""
    rank: NDArray[np.integer[Any]]
    """Number of classes ranked above the true one, shape (n,)."""

    @cached_property
    def right1(self) -> NDArray[np.bool_]:
        """Whether the true class is the first guess, shape (n,)."""
        return self.rank < 1

    @cached_property
    def right5(self) -> NDArray[np.bool_]:
        """Whether the true class is among the first five guesses, shape (n,)."""
        return self.rank < GUESSES

    @property
    def top1(self) -> ErrorRate:
        """Top-1 error rate."""
        return ErrorRate(int((~self.right1).sum()), len(self.rank))

    @property
    def top5(self) -> ErrorRate:
        """Top-5 error rate."""
        return ErrorRate(int((~self.right5).sum()), len(self.rank))
