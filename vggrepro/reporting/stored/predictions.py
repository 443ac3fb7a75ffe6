"""What nets predict under a protocol, by runs: all that tables, claims and comparisons need of the posteriors."""

from collections.abc import Sequence

import numpy as np

from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks
from vggrepro.evaluation.predictions import Predictions, predictions
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.reporting.stored.evidence import ArchivedRun
from vggrepro.reporting.stored.runs import NetsTest, RunAtQ


def paired_top1(first: Ranks, second: Ranks) -> Paired:
    """Top-1 of two nets or protocols on the same images."""
    assert np.array_equal(first.labels, second.labels), "predictions for different images"
    return paired_right(first.right1, second.right1)


class PredictionCache:
    """Predictions by runs, Q and method, each read once."""

    def __init__(self) -> None:
        self._read: dict[NetsTest, Ranks | None] = {}

    def ranks(self, asked: Sequence[RunAtQ], method: str) -> Ranks | None:
        """How one run, or several fused, ranked the true classes; None where nothing says so. Raises UserError.

        Runs to be fused must be of one data set.
        """
        test = tuple(asked), method
        if test not in self._read:
            assert len({run.dataset.get("fingerprint") for run, _ in asked}) == 1, "runs of different data sets"
            kept = [run.evidence for run, _ in asked if isinstance(run, ArchivedRun)]
            self._read[test] = kept[0].ranks(asked, method) if kept else _predictions(asked, method)
        return self._read[test]

    def of(self, asked: Sequence[RunAtQ], method: str) -> Predictions | None:
        """As :meth:`ranks`, with the guesses. Raises UserError, also for runs of which only ranks are kept."""
        found = self.ranks(asked, method)
        if found is not None and not isinstance(found, Predictions):
            raise UserError(
                f"{asked[0][0].name} is kept as evidence, which has the ranks of the true classes and no guesses; "
                f"name a run directory"
            )
        return found

    def results(self) -> dict[NetsTest, Ranks]:
        """All that was asked for so far and found, in that order."""
        return {test: ranks for test, ranks in self._read.items() if ranks is not None}


def _predictions(asked: Sequence[RunAtQ], method: str) -> Predictions | None:
    tests = [run.test(Q, method) for run, Q in asked]
    found = [test for test in tests if test]
    return predictions(found) if len(found) == len(tests) else None
