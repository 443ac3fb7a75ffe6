"""Is one error different from another? Paired tests, and comparison with a printed figure. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.errors import Z_95, ErrorRate, is_right
from vggrepro.paper import value


class Comparison(Protocol):
    """Two results on the same images, whatever they measure: what a claim is judged by."""

    @property
    def difference(self) -> float:
        """Error of the first minus error of the second, percentage points."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, points."""

    @property
    def p_value(self) -> float:
        """Two-sided."""

    @property
    def n(self) -> int:
        """Images."""


@dataclass(frozen=True)
class Paired:
    """Two sets of guesses for the same images."""

    only_first_right: int
    only_second_right: int
    n: int

    @property
    def difference(self) -> float:
        """Error of the first minus error of the second, percentage points."""
        return 100 * (self.only_second_right - self.only_first_right) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, points (normal approximation for paired shares)."""
        b, c = self.only_second_right, self.only_first_right
        half = 100 * Z_95 * math.sqrt(max(b + c - (b - c) ** 2 / self.n, 0)) / self.n
        return self.difference - half, self.difference + half

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven a split of the disagreements is by chance."""
        from scipy.special import bdtr  # the binomial distribution; scipy.stats takes three times as long to import

        fewer = min(self.only_first_right, self.only_second_right)
        disagreements = self.only_first_right + self.only_second_right
        return min(1.0, 2 * float(bdtr(fewer, disagreements, 0.5)))


def paired(first: NDArray[Any], second: NDArray[Any], labels: NDArray[np.int64], k: int) -> Paired:
    """Compares two posteriors (n, classes) of the same images by their first k guesses."""
    return paired_right(is_right(first, labels, k), is_right(second, labels, k))


def paired_right(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compares two sides by which of the same images (n,) each gets right."""
    assert len(first) == len(second), "different images"
    return Paired(int((first & ~second).sum()), int((~first & second).sum()), len(first))


@dataclass(frozen=True)
class PairedMean:
    """Two tests of the same nets on the same images, where each image counts with its mean over the nets."""

    gain: NDArray[np.float64]
    """(n,) share of the nets that only the second test got right minus share that only the first did."""

    @property
    def n(self) -> int:
        """Images."""
        return len(self.gain)

    @property
    def difference(self) -> float:
        """Mean error of the first minus mean error of the second, percentage points."""
        return 100 * float(self.gain.mean())

    @property
    def _error(self) -> float:
        return 100 * float(self.gain.std(ddof=1)) / math.sqrt(self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference over the choice of images, points."""
        half = Z_95 * self._error
        return self.difference - half, self.difference + half

    @property
    def p_value(self) -> float:
        """Two-sided, by the normal approximation."""
        return (
            math.erfc(abs(self.difference) / self._error / math.sqrt(2)) if self._error else float(not self.difference)
        )


def paired_mean(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> PairedMean:
    """Compares two tests of several nets: for each net, which of the same images (n,) each test gets right."""
    return PairedMean(np.mean([second.astype(float) - first for first, second in pairs], axis=0))


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


Verdict = Literal["equal", "agrees", "lower", "higher"]


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
    def verdict(self) -> Verdict:
        """equal: rounds to the printed figure. agrees: within both sampling errors. Else lower or higher than it."""
        if abs(self.difference) <= ROUNDING + 1e-9:
            return "equal"
        low, high = self.interval
        return "agrees" if low <= 0 <= high else ("higher" if low > 0 else "lower")


ROUNDING = 0.05
"""Half a unit of the last printed digit, percentage points."""
