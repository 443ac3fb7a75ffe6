"""The linear classifiers of Appendix B: an SVM a class on features that are not learnt anew. No torch.

The paper says "linear SVM" and that the held-out images decide its hyper-parameters, neither which these are nor what
solves it. Ours is LIBLINEAR's, one class against the rest: squared hinge loss, an L2 penalty on weights and bias, and
C, the one hyper-parameter.
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
"""Appendix B's features have a length of 1, so the scale of C is the same for every net. At 0.01 the penalty decides,
and a class's weights are close to its mean feature; at 100 the training images do."""
_TOLERANCE = 1e-6
"""Of the gradient, relative to its start. At LinearSVC's 1e-4 decision values are off by 0.05 where C = 100."""
_MOST_STEPS = 10_000
"""Newton steps of a class; ordinarily it takes ten to two hundred."""


@dataclass(frozen=True, eq=False)
class Classifiers:
    """One a class: decision values are features @ weights + bias."""

    weights: Floats
    """(d, classes)"""
    bias: Floats
    """(classes,)"""
    unfinished: tuple[int, ...]
    """Classes whose solver stopped before its tolerance, after scikit-learn's ConvergenceWarning; ordinarily none."""

    def scores(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """(n, classes) decision values of features (n, d)."""
        return (features @ self.weights + self.bias).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Classified:
    """What came of one partition of a data set."""

    C: float
    validated: Mapping[float, float]
    """The figure on `held_out` by C, per cent. Where C is at either end, a wider grid might do better."""
    tested: SplitScores
    unfinished: tuple[int, ...]
    """`Classifiers.unfinished` of those that were tested."""


def learn(features: Floats, targets: Targets, C: float, jobs: int = 1) -> Classifiers:
    """Fits features (n, d) to targets (n, classes), `jobs` classes at a time.

    A row whose target is 0 is not learnt from. A class that has only positives or only negatives gets the exact
    solution of the same problem, which LIBLINEAR refuses to compute: no weights, and a bias that says the same of all.
    """
    from sklearn.utils.parallel import Parallel, delayed

    # Threads: LIBLINEAR releases the GIL, and the features need not be copied to other processes. Its own sparse copy,
    # 16 bytes for each value that is not 0, is there once for each thread.
    features = np.ascontiguousarray(features, np.float64)
    found = Parallel(jobs, prefer="threads")(delayed(_learn_class)(features, target, C) for target in targets.T)
    weights, bias, finished = zip(*found, strict=True)
    unfinished = tuple(int(c) for c in np.flatnonzero(~np.array(finished)))
    return Classifiers(np.stack(weights, axis=1), np.array(bias), unfinished)


def _learn_class(features: Floats, target: NDArray[np.int8], C: float) -> tuple[Floats, float, bool]:
    """Weights (d,), bias, and whether the solver came to its end."""
    from sklearn.svm import LinearSVC

    n, side = np.count_nonzero(target), int(np.sign(target.sum()))
    if abs(int(target.sum())) == n:  # the minimum of b^2 / 2 + C n (1 - side b)^2
        return np.zeros(features.shape[1]), side * 2 * C * n / (1 + 2 * C * n), True
    # The primal problem, by Newton steps, draws nothing. The dual one takes random turns from a generator that the
    # whole process shares, so that its result would depend on what other threads do.
    svm = LinearSVC(C=C, dual=False, tol=_TOLERANCE, max_iter=_MOST_STEPS)
    # LIBLINEAR drops rows of weight 0 by pointer: a selection of rows would be a copy of the features for each class.
    svm.fit(features, np.where(target > 0, 1, -1), sample_weight=(target != 0).astype(np.float64))
    return svm.coef_[0], float(svm.intercept_[0]), svm.n_iter_ < _MOST_STEPS


def into_span(features: NDArray[Any]) -> tuple[Floats, Floats | None]:
    """((n, r), (d, r) or None) features (n, d) in an orthonormal basis of their own span, and that basis.

    None where there are no fewer rows than dimensions, and nothing to be gained. The penalty makes the weights a sum of
    training rows, so they lie in this span, and within it products and lengths are what they were: the solution and all
    its decision values are the same, and the time falls by d / n, and by half again because the rows come out as a
    triangular matrix, whose zeros LIBLINEAR skips.
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
    """Chooses C on `held_out` after learning from `fit`, learns from both, and scores `test`.

    features (samples, d) and targets (samples, classes) are the whole data set's. Of several C that are best alike the
    smallest is taken. The result depends on nothing else: no draw is made, and `jobs` does not matter. A class without
    positives on `held_out` has no say in C; on `fit` or in all of training, see `learn`.
    """
    train = partition.train
    learnt, basis = into_span(features[train])
    fit, validation = learnt[: len(partition.fit)], learnt[len(partition.fit) :]
    validated = {}
    for C in C_GRID:
        scores = learn(fit, targets[partition.fit], C, jobs).scores(validation)
        validated[C] = measured(measure, scores, targets[partition.validation])
    best = max(C_GRID, key=validated.__getitem__)
    final = learn(learnt, targets[train], best, jobs)
    weights = final.weights if basis is None else basis @ final.weights
    scores = Classifiers(weights, final.bias, final.unfinished).scores(features[partition.test])
    return Classified(best, validated, SplitScores(partition.test, scores), final.unfinished)
