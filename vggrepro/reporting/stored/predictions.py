"""Predictions by run and protocol: all that tables, claims and comparisons need from posteriors."""

from collections.abc import Sequence

import numpy as np

from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks
from vggrepro.evaluation.predictions import Predictions, predictions
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.reporting.stored.evidence import ArchivedRun
from vggrepro.reporting.stored.runs import NetsTest, RunAtQ


def paired_top1(first: Ranks, second: Ranks) -> Paired:
    """Pairs the top-1 results of two nets or protocols on the same images."""
    assert np.array_equal(first.labels, second.labels), "predictions for different images"
    return paired_right(first.right1, second.right1)


class PredictionCache:
    """Predictions by runs, Q and method; each is read once."""

    def __init__(self) -> None:
        self._read: dict[NetsTest, Ranks | None] = {}

    def ranks(self, runs_at_Q: Sequence[RunAtQ], method: str) -> Ranks | None:
        """Returns the ranks of the true classes by a run, or by several fused; None if not stored. Raises UserError.

        Runs to be fused must share a data set.
        """
        test = tuple(runs_at_Q), method
        if test not in self._read:
            assert len({run.dataset.get("fingerprint") for run, _ in runs_at_Q}) == 1, "runs of different data sets"
            archived = [run.evidence for run, _ in runs_at_Q if isinstance(run, ArchivedRun)]
            self._read[test] = archived[0].ranks(runs_at_Q, method) if archived else _predictions(runs_at_Q, method)
        return self._read[test]

    def of(self, runs_at_Q: Sequence[RunAtQ], method: str) -> Predictions | None:
        """Returns the same as :meth:`ranks` with the guesses. Raises UserError, also if only ranks are stored."""
        found = self.ranks(runs_at_Q, method)
        if found is not None and not isinstance(found, Predictions):
            raise UserError(
                f"{runs_at_Q[0][0].name} is stored as evidence, which has the ranks of the true classes but no "
                f"guesses; name a run directory"
            )
        return found

    def results(self) -> dict[NetsTest, Ranks]:
        """Returns all results found so far, in the order of the requests."""
        return {test: ranks for test, ranks in self._read.items() if ranks is not None}


def _predictions(runs_at_Q: Sequence[RunAtQ], method: str) -> Predictions | None:
    tests = [run.test(Q, method) for run, Q in runs_at_Q]
    found = [test for test in tests if test]
    return predictions(found) if len(found) == len(tests) else None
