"""Error rates from posteriors, with their uncertainty. No torch: arithmetic on arrays."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def true_class_rank(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many classes are guessed before the true one; scores (n, classes), larger is better.

    Of equal scores the lower class number is guessed first, so a net that says nothing is right by chance only.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def is_right(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(n,) whether the true class is among the first k guesses. A score that is not a number counts as wrong."""
    return (true_class_rank(scores, labels) < k) & np.isfinite(scores).all(axis=1)


def error_rate(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> ErrorRate:
    """Top-k error of scores or posteriors (n, classes)."""
    return ErrorRate(int(len(labels) - is_right(scores, labels, k).sum()), len(labels))
