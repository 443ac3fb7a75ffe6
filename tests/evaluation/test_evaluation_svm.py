"""The SVMs of Appendix B against scikit-learn's, and the choice of C."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from vggrepro.data.transfer.transfer_set import Partition
from vggrepro.evaluation import svm
from vggrepro.evaluation.recognition import measured
from vggrepro.evaluation.svm import C_GRID, classify, into_span, learn


def samples(n: int, d: int, classes: int = 5, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Returns features of length 1, shape (n, d), and targets, shape (n, classes), of samples of one class each."""
    random = np.random.default_rng(seed)
    label = np.arange(n) % classes
    centres = 0.4 * random.standard_normal((classes, d))
    features = np.maximum(centres[label] + random.standard_normal((n, d)), 0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), np.where(np.eye(classes)[label], 1, -1).astype(np.int8)


PARTITION = Partition(fit=np.arange(0, 60), validation=np.arange(60, 80), test=np.arange(80, 120))


@pytest.mark.parametrize("C", [0.1, 1.0, 100.0])
def test_decision_values_are_scikit_learns(C: float) -> None:
    features, targets = samples(120, 30)
    found = learn(features, targets, C)
    assert found.unfinished == ()
    reference = OneVsRestClassifier(LinearSVC(C=C, tol=1e-10, max_iter=1_000_000, random_state=0))  # the dual problem
    expected = reference.fit(features, targets.argmax(axis=1)).decision_function(features)
    np.testing.assert_allclose(found.scores(features), expected, atol=1e-3)


def test_difficult_rows_do_not_matter() -> None:
    features, targets = samples(120, 30)
    targets[7:40:3, 2] = 0
    found = learn(features, targets, 1.0)
    other = features.copy()
    other[7:40:3] = 5.0
    easy = targets[:, 2] != 0
    alone = learn(features[easy], targets[easy], 1.0)
    np.testing.assert_allclose(found.weights[:, 2], alone.weights[:, 2], atol=1e-12)
    assert found.bias[2] == pytest.approx(alone.bias[2])
    np.testing.assert_array_equal(learn(other, targets, 1.0).weights[:, 2], found.weights[:, 2])


@pytest.mark.parametrize("side", [-1, 1])
def test_a_class_with_a_single_side_scores_all_alike(side: int) -> None:
    """The solution is the solver's limit for a vanishing weight of the other side's only row."""
    features, targets = samples(60, 20)
    targets[:, 3] = side
    targets[5, 3] = 0
    found = learn(features, targets, 0.3)
    assert not found.weights[:, 3].any()
    weight = np.ones(60)
    weight[5] = 1e-12
    reference = LinearSVC(C=0.3, dual=False, tol=1e-9).fit(
        0 * features, np.where(np.arange(60) == 5, -side, side), weight
    )
    assert found.bias[3] == pytest.approx(reference.intercept_[0], abs=1e-6)
    assert np.isfinite(found.scores(features)).all()


def test_the_basis_of_the_span_preserves_rows() -> None:
    features, _ = samples(40, 200)
    features[3] = features[4]  # an image twice
    narrow, basis = into_span(features)
    assert narrow.shape == (40, 40)
    assert basis is not None
    np.testing.assert_allclose(narrow @ narrow.T, features @ features.T.astype(np.float64), atol=1e-12)
    np.testing.assert_allclose(narrow @ basis.T, features, atol=1e-12)
    same, none = into_span(features[:, :40])
    assert none is None
    np.testing.assert_array_equal(same, features[:, :40])


def test_with_and_without_the_span_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = samples(120, 300)
    narrow = classify(features, targets, PARTITION, "recall")
    monkeypatch.setattr(svm, "into_span", lambda features: (features.astype(np.float64), None))
    wide = classify(features, targets, PARTITION, "recall")
    np.testing.assert_allclose(narrow.tested.scores, wide.tested.scores, atol=1e-5)
    assert (narrow.C, narrow.validated) == (wide.C, wide.validated)


def test_validation_samples_choose_C_and_join_the_final_fit() -> None:
    """A third of the training samples is mislabelled, which misleads a large C."""
    features, targets = samples(1000, 30, classes=2)
    partition = Partition(fit=np.arange(0, 100), validation=np.arange(100, 500), test=np.arange(500, 1000))
    wrong = np.random.default_rng(1).random(100) < 0.35
    targets[:100][wrong] *= -1
    found = classify(features, targets, partition, "recall")
    assert tuple(found.validated) == C_GRID
    by_hand = {}
    for C in C_GRID:
        scores = learn(features[partition.fit], targets[partition.fit], C).scores(features[partition.validation])
        by_hand[C] = measured("recall", scores, targets[partition.validation])
    assert found.validated == pytest.approx(by_hand)
    assert found.C == max(by_hand, key=lambda C: by_hand[C])
    assert found.validated[found.C] > found.validated[C_GRID[-1]] + 3
    expected = learn(features[partition.train], targets[partition.train], found.C).scores(features[partition.test])
    np.testing.assert_allclose(found.tested.scores, expected, atol=1e-5)
    np.testing.assert_array_equal(found.tested.rows, partition.test)


def test_ties_between_C_go_to_the_smallest() -> None:
    _, targets = samples(120, 30)
    found = classify((targets > 0).astype(np.float32), targets, PARTITION, "mAP")
    assert set(found.validated.values()) == {100.0}
    assert found.C == C_GRID[0]


def test_threads_do_not_matter() -> None:
    features, targets = samples(120, 100)
    first, second = (classify(features, targets, PARTITION, "mAP11", jobs=jobs) for jobs in (1, 2))
    assert first.validated == second.validated
    np.testing.assert_array_equal(first.tested.scores, second.tested.scores)


def test_a_class_only_in_the_test_is_accepted() -> None:
    features, targets = samples(120, 30)
    targets[PARTITION.train, 4] = -1
    found = classify(features, targets, PARTITION, "mAP")
    assert np.isfinite(found.tested.scores).all()
    assert len(np.unique(found.tested.scores[:, 4])) == 1


def test_a_convergence_warning_sets_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = samples(120, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classify(features, targets, PARTITION, "recall").unfinished == ()
    monkeypatch.setattr(svm, "_MAX_STEPS", 2)
    with pytest.warns(ConvergenceWarning):
        assert classify(features, targets, PARTITION, "recall").unfinished == (0, 1, 2, 3, 4)
