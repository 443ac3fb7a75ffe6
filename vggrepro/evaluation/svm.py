"""Linear classifiers of Appendix B: one SVM per class on frozen features. No torch.

The paper uses a "linear SVM" with hyper-parameters chosen on held-out images, but names neither these nor the solver.
Ours is LIBLINEAR, one class against the rest: squared hinge loss, an L2 penalty on weights and bias, and C as the only
hyper-parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.transfer.transfer_set import Partition
from vggrepro.evaluation.recognition import Floats, SplitScores, Targets, measured
from vggrepro.paper import Measure

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Appendix B's features have length 1, so the scale of C is the same for every net. At 0.01 the penalty dominates and
the weights of a class are close to its mean feature; at 100 the training images dominate."""
_TOLERANCE = 1e-6
"""Relative tolerance of the gradient. At LinearSVC's 1e-4, decision values are off by 0.05 for C = 100."""
_MAX_STEPS = 10_000
"""Limit on the Newton steps of a class, which usually takes ten to two hundred."""


@dataclass(frozen=True, eq=False)
class Classifiers:
    """Classifiers of all classes: decision values are features @ weights + bias."""

    weights: Floats
    """Weights, shape (d, classes)."""
    bias: Floats
    """Biases, shape (classes,)."""
    unfinished: tuple[int, ...]
    """Classes whose solver did not converge, after scikit-learn's ConvergenceWarning; usually none."""

    def scores(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Computes decision values of features (n, d), shape (n, classes)."""
        return (features @ self.weights + self.bias).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Classified:
    """Result on a partition of a data set."""

    C: float
    validated: Mapping[float, float]
    """Score on the validation samples by C, per cent. If C is at either end, a wider grid might be better."""
    tested: SplitScores
    unfinished: tuple[int, ...]


def learn(features: Floats, targets: Targets, C: float, jobs: int = 1) -> Classifiers:
    """Fits classifiers of features (n, d) to targets (n, classes), `jobs` classes at a time.

    Rows whose target is 0 are ignored. LIBLINEAR rejects a class with only positives or only negatives, which gets the
    exact solution: zero weights and a bias.
    """
    from sklearn.utils.parallel import Parallel, delayed

    # Threads: LIBLINEAR releases the GIL, and the features need not be copied to other processes. Each thread has a
    # sparse copy of 16 bytes per nonzero value.
    features = np.ascontiguousarray(features, np.float64)
    fits = Parallel(jobs, prefer="threads")(delayed(_learn_class)(features, target, C) for target in targets.T)
    weights, bias, finished = zip(*fits, strict=True)
    unfinished = tuple(int(c) for c in np.flatnonzero(~np.array(finished)))
    return Classifiers(np.stack(weights, axis=1), np.array(bias), unfinished)


def _learn_class(features: Floats, target: NDArray[np.int8], C: float) -> tuple[Floats, float, bool]:
    """Returns weights (d,), bias, and whether the solver converged."""
    from sklearn.svm import LinearSVC

    n, sign = np.count_nonzero(target), int(np.sign(target.sum()))
    if abs(int(target.sum())) == n:  # the minimum of b^2 / 2 + C n (1 - side b)^2
        return np.zeros(features.shape[1]), sign * 2 * C * n / (1 + 2 * C * n), True
    # Newton steps on the primal problem are deterministic. The dual solver draws from a generator that all threads of
    # the process share, so its result would depend on the other threads.
    svm = LinearSVC(C=C, dual=False, tol=_TOLERANCE, max_iter=_MAX_STEPS)
    # LIBLINEAR drops rows of weight 0 without a copy; selecting rows would copy the features for each class.
    svm.fit(features, np.where(target > 0, 1, -1), sample_weight=(target != 0).astype(np.float64))
    return svm.coef_[0], float(svm.intercept_[0]), svm.n_iter_ < _MAX_STEPS


def into_span(features: NDArray[Any]) -> tuple[Floats, Floats | None]:
    """Expresses features (n, d) in an orthonormal basis of their span, if n < d.

    Returns features (n, n) and basis (d, n), or features (n, d) and None if n >= d. The penalty makes the weights a sum
    of training rows, and products and lengths in their span are unchanged, so the decision values are the same. The
    time falls by d / n, and by half again because LIBLINEAR skips the zeros of the triangular matrix.
    """
    from scipy.linalg import qr

    features = np.asarray(features, np.float64)
    n, d = features.shape
    if n >= d:
        return features, None
    basis, rows = qr(features.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(rows.T), basis


def classify(
    features: NDArray[np.float32], targets: Targets, partition: Partition, measure: Measure, jobs: int = 1
) -> Classified:
    """Chooses C on the validation samples after fitting on `fit`, then fits on both and scores `test`.

    Features (samples, d) and targets (samples, classes) are those of the full data set. Ties go to the smallest C. A
    class without positives in validation has no influence on C; without positives in training, see `learn`. The result
    is deterministic and does not depend on `jobs`.
    """
    train = partition.train
    projected, basis = into_span(features[train])
    fit, validation = projected[: len(partition.fit)], projected[len(partition.fit) :]
    validated = {}
    for C in C_GRID:
        scores = learn(fit, targets[partition.fit], C, jobs).scores(validation)
        validated[C] = measured(measure, scores, targets[partition.validation])
    best = max(C_GRID, key=validated.__getitem__)
    final = learn(projected, targets[train], best, jobs)
    weights = final.weights if basis is None else basis @ final.weights
    scores = Classifiers(weights, final.bias, final.unfinished).scores(features[partition.test])
    return Classified(best, validated, SplitScores(partition.test, scores), final.unfinished)
