"""Is one error different from another? Paired tests, and comparison with a printed figure. No torch."""

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
    """Two results on the same images, whatever they measure: what a claim is judged by."""

    difference: float
    """Error of the first minus error of the second, percentage points."""
    interval: tuple[float, float]
    """95 % interval of the difference over the choice of images, points."""
    p_value: float
    """Two-sided."""
    n: int
    """Images."""


@dataclass(frozen=True)
class Paired(Comparison):
    """Two sets of guesses for the same images."""

    only_first_right: int
    only_second_right: int


def mcnemar(only_first_right: int, only_second_right: int, n: int) -> Paired:
    """Two sets of guesses for n images by McNemar's exact test, and the normal approximation for paired shares.

    The p-value is how likely so uneven a split of the disagreements is by chance.
    """
    from scipy.special import bdtr  # the binomial distribution; scipy.stats takes three times as long to import

    b, c = only_second_right, only_first_right
    difference = 100 * (b - c) / n
    half = 100 * Z_95 * math.sqrt(max(b + c - (b - c) ** 2 / n, 0)) / n
    p_value = min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))
    return Paired(difference, (difference - half, difference + half), p_value, n, only_first_right, only_second_right)


def paired_right(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compares two sides by which of the same images (n,) each gets right."""
    assert len(first) == len(second), "different images"
    return mcnemar(int((first & ~second).sum()), int((~first & second).sum()), len(first))


def paired_mean(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Comparison:
    """Compares two tests of several nets: for each net, which of the same images (n,) each test gets right.

    Each image counts with its mean over the nets; the p-value is of the normal approximation.
    """
    gain = np.mean([second.astype(float) - first for first, second in pairs], axis=0)
    difference = 100 * float(gain.mean())
    error = 100 * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(not difference)
    return Comparison(difference, (difference - Z_95 * error, difference + Z_95 * error), p_value, len(gain))


@dataclass(frozen=True)
class SeedSpread:
    """How far another seed moves an error, or the mean of some."""

    variance: float
    """Over the seeds, points squared."""
    df: float
    """Degrees of freedom it is known with."""

    def of_mean(self, n: int) -> Self:
        """Of the mean over n seeds."""
        return type(self)(self.variance / n, self.df)

    def __add__(self, other: Self) -> Self:
        """Of the difference of two that have their variances from other nets (Welch and Satterthwaite)."""
        whole = self.variance + other.variance
        apart = sum(one.variance**2 / one.df for one in (self, other))
        return type(self)(whole, whole**2 / apart if apart else self.df + other.df)

    @property
    def _error(self) -> float:
        return math.sqrt(self.variance)

    def interval(self, mean: float) -> tuple[float, float]:
        """95 % interval of such a mean (Student's t), points."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, 0.975)) * self._error
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """How likely a mean so far from 0 is by chance, two-sided."""
        from scipy.special import stdtr

        return 2 * float(stdtr(self.df, -abs(mean) / self._error)) if self._error else float(not mean)


Agreement = Literal["equal", "agrees", "lower", "higher"]
ROUNDING = 0.05
"""Half a unit of the last printed digit, percentage points."""
SAME = 1e-9
"""Points: two figures that are closer differ by floating point alone."""


def agreement(difference: float, agrees: bool) -> Agreement:
    """What a figure is beside a printed one, measured minus printed in points.

    equal: rounds to the printed figure. agrees: within what chance does. Else lower or higher than it.
    """
    if abs(difference) <= ROUNDING + SAME:
        return "equal"
    return "agrees" if agrees else "higher" if difference > 0 else "lower"


@dataclass(frozen=True)
class AgainstPrinted:
    """A measured error beside a figure that the paper prints, both in per cent."""

    measured: ErrorRate
    printed: float

    @property
    def difference(self) -> float:
        """Measured minus printed, percentage points."""
        return self.measured.percent - self.printed

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, points.

        Both figures are shares of a finite sample (the paper's of 50,000 images), and the printed one is rounded to
        0.1, which moves either end by 0.05. Where both are of the same images the interval is too wide, so a verdict
        of "lower" or "higher" holds all the more.
        """
        p, q = self.measured.percent / 100, self.printed / 100
        half = 100 * Z_95 * math.sqrt(p * (1 - p) / self.measured.n + q * (1 - q) / value("val_images"))
        return self.difference - half - ROUNDING, self.difference + half + ROUNDING

    @property
    def verdict(self) -> Agreement:
        """It agrees within both sampling errors."""
        low, high = self.interval
        return agreement(self.difference, low <= 0 <= high)
