"""What classifiers get right on the data sets of Appendix B, how sure that is, and whether two differ. No torch.

A figure is a mean over classes of average precision or of recall, in per cent; a data set with several random splits
has one a split, and their mean is reported. How far chance in the choice of test images moves it is told by the
Bayesian bootstrap (Rubin 1981): the figure again and again with random weights of the samples. Nothing is learnt anew,
so what chance does in training is not in it; that is in the spread over splits.
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
"""(n, classes) 1: of the class; -1: not; 0: difficult, which counts neither way."""

DRAWS = 400
"""Of the bootstrap: the ends of an interval then rest on ten draws each, and no p is below 0.005."""


@dataclass(frozen=True, eq=False)
class SplitScores:
    """What one classifier a class says of the test samples of one split."""

    rows: Ints
    """(m,) rows of the data set's samples."""
    scores: NDArray[np.float32]
    """(m, classes) decision values; larger is surer."""


def average_precision(scores: NDArray[Any], targets: Targets, weights: NDArray[Any], *, points: bool) -> Floats:
    """(draws,) average precision in [0, 1] of one class as VOC's development kit defines it; scores, targets (n,).

    Samples whose target is 0 are left out; of equal scores the first comes first. With `points` it is VOC 2007's mean
    over the recalls 0, 0.1, ..., 1 of the highest precision at that recall or beyond, else VOC 2010's area under the
    precision once that is made to fall. In each draw a sample counts `weights` times (draws, n), not negative.

    There must be a positive sample: without one there is no recall.
    """
    counts = np.flatnonzero(targets)
    assert np.isfinite(scores).all(), "a score is not a number"
    order = counts[np.argsort(-scores[counts], kind="stable")]
    positive = np.flatnonzero(targets[order] > 0)
    assert len(positive), "no positive sample"
    ordered = weights[:, order].astype(np.float64)
    # Precision is highest where a positive has just been found, and recall moves nowhere else.
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
    """(draws, classes) share in [0, 1] of each class's samples for which it has the highest score, the first of equals.

    Each of the samples (n, classes) is of one class; it counts `weights` times (draws, n). A class without samples has
    nan.
    """
    own = targets > 0
    assert (own.sum(axis=1) == 1).all(), "a sample is not of one class"
    assert np.isfinite(scores).all(), "a score is not a number"
    right = own[np.arange(len(scores)), scores.argmax(axis=1)]
    every, hits = weights @ own.astype(np.float64), weights @ (own & right[:, None]).astype(np.float64)
    return np.divide(hits, every, out=np.full(every.shape, np.nan), where=every > 0)


def measured(measure: Measure, scores: NDArray[Any], targets: Targets) -> float:
    """The figure in per cent of scores (n, classes): mean over classes of average precision, or of recall.

    A class without a positive sample has neither and is left out of the mean; there must be one with.
    """
    return float(_measured(measure, scores, targets, np.ones((1, len(scores))))[0])


def _measured(measure: Measure, scores: NDArray[Any], targets: Targets, weights: NDArray[Any]) -> Floats:
    """(draws,) per cent, for weights (draws, n)."""
    assert scores.shape == targets.shape, "scores of other samples or classes"
    present = np.flatnonzero((targets > 0).any(axis=0))
    assert len(present), "no positive sample of any class"
    if measure == "recall":
        return 100 * recall_of_classes(scores, targets, weights)[:, present].mean(axis=1)
    points = measure == "mAP11"
    each = [average_precision(scores[:, c], targets[:, c], weights, points=points) for c in present]
    return 100 * np.mean(each, axis=0)


@dataclass(frozen=True, eq=False)
class Recognition:
    """The result on a data set: one test a split."""

    measure: Measure
    targets: Targets
    """(samples, classes) of the whole data set."""
    tested: Sequence[SplitScores]

    @cached_property
    def figures(self) -> list[float]:
        """Of each split, per cent."""
        return [measured(self.measure, split.scores, self.targets[split.rows]) for split in self.tested]

    @property
    def mean(self) -> float:
        """Over the splits, per cent."""
        return statistics.mean(self.figures)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the splits, points; None for one split."""
        return statistics.stdev(self.figures) if len(self.figures) > 1 else None

    @cached_property
    def draws(self) -> Floats:
        """(DRAWS,) the mean under random weights of the samples, per cent, moved so that they lie around `mean`.

        A sample has one weight in all splits, because test images of random splits overlap; and the same in every
        result on the data set, which is what makes two of them a pair.

        They are moved because a highest precision is higher where fewer samples count, by most of a point with 80
        positives a class. A printed figure of the same test set has that in it once, as ours has; the draws twice.
        """
        weights = _weights(len(self.targets))
        each = [
            _measured(self.measure, split.scores, self.targets[split.rows], weights[:, split.rows])
            for split in self.tested
        ]
        drawn = np.mean(each, axis=0)
        return drawn + (self.mean - drawn.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over the choice of test samples, per cent."""
        low, high = _middle(self.draws)
        return max(low, 0.0), min(high, 100.0)

    @property
    def n(self) -> int:
        """Samples that are tested on, each counted once however many splits have it."""
        return len(np.unique(np.concatenate([split.rows for split in self.tested])))


@lru_cache(1)  # a data set's tests come in a row
def _weights(n: int) -> Floats:
    """(DRAWS, n) of samples in each draw: exponentially distributed."""
    # Raw words, because numpy guarantees a generator's stream but not its distributions (as in data/sampler.py).
    weights = (np.random.Philox(key=0).random_raw(DRAWS * n) >> np.uint64(11)).astype(np.float64)
    weights *= -(2.0**-53)
    np.negative(np.log1p(weights, out=weights), out=weights)
    return weights.reshape(DRAWS, n)


def _middle(draws: Floats) -> tuple[float, float]:
    """95 % of the draws lie between."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def compare(first: Recognition, second: Recognition) -> Comparison:
    """Compares two results on the same samples of the same splits by the same draws of weights.

    An error is 100 minus the figure; the p-value goes by the share of draws on the other side of 0, and is never 0.
    """
    assert first.measure == second.measure, "different measures"
    assert np.array_equal(first.targets, second.targets), "different data sets"
    for one, other in zip(first.tested, second.tested, strict=True):
        assert np.array_equal(one.rows, other.rows), "different test samples"
    draws = second.draws - first.draws
    fewer = min(int((draws < SAME).sum()), int((draws > -SAME).sum()))
    p_value = min(1.0, 2 * (1 + fewer) / (1 + DRAWS))
    return Comparison(second.mean - first.mean, _middle(draws), p_value, first.n)


PRINTED_SPLITS: int = facts().transfer["caltech101"].splits or 1
"""Over which the paper's spreads are; Caltech-256 has as many."""


def against_printed(
    mean: float,
    spread: float | None,
    splits: int,
    printed: float,
    printed_spread: float | None,
    interval: tuple[float, float],
) -> Agreement:
    """What a figure with its spread over splits and its interval is beside a printed one, all in per cent.

    It agrees where Welch's t over our splits and the paper's three finds no difference at 5 %; or, where either side
    has no spread, where the printed figure lies within the interval.
    """
    if spread is not None and printed_spread is not None:
        from scipy.stats import ttest_ind_from_stats

        ours, theirs = (mean, spread, splits), (printed, printed_spread, PRINTED_SPLITS)
        agrees = bool(ttest_ind_from_stats(*ours, *theirs, equal_var=False).pvalue >= 0.05)
    else:
        low, high = interval
        agrees = low - ROUNDING <= printed <= high + ROUNDING
    return agreement(mean - printed, agrees)
