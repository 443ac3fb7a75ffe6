"""What a net predicts under a protocol: all that tables, claims and comparisons need of the posteriors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.errors import ErrorRate, is_right
from vggrepro.evaluation.measure import Scored, fuse
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.reporting.runs import StoredRun

Asked = tuple[StoredRun, tuple[int, ...]]
"""A run and the Q over which its posteriors are averaged, px."""


@dataclass(frozen=True)
class Predictions:
    """What a net predicts for n images, in the index's order."""

    labels: NDArray[np.int64]
    """(n,) true classes."""
    guess: NDArray[np.int64]
    """(n,) first guesses."""
    confidence: NDArray[np.float32]
    """(n,) posterior of the true class."""
    right1: NDArray[np.bool_]
    """(n,) whether the true class is the first guess."""
    right5: NDArray[np.bool_]
    """(n,) whether it is among the first five."""

    @property
    def top1(self) -> ErrorRate:
        """Top-1 error."""
        return ErrorRate(int((~self.right1).sum()), len(self.right1))

    @property
    def top5(self) -> ErrorRate:
        """Top-5 error."""
        return ErrorRate(int((~self.right5).sum()), len(self.right5))


def paired_top1(first: Predictions, second: Predictions) -> Paired:
    """Top-1 of two sets of predictions for the same images."""
    assert np.array_equal(first.labels, second.labels), "predictions for different images"
    return paired_right(first.right1, second.right1)


class PredictionCache:
    """Predictions by runs, Q and method, each read from the posteriors store once: 200 MB of them leave 1 MB here."""

    def __init__(self) -> None:
        self._kept: dict[object, Predictions | None] = {}

    def of(self, asked: Sequence[Asked], method: str) -> Predictions | None:
        """The predictions of one run, or of several fused; None while posteriors are missing. Raises UserError.

        Runs to be fused must be of one data set.
        """
        key = (method, *((run.path.resolve(), Q) for run, Q in asked))
        if key not in self._kept:
            self._kept[key] = self._read(asked, method)
        return self._kept[key]

    @staticmethod
    def _read(asked: Sequence[Asked], method: str) -> Predictions | None:
        assert len({run.dataset.get("fingerprint") for run, _ in asked}) == 1, "runs of different data sets"
        sets: list[Scored] = []
        for run, Q in asked:
            found = run.scored(Q, method)
            if found is None:
                return None
            sets.append(found)
        whole = sets[0] if len(sets) == 1 else fuse(sets)
        return Predictions(
            labels=whole.labels,
            guess=whole.values.argmax(axis=1),
            confidence=whole.values[np.arange(len(whole.labels)), whole.labels],
            right1=is_right(whole.values, whole.labels, 1),
            right5=is_right(whole.values, whole.labels, 5),
        )
