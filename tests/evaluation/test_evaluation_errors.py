"""Error rates: ties, scores that are not numbers, intervals, and the real answers of public nets."""

import numpy as np
import pytest
from scipy.stats import binomtest
from tiny import PublicPredictions

from vggrepro.evaluation.errors import ErrorRate, Ranks, true_class_rank


def ranks(scores: np.ndarray, labels: np.ndarray) -> Ranks:
    return Ranks(labels, true_class_rank(scores, labels))


def test_rank_counts_what_is_guessed_before_the_true_class() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    assert true_class_rank(scores, np.array([0, 0, 0])).tolist() == [2, 0, 2]


def test_of_equal_scores_the_lower_class_is_guessed_first() -> None:
    same = np.full((4, 4), 0.25)
    assert true_class_rank(same, np.arange(4)).tolist() == [0, 1, 2, 3]
    assert ranks(same, np.arange(4)).top1.percent == 75.0  # a net that says nothing is at chance
    assert true_class_rank(np.array([[1.0, 3.0, 3.0, 3.0]]), np.array([2])).tolist() == [1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_a_number_is_wrong(bad: float) -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.9, bad, 0.0]])
    found = ranks(scores, np.array([0, 0]))
    assert found.top1 == found.top5 == ErrorRate(1, 2)


def test_top_k_against_sorting() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.random((500, 20)), random.integers(0, 20, 500)
    order = np.argsort(-scores, axis=1)
    found = ranks(scores, labels)
    for k, error in ((1, found.top1), (5, found.top5)):
        wrong = sum(label not in guesses[:k] for label, guesses in zip(labels, order, strict=True))
        assert error == ErrorRate(wrong, 500)


@pytest.mark.parametrize(("wrong", "n"), [(0, 10), (10, 10), (1, 3), (12_800, 50_000), (4_050, 50_000), (3, 400)])
def test_interval_is_wilsons(wrong: int, n: int) -> None:
    expected = binomtest(wrong, n).proportion_ci(0.95, method="wilson")
    assert ErrorRate(wrong, n).interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("net", "top1", "top5"), [("vgg16", 28.408, 9.618), ("vgg19", 27.624, 9.124), ("vgg11_bn", 29.630, 10.190)]
)
def test_real_predictions_of_public_nets(
    public_predictions: PublicPredictions, net: str, top1: float, top5: float
) -> None:
    labels, guesses = public_predictions
    scores = np.zeros((len(labels), 1000), np.float32)
    np.put_along_axis(scores, guesses[net], np.arange(5, 0, -1, dtype=np.float32)[None], axis=1)
    found = ranks(scores, labels)
    error1, error5 = found.top1, found.top5
    assert (error1.n, error5.n) == (50_000, 50_000)
    assert error1.percent == pytest.approx(top1, abs=1e-9)
    assert error5.percent == pytest.approx(top5, abs=1e-9)
    low, high = error1.interval
    assert low < top1 < high
    assert high - low == pytest.approx(0.79, abs=0.03)
