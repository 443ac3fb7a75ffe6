"""Scores of classifiers on the data sets of Appendix B, their uncertainty, and their comparison. No torch.

A score is a mean over classes of average precision or of recall, in per cent, averaged over the random splits of the
data set. Its sampling error is estimated by the Bayesian bootstrap (Rubin 1981), which repeats the score with random
weights of the test samples. Nothing is trained again, so the variation of training is only in the spread over splits.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.views import Ints
from vggrepro.evaluation.significance import ROUNDING, SAME, Agreement, Comparison, agreement
from vggrepro.paper import Measure, facts

Floats = NDArray[np.float64]
Targets = NDArray[np.int8]
"""Targets, shape (n, classes): 1 positive, -1 negative, 0 difficult, which does not count."""

DRAWS = 400
"""Number of bootstrap draws: ten lie outside each end of an interval, and the smallest p-value is 0.005."""


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Scores of the classifiers, one per class, for the test samples of a split."""

    rows: Ints
    """Rows of the samples in the data set, shape (m,)."""
    scores: NDArray[np.float32]
    """Decision values, shape (m, classes)."""


def average_precision(scores: NDArray[Any], targets: Targets, weights: NDArray[Any], *, points: bool) -> Floats:
    """Computes the average precision in [0, 1] of a class as VOC's development kit defines it, shape (draws,).

    Samples with target 0 are left out, and at least one target must be positive; scores and targets have shape (n,).
    Ties keep the order of the samples. `weights` (draws, n) count the samples in each draw. With `points`, interpolated
    precision is averaged over the recalls 0, 0.1, ..., 1 (VOC 2007); else it is the area under it (VOC 2010).
    """
    counts = np.flatnonzero(targets)
    assert np.isfinite(scores).all(), "a score is not a number"
    order = counts[np.argsort(-scores[counts], kind="stable")]
    positive = np.flatnonzero(targets[order] > 0)
    assert len(positive), "no positive sample"
    ordered = weights[:, order].astype(np.float64)
    # Precision peaks, and recall changes, only at positive samples.
    found = np.cumsum(ordered[:, positive], axis=1)
    taken = np.cumsum(ordered, axis=1)[:, positive]
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if not points:
        return (ordered[:, positive] * beyond).sum(axis=1) / found[:, -1]
    # A recall of 0.3 is reached by 3 of 10, which 0.1 + 0.1 + 0.1 in floating point is not.
    reached = [(found < tenth / 10 * found[:, -1:] * (1 - 1e-9)).sum(axis=1) for tenth in range(11)]
    return np.mean([beyond[np.arange(len(beyond)), at] for at in reached], axis=0)


def recall_of_classes(scores: NDArray[Any], targets: Targets, weights: NDArray[Any]) -> Floats:
    """Computes the recall in [0, 1] of each class, nan without samples, shape (draws, classes).

    Scores and targets have shape (n, classes), with one positive target per sample. Ties between scores go to the lower
    class number. `weights` (draws, n) count the samples in each draw.
    """
    of_class = targets > 0
    assert (of_class.sum(axis=1) == 1).all(), "a sample is not of one class"
    assert np.isfinite(scores).all(), "a score is not a number"
    right = of_class[np.arange(len(scores)), scores.argmax(axis=1)]
    totals, hits = weights @ of_class.astype(np.float64), weights @ (of_class & right[:, None]).astype(np.float64)
    return np.divide(hits, totals, out=np.full(totals.shape, np.nan), where=totals > 0)


def measured(measure: Measure, scores: NDArray[Any], targets: Targets) -> float:
    """Computes the mean average precision, or mean recall, of scores (n, classes) in per cent.

    Classes without a positive sample are left out of the mean; at least one must have some.
    """
    return float(_measured(measure, scores, targets, np.ones((1, len(scores))))[0])


def _measured(measure: Measure, scores: NDArray[Any], targets: Targets, weights: NDArray[Any]) -> Floats:
    """Returns the score for weights (draws, n) in per cent, shape (draws,)."""
    assert scores.shape == targets.shape, "scores of other samples or classes"
    present = np.flatnonzero((targets > 0).any(axis=0))
    assert len(present), "no positive sample of any class"
    if measure == "recall":
        return 100 * recall_of_classes(scores, targets, weights)[:, present].mean(axis=1)
    points = measure == "mAP11"
    figures_of_splits = [average_precision(scores[:, c], targets[:, c], weights, points=points) for c in present]
    return 100 * np.mean(figures_of_splits, axis=0)


@dataclass(frozen=True, eq=False)
class Recognition:
    """Result on a data set, with a test per split."""

    measure: Measure
    targets: Targets
    """Targets of the full data set, shape (samples, classes)."""
    tested: Sequence[SplitScores]

    @cached_property
    def figures(self) -> list[float]:
        """Scores of the splits, per cent."""
        return [measured(self.measure, split.scores, self.targets[split.rows]) for split in self.tested]

    @property
    def mean(self) -> float:
        """Mean over the splits, per cent."""
        return statistics.mean(self.figures)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the splits, points; None for a single split."""
        return statistics.stdev(self.figures) if len(self.figures) > 1 else None

    @cached_property
    def draws(self) -> Floats:
        """Bootstrap draws of the mean, shifted to be centred on `mean`, per cent, shape (DRAWS,).

        A sample has the same weight in all splits, because their test images overlap, and in all results on the data
        set, which makes results paired.

        The shift removes a bias: interpolated precision is higher if fewer samples count, by most of a point for 80
        positives per class. A printed score of the same test set has this bias once, as ours; the draws have it twice.
        """
        weights = _weights(len(self.targets))
        figures_of_splits = [
            _measured(self.measure, split.scores, self.targets[split.rows], weights[:, split.rows])
            for split in self.tested
        ]
        drawn = np.mean(figures_of_splits, axis=0)
        return drawn + (self.mean - drawn.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over the choice of test samples, per cent."""
        low, high = _central_interval(self.draws)
        return max(low, 0.0), min(high, 100.0)

    @property
    def n(self) -> int:
        """Number of distinct test samples over all splits."""
        return len(np.unique(np.concatenate([split.rows for split in self.tested])))


@lru_cache(1)  # the tests of a data set follow each other
def _weights(n: int) -> Floats:
    """Draws exponentially distributed weights of n samples, shape (DRAWS, n)."""
    # Raw words, because numpy guarantees a generator's stream but not its distributions (as in data/sampler.py).
    weights = (np.random.Philox(key=0).random_raw(DRAWS * n) >> np.uint64(11)).astype(np.float64)
    weights *= -(2.0**-53)
    np.negative(np.log1p(weights, out=weights), out=weights)
    return weights.reshape(DRAWS, n)


def _central_interval(draws: Floats) -> tuple[float, float]:
    """Returns the central 95 % interval of the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def compare(first: Recognition, second: Recognition) -> Comparison:
    """Compares two results on the same samples and splits by the same bootstrap draws.

    The error is 100 minus the score. The p-value counts the draws on the other side of 0 and is never 0.
    """
    assert first.measure == second.measure, "different measures"
    assert np.array_equal(first.targets, second.targets), "different data sets"
    for left, right in zip(first.tested, second.tested, strict=True):
        assert np.array_equal(left.rows, right.rows), "different test samples"
    draws = second.draws - first.draws
    fewer = min(int((draws < SAME).sum()), int((draws > -SAME).sum()))
    p_value = min(1.0, 2 * (1 + fewer) / (1 + DRAWS))
    return Comparison(second.mean - first.mean, _central_interval(draws), p_value, first.n)


PRINTED_SPLITS: int = facts().transfer["caltech101"].splits or 1
"""Number of splits of the paper's spreads; equal for Caltech-256."""


def against_printed(
    mean: float,
    spread: float | None,
    splits: int,
    printed: float,
    printed_spread: float | None,
    interval: tuple[float, float],
) -> Agreement:
    """Compares a measured score with a printed one, all in per cent.

    They agree if Welch's t-test over our splits and the paper's three finds no difference at 5 %. If either side has no
    spread, they agree if the printed score is in the interval.
    """
    if spread is not None and printed_spread is not None:
        from scipy.stats import ttest_ind_from_stats

        ours, theirs = (mean, spread, splits), (printed, printed_spread, PRINTED_SPLITS)
        agrees = bool(ttest_ind_from_stats(*ours, *theirs, equal_var=False).pvalue >= 0.05)
    else:
        low, high = interval
        agrees = low - ROUNDING <= printed <= high + ROUNDING
    return agreement(mean - printed, agrees)
