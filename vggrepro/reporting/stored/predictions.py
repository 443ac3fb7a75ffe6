"""What a net predicts under a protocol: all that tables, claims and comparisons need of the posteriors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks, true_class_rank
from vggrepro.evaluation.measure import Scored, fuse
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.reporting.stored.evidence import KeptRun
from vggrepro.reporting.stored.runs import Asked, NetsTest


@dataclass(frozen=True)
class Predictions(Ranks):
    """What a net predicts for n images, in the index's order."""

    guess: NDArray[np.int64]
    """(n,) first guesses."""
    confidence: NDArray[np.float32]
    """(n,) posterior of the true class."""

    def wrong_by_class(self) -> dict[int, float]:
        """For each class that has images, the share of them whose first guess is wrong."""
        return {int(label): float((~self.right1[self.labels == label]).mean()) for label in np.unique(self.labels)}


def paired_top1(first: Ranks, second: Ranks) -> Paired:
    """Top-1 of two nets or protocols on the same images."""
    assert np.array_equal(first.labels, second.labels), "predictions for different images"
    return paired_right(first.right1, second.right1)


class PredictionCache:
    """Predictions by runs, Q and method, each read from the posteriors store once: 200 MB of them leave 1 MB here."""

    def __init__(self) -> None:
        self._read: dict[NetsTest, Ranks | None] = {}

    def ranks(self, asked: Sequence[Asked], method: str) -> Ranks | None:
        """How one run, or several fused, ranked the true classes; None where nothing says so. Raises UserError.

        Runs to be fused must be of one data set.
        """
        test = tuple(asked), method
        if test not in self._read:
            assert len({run.dataset.get("fingerprint") for run, _ in asked}) == 1, "runs of different data sets"
            kept = [run.evidence for run, _ in asked if isinstance(run, KeptRun)]
            self._read[test] = kept[0].ranks(asked, method) if kept else _predicted(asked, method)
        return self._read[test]

    def of(self, asked: Sequence[Asked], method: str) -> Predictions | None:
        """As :meth:`ranks`, with the guesses. Raises UserError, also for runs of which only ranks are kept."""
        found = self.ranks(asked, method)
        if found is not None and not isinstance(found, Predictions):
            raise UserError(
                f"{asked[0][0].name} is kept as evidence, which has the ranks of the true classes and no guesses; "
                f"name a run directory"
            )
        return found

    def answers(self) -> dict[NetsTest, Ranks]:
        """All that was asked for so far and found, in that order."""
        return {test: ranks for test, ranks in self._read.items() if ranks is not None}


def _predicted(asked: Sequence[Asked], method: str) -> Predictions | None:
    sets: list[Scored] = []
    for run, Q in asked:
        found = run.scored(Q, method)
        if found is None:
            return None
        sets.append(found)
    whole = sets[0] if len(sets) == 1 else fuse(sets)
    return Predictions(
        labels=whole.labels,
        rank=true_class_rank(whole.values, whole.labels),
        guess=whole.values.argmax(axis=1),
        confidence=whole.values[np.arange(len(whole.labels)), whole.labels],
    )
