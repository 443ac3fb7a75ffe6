"""Average precision, recall, their intervals and comparisons, against hand calculation, loops and scikit-learn."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from vggrepro.evaluation import recognition
from vggrepro.evaluation.recognition import (
    Recognition,
    SplitScores,
    against_printed,
    compare,
    measured,
    recall_of_classes,
)
from vggrepro.evaluation.significance import Comparison
from vggrepro.paper import Measure
from vggrepro.reporting.claims.claim import judge


def slow_average_precision(scores: NDArray[Any], targets: NDArray[Any], points: bool) -> float:
    """VOCevalcls.m of 2007 and VOCap.m of 2010, line by line."""
    found, wrong, recall, precision = 0, 0, [], []
    for sample in sorted(range(len(scores)), key=lambda sample: -scores[sample]):  # sorted is stable, as MATLAB's sort
        found += int(targets[sample] > 0)
        wrong += int(targets[sample] < 0)
        recall.append((found, int((targets > 0).sum())))
        precision.append(found / (found + wrong) if found + wrong else 0.0)
    if points:
        total = 0.0
        for tenth in range(11):
            # whole numbers, because 0:0.1:1 has a 0.3 that is larger than 3 / 10
            beyond = [p for (k, of), p in zip(recall, precision, strict=True) if 10 * k >= tenth * of]
            total += max(beyond, default=0.0) / 11
        return total
    steps = [0.0, *(k / of for k, of in recall), 1.0]
    heights = [0.0, *precision, 0.0]
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = max(heights[i], heights[i + 1])
    return sum((right - left) * heights[i + 1] for i, (left, right) in enumerate(pairwise(steps)))


def average_precision(
    scores: NDArray[Any], targets: NDArray[np.int8], *, points: bool, weights: NDArray[Any] | None = None
) -> float:
    """Returns the average precision of one draw, by default with each sample once."""
    counted = np.ones(len(scores)) if weights is None else weights
    return float(recognition.average_precision(scores, targets, counted[None], points=points)[0])


def some(n: int, seed: int, *, ties: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Returns scores and targets, shape (n,); three in ten are positive, one in ten is difficult."""
    random = np.random.default_rng(seed)
    targets = random.choice([1, -1, 0], n, p=[0.3, 0.6, 0.1]).astype(np.int8)
    targets[0] = 1
    scores = random.standard_normal(n) + targets
    return (np.round(scores) if ties else scores).astype(np.float32), targets


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("n", [1, 2, 10, 33, 200])
def test_average_precision_against_the_development_kit(n: int, ties: bool, points: bool) -> None:
    for seed in range(20):
        scores, targets = some(n, seed, ties=ties)
        expected = slow_average_precision(scores, targets, points)
        assert average_precision(scores, targets, points=points) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "by_points", "by_area"),
    [  # in order of falling score
        ([1, 1, -1, -1], 1.0, 1.0),
        ([-1, -1, 1, 1], 0.5, 0.5),  # what counts is the highest precision beyond
        ([-1, -1, -1, 1], 0.25, 0.25),  # one positive, last
        ([1, -1, -1, 1], (6 * 1 + 5 * 0.5) / 11, 0.75),
        ([-1, 1, -1, 1, 1], 0.6, 0.6),
        ([0, 1, 0, -1], 1.0, 1.0),
    ],
)
def test_average_precision_by_hand(targets: list[int], by_points: float, by_area: float) -> None:
    scores = -np.arange(len(targets))
    given = np.array(targets, np.int8)
    assert average_precision(scores, given, points=True) == pytest.approx(by_points)
    assert average_precision(scores, given, points=False) == pytest.approx(by_area)


def test_three_of_ten_reach_a_recall_of_three_tenths() -> None:
    targets = np.array([1] * 3 + [-1] * 90 + [1] * 7, np.int8)
    found = average_precision(-np.arange(100), targets, points=True)
    assert found == pytest.approx((4 + 7 * 0.1) / 11)


def test_equal_scores_keep_their_order() -> None:
    same = np.zeros(2, np.float32)
    assert average_precision(same, np.array([1, -1], np.int8), points=False) == 1
    assert average_precision(same, np.array([-1, 1], np.int8), points=False) == 0.5


@pytest.mark.parametrize("points", [True, False])
def test_difficult_samples_are_left_out(points: bool) -> None:
    scores, targets = some(100, 4)
    plain = targets != 0
    found = average_precision(scores, targets, points=points)
    assert found == average_precision(scores[plain], targets[plain], points=points)
    assert found == average_precision(np.where(plain, scores, 99), targets, points=points)


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("ties", [True, False])
def test_a_weight_repeats_a_sample(ties: bool, points: bool) -> None:
    random = np.random.default_rng(5)
    for seed in range(20):
        scores, targets = some(40, seed, ties=ties)
        times = random.integers(0, 4, 40)
        times[0] = 1
        repeated = average_precision(np.repeat(scores, times), np.repeat(targets, times), points=points)
        assert average_precision(scores, targets, points=points, weights=times) == pytest.approx(repeated, abs=1e-12)
        ones = average_precision(scores, targets, points=points, weights=np.full(40, 1.0))
        assert ones == average_precision(scores, targets, points=points)
        assert average_precision(scores, targets, points=points, weights=np.full(40, 0.3)) == pytest.approx(ones)


def test_the_area_is_scikit_learns_for_falling_precision() -> None:
    """Elsewhere they differ, because scikit-learn does not make precision monotonic."""
    targets = np.array([1, 1, 1, -1, 1, -1, -1, 1, -1, -1, -1], np.int8)
    scores = -np.arange(len(targets))
    expected = average_precision_score(targets > 0, scores)
    assert average_precision(scores, targets, points=False) == pytest.approx(expected)
    scores, targets = some(200, 6)
    targets[targets == 0] = -1
    assert average_precision(scores, targets, points=False) > average_precision_score(targets > 0, scores)


def test_without_a_positive_there_is_no_average_precision() -> None:
    with pytest.raises(AssertionError, match="no positive"):
        average_precision(np.zeros(3), np.array([-1, 0, -1], np.int8), points=True)
    scores, targets = np.stack([some(50, 0)[0]] * 2, axis=1), np.stack([some(50, 0)[1], -np.ones(50, np.int8)], axis=1)
    alone = 100 * average_precision(scores[:, 0], targets[:, 0], points=False)
    assert measured("mAP", scores, targets) == pytest.approx(alone)
    with pytest.raises(AssertionError, match="any class"):
        measured("mAP", scores, -np.ones_like(targets))


def test_a_score_that_is_not_a_number_is_refused() -> None:
    targets = np.array([[1, -1], [-1, 1]], np.int8)
    for measure in ("mAP", "mAP11", "recall"):
        for bad in (np.nan, -np.inf):
            with pytest.raises(AssertionError, match="not a number"):
                measured(measure, np.array([[bad, 0], [0, 1]]), targets)


def labelled(n: int, seed: int, classes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Returns scores and targets, shape (n, classes), of samples of one class each."""
    random = np.random.default_rng(seed)
    targets = np.where(np.eye(classes)[random.integers(0, classes, n)], 1, -1).astype(np.int8)
    return (targets + random.standard_normal(targets.shape)).astype(np.float32), targets


def test_recall_is_scikit_learns_balanced_accuracy() -> None:
    scores, targets = labelled(300, 1)
    weights = np.random.default_rng(2).random(300)
    right, guessed = targets.argmax(axis=1), scores.argmax(axis=1)
    assert measured("recall", scores, targets) == pytest.approx(100 * balanced_accuracy_score(right, guessed))
    expected = balanced_accuracy_score(right, guessed, sample_weight=weights)
    assert recall_of_classes(scores, targets, weights[None]).mean() == pytest.approx(expected)


def test_recall_by_hand() -> None:
    targets = 2 * np.eye(3, dtype=np.int8)[[0, 0, 1]] - 1
    scores = np.array([[1, 0, 0], [0, 1, 0], [2, 2, 0]], np.float32)
    weights = np.array([[1, 1, 1], [3, 1, 1]])
    np.testing.assert_array_equal(recall_of_classes(scores, targets, weights), [[0.5, 0, np.nan], [0.75, 0, np.nan]])
    assert measured("recall", scores, targets) == 25
    with pytest.raises(AssertionError, match="one class"):
        recall_of_classes(scores, np.ones((3, 3), np.int8), weights)


def result(n: int, seed: int, measure: Measure = "recall", noise: float = 0.0) -> Recognition:
    """Returns a split of all samples; results with the same seed differ only by noise."""
    scores, targets = labelled(n, seed)
    scores += noise * np.random.default_rng(99).standard_normal(scores.shape).astype(np.float32)
    return Recognition(measure, targets, [SplitScores(np.arange(n), scores)])


def test_several_splits() -> None:
    scores, targets = labelled(200, 3)
    rows = [np.arange(0, 120), np.arange(60, 180), np.arange(20, 140)]
    found = Recognition("recall", targets, [SplitScores(tested, scores[tested]) for tested in rows])
    each = [measured("recall", scores[tested], targets[tested]) for tested in rows]
    assert found.figures == each
    assert found.mean == pytest.approx(np.mean(each))
    assert found.spread == pytest.approx(np.std(each, ddof=1))
    assert found.n == 180
    assert result(50, 0).spread is None


def test_a_repeated_split_adds_no_information() -> None:
    """All splits share the draws of weights, so the interval must not shrink."""
    once = result(100, 3)
    twice = Recognition("recall", once.targets, [*once.tested, *once.tested])
    assert twice.interval == pytest.approx(once.interval)
    assert twice.n == once.n


@pytest.mark.parametrize("measure", ["mAP11", "mAP", "recall"])
def test_the_interval_contains_the_figure_and_shrinks_with_more_samples(measure: Measure) -> None:
    widths = []
    for n in (100, 400, 1600):
        found = result(n, 0, measure)
        low, high = found.interval
        assert low < found.mean < high
        assert found.interval == result(n, 0, measure).interval, "a pure function"
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.4)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.4)


def test_the_interval_of_recall_is_the_textbooks() -> None:
    """The recall is a mean of proportions, whose variances are known."""
    found = result(2000, 5)
    (shares,) = recall_of_classes(found.tested[0].scores, found.targets, np.ones((1, 2000)))
    counts = (found.targets > 0).sum(axis=0)
    half = 196 * np.sqrt((shares * (1 - shares) / counts).sum()) / 4
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("measure", ["mAP11", "mAP", "recall"])
def test_the_interval_covers_the_mean_of_such_test_sets(measure: Measure) -> None:
    found = [result(150, seed, measure) for seed in range(100)]
    expected = np.mean([drawn.mean for drawn in found])
    covered = sum(low <= expected <= high for low, high in (drawn.interval for drawn in found))
    assert 86 <= covered <= 100


def test_the_interval_stays_between_0_and_100() -> None:
    targets = labelled(60, 0)[1]
    low, high = Recognition("mAP", targets, [SplitScores(np.arange(60), targets.astype(np.float32))]).interval
    assert low == pytest.approx(100)
    assert high <= 100


def test_equal_results_do_not_differ() -> None:
    found = compare(result(80, 1), result(80, 1))
    assert found == Comparison(difference=0, interval=(0, 0), p_value=1, n=80)


def test_a_worse_result_differs_from_a_better_one() -> None:
    better, worse = result(500, 1), result(500, 1, noise=1.0)
    found = compare(worse, better)
    assert found.difference == pytest.approx(better.mean - worse.mean)
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p_value == pytest.approx(2 / 401), "never 0"
    back = compare(better, worse)
    assert (back.difference, back.p_value) == (pytest.approx(-found.difference), found.p_value)
    alone = max(high - low for low, high in (better.interval, worse.interval))
    near = compare(result(500, 1, noise=0.05), better)
    assert near.interval[1] - near.interval[0] < alone, "pairing must pay"
    claim = judge("better", [found])
    assert (claim["verdict"], claim["effect"], claim["n"]) == ("supported", found.difference, 500)
    assert judge("better", [back])["verdict"] == "not supported"


def test_noise_is_significant_once_in_twenty() -> None:
    """The results differ by noise of the same size."""
    rejected = 0
    for seed in range(100):
        scores, targets = labelled(150, seed)
        noise = np.random.default_rng(seed + 1000).standard_normal((2, *scores.shape))
        first, second = (Recognition("recall", targets, [SplitScores(np.arange(150), scores + each)]) for each in noise)
        rejected += compare(first, second).p_value < 0.05
    assert rejected <= 12


def test_only_the_same_test_samples_are_compared() -> None:
    single = result(80, 1)
    with pytest.raises(AssertionError, match="different data sets"):
        compare(single, result(80, 2))
    with pytest.raises(AssertionError, match="different measures"):
        compare(single, result(80, 1, "mAP"))
    fewer = Recognition("recall", single.targets, [SplitScores(np.arange(1, 80), single.tested[0].scores[1:])])
    with pytest.raises(AssertionError, match="different test samples"):
        compare(single, fewer)


def test_a_printed_figure_with_a_spread() -> None:
    """The figure of net D on Caltech-101 is 91.8 +- 1.0; the test is Welch's."""
    wide = (0.0, 100.0)
    assert against_printed(91.84, 0.1, 3, 91.8, 1.0, wide) == "equal"
    for mean, spread in [(92.6, 0.3), (90.2, 0.9), (94.9, 0.4), (88.1, 0.5), (91.0, 0.2)]:
        errors = spread**2 / 3, 1.0**2 / 3
        freedom = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 2)
        p = 2 * student.sf(abs(mean - 91.8) / np.sqrt(sum(errors)), freedom)
        expected = "agrees" if p >= 0.05 else "higher" if mean > 91.8 else "lower"
        assert against_printed(mean, spread, 3, 91.8, 1.0, wide) == expected
    assert against_printed(94.9, 0.4, 3, 91.8, 1.0, wide) == "higher"
    assert against_printed(88.1, 0.5, 3, 91.8, 1.0, wide) == "lower"


def test_a_printed_figure_without_a_spread() -> None:
    assert against_printed(89.34, None, 1, 89.3, None, (89.2, 89.5)) == "equal"
    assert against_printed(89.9, None, 1, 89.3, None, (89.34, 90.4)) == "agrees"
    assert against_printed(89.9, None, 1, 89.3, None, (89.36, 90.4)) == "higher"
    assert against_printed(88.7, None, 1, 89.3, None, (88.2, 89.24)) == "lower"
    assert against_printed(90.9, None, 1, 91.8, 1.0, (90.0, 91.9)) == "agrees", "one split of ours has no spread"
