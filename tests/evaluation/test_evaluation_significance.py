"""Paired tests and comparison with printed figures."""

import math
from math import comb

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from tiny import PublicPredictions

from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.significance import AgainstPrinted, mcnemar, paired_mean, paired_right


def test_pairs_are_counted() -> None:
    found = paired_right(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 1], bool))
    assert (found.only_first_right, found.only_second_right, found.n) == (1, 2, 5)
    assert found.difference == pytest.approx(20.0)


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 2), (0, 6), (10, 25), (40, 3), (7, 7)])
def test_exact_mcnemar_by_counting(only_first: int, only_second: int) -> None:
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar(only_first, only_second, 100).p_value == pytest.approx(min(1.0, 2 * tail))


def test_the_same_guesses_do_not_differ() -> None:
    same = np.array([True, True, False, False])
    found = paired_right(same, same)
    assert (found.difference, found.p_value, found.interval) == (0.0, 1.0, (0.0, 0.0))


def test_interval_of_a_difference() -> None:
    """The variance is the textbook's, of the mean of (error of first - error of second)."""
    each = np.concatenate([np.ones(25), -np.ones(10), np.zeros(165)])
    half = 1.959963984540054 * each.std() / np.sqrt(200)
    expected = (100 * (each.mean() - half), 100 * (each.mean() + half))
    assert mcnemar(only_first_right=10, only_second_right=25, n=200).interval == pytest.approx(expected)


def test_real_predictions_of_public_nets(public_predictions: PublicPredictions) -> None:
    labels, guesses = public_predictions
    first = {net: five[:, 0] for net, five in guesses.items()}
    right16, right19 = first["vgg16"] == labels, first["vgg19"] == labels
    found = paired_right(right16, right19)
    assert found.only_first_right == int((right16 & ~right19).sum())
    assert found.only_second_right == int((~right16 & right19).sum())
    assert found.difference == pytest.approx(28.408 - 27.624, abs=1e-9)
    assert found.p_value < 1e-6
    low, high = found.interval
    assert 0 < low < found.difference < high < 1.5
    unpaired = sum((100 * 1.96) ** 2 * p * (1 - p) / 50_000 for p in (0.28408, 0.27624)) ** 0.5
    assert high - low < 2 * unpaired, "pairing must pay"


def test_a_printed_figure_has_rounding_and_sampling_error() -> None:
    def against_printed(percent: float, n: int = 50_000) -> AgainstPrinted:
        return AgainstPrinted(ErrorRate(round(percent / 100 * n), n), 25.6)

    assert against_printed(25.64).verdict == "equal"
    assert against_printed(25.56).verdict == "equal"
    assert against_printed(25.9).verdict == "agrees"
    assert against_printed(26.4).verdict == "higher"
    assert against_printed(24.8).verdict == "lower"
    assert against_printed(30.0, n=200).verdict == "agrees", "two hundred images say little"
    low, high = against_printed(25.9).interval
    variance = (0.259 * 0.741 + 0.256 * 0.744) / 50_000
    assert high - low == pytest.approx(2 * (196 * variance**0.5 + 0.05), rel=1e-4)


def test_the_mean_of_a_single_net_is_the_paired_difference() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(5000) < 0.7, random.random(5000) < 0.72
    single, mean = paired_right(first, second), paired_mean([(first, second)])
    assert mean.difference == pytest.approx(single.difference)
    assert mean.interval == pytest.approx(single.interval, abs=1e-3)
    assert mean.p_value == pytest.approx(single.p_value, rel=0.1)
    assert mean.n == 5000


def test_the_mean_over_nets_allows_for_correlated_images() -> None:
    """Two nets that agree on each image add no information; two that differ do."""
    random = np.random.default_rng(1)
    pairs = [(random.random(4000) < 0.5, random.random(4000) < 0.53) for _ in range(2)]
    twice = paired_mean([pairs[0], pairs[0]])
    assert twice.interval == pytest.approx(paired_mean(pairs[:1]).interval)
    both = paired_mean(pairs)
    width = twice.interval[1] - twice.interval[0]
    assert both.interval[1] - both.interval[0] == pytest.approx(width / math.sqrt(2), rel=0.05)
    gain = np.mean([second.astype(float) - first for first, second in pairs], axis=0)
    stated = ttest_1samp(100 * gain, 0)
    assert both.p_value == pytest.approx(stated.pvalue, rel=0.02)
    assert both.interval == pytest.approx(tuple(stated.confidence_interval()), abs=0.01)


def test_identical_predictions_do_not_differ() -> None:
    same = np.arange(10) < 4
    none = paired_mean([(same, same), (~same, ~same)])
    assert (none.difference, none.interval, none.p_value) == (0.0, (0.0, 0.0), 1.0)
