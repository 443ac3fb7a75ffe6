"""Significance of differences: paired tests, and comparison with a printed figure. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.errors import Z_95, ErrorRate
from vggrepro.paper import value


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two results on the same images, the basis of a claim's verdict."""

    difference: float
    """Error of the first minus error of the second, percentage points."""
    interval: tuple[float, float]
    """95 % interval of the difference over the choice of images, points."""
    p_value: float
    """Two-sided p-value."""
    n: int
    """Number of images."""


@dataclass(frozen=True)
class Paired(Comparison):
    """Comparison of two sets of guesses for the same images."""

    only_first_right: int
    only_second_right: int


def mcnemar(only_first_right: int, only_second_right: int, n: int) -> Paired:
    """Compares two sets of guesses for n images by McNemar's exact test.

    The interval is the normal approximation for paired proportions.

    Args:
        only_first_right: Images that only the first set has right.
        only_second_right: Images that only the second set has right.
        n: All images.
    """
    from scipy.special import bdtr  # the binomial distribution; scipy.stats takes three times as long to import

    b, c = only_second_right, only_first_right
    difference = 100 * (b - c) / n
    half = 100 * Z_95 * math.sqrt(max(b + c - (b - c) ** 2 / n, 0)) / n
    p_value = min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))
    return Paired(difference, (difference - half, difference + half), p_value, n, only_first_right, only_second_right)


def paired_right(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compares two sides, each given as which of the same images it has right, shape (n,)."""
    assert len(first) == len(second), "different images"
    return mcnemar(int((first & ~second).sum()), int((~first & second).sum()), len(first))


def paired_mean(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Comparison:
    """Compares two tests of the same nets, with images averaged over the nets.

    Interval and p-value are normal approximations.

    Args:
        pairs: For each net, which of the same images the first and the second test have right, shape (n,) each.
    """
    gain = np.mean([second.astype(float) - first for first, second in pairs], axis=0)
    difference = 100 * float(gain.mean())
    error = 100 * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(not difference)
    return Comparison(difference, (difference - Z_95 * error, difference + Z_95 * error), p_value, len(gain))


@dataclass(frozen=True)
class SeedSpread:
    """Variation of an error, or of a mean of errors, over seeds."""

    variance: float
    """Variance over the seeds, points squared."""
    df: float
    """Degrees of freedom of the variance."""

    def of_mean(self, n: int) -> Self:
        """Returns the spread of the mean over n seeds."""
        return type(self)(self.variance / n, self.df)

    def __add__(self, other: Self) -> Self:
        """Returns the spread of a difference whose terms have independent variances (Welch-Satterthwaite)."""
        total = self.variance + other.variance
        weighted = sum(spread.variance**2 / spread.df for spread in (self, other))
        return type(self)(total, total**2 / weighted if weighted else self.df + other.df)

    @property
    def _error(self) -> float:
        return math.sqrt(self.variance)

    def interval(self, mean: float) -> tuple[float, float]:
        """Returns the 95 % interval around a mean by Student's t, points."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, 0.975)) * self._error
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Returns the two-sided p-value of a mean by Student's t."""
        from scipy.special import stdtr

        return 2 * float(stdtr(self.df, -abs(mean) / self._error)) if self._error else float(not mean)


Agreement = Literal["equal", "agrees", "lower", "higher"]
ROUNDING = 0.05
"""Half a unit of the last printed digit, percentage points."""
SAME = 1e-9
"""Differences below this, in points, are rounding errors of floating point."""


def agreement(difference: float, agrees: bool) -> Agreement:
    """Classifies the difference of a measured and a printed figure.

    Args:
        difference: Measured minus printed, points.
        agrees: Whether the difference is within the sampling error.

    Returns:
        "equal" if the measured figure rounds to the printed one, else "agrees", "lower" or "higher".
    """
    if abs(difference) <= ROUNDING + SAME:
        return "equal"
    return "agrees" if agrees else "higher" if difference > 0 else "lower"


@dataclass(frozen=True)
class AgainstPrinted:
    """Comparison of a measured error with a printed one in per cent."""

    measured: ErrorRate
    printed: float

    @property
    def difference(self) -> float:
        """Measured minus printed, percentage points."""
        return self.measured.percent - self.printed

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, points.

        Both figures are proportions of a finite sample (the paper's has 50,000 images), and rounding of the printed
        one moves either end by 0.05. For the same images the interval is too wide, so a verdict of "lower" or "higher"
        is conservative.
        """
        p, q = self.measured.percent / 100, self.printed / 100
        half = 100 * Z_95 * math.sqrt(p * (1 - p) / self.measured.n + q * (1 - q) / value("val_images"))
        return self.difference - half - ROUNDING, self.difference + half + ROUNDING

    @property
    def verdict(self) -> Agreement:
        """Verdict given the sampling errors of both figures."""
        low, high = self.interval
        return agreement(self.difference, low <= 0 <= high)
