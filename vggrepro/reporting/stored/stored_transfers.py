"""What linear classifiers on the features of runs got right, read from their stores: all that Tables 11 and 12 need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggrepro.evaluation.transfers import Transferred, list_transferred
from vggrepro.paper import facts
from vggrepro.reporting.stored.runs import StoredRun


@dataclass(frozen=True)
class StoredTransfer:
    """One test of one run's features, or of several runs' stacked."""

    runs: tuple[StoredRun, ...]
    found: Transferred

    @property
    def nets(self) -> tuple[str, ...]:
        """The columns of Table 1, or the nets' own names."""
        return tuple(run.net for run in self.runs)

    @property
    def set(self) -> str:
        """The data set's name."""
        return self.found.protocol.set

    @property
    def samples(self) -> tuple[object, ...]:
        """Equal for tests on the same samples, split alike."""
        protocol = self.found.protocol
        return protocol.data, protocol.rows, protocol.drawing


def stored_transfers(runs: Sequence[StoredRun]) -> list[StoredTransfer]:
    """All tests of the final nets of some runs, in the order of the paper's tables. Raises UserError."""
    by_weights = {run.weights: run for run in reversed(runs) if run.weights}
    stored = []
    for run in runs:
        for found in list_transferred(run.run_directory):
            first, *others = [net.weights for net in found.protocol.nets]
            # of a net that was trained again since, or that was stacked with one that is not among these
            if first == run.weights and all(weights in by_weights for weights in others):
                stored.append(StoredTransfer((run, *(by_weights[weights] for weights in others)), found))
    return sorted(stored, key=lambda test: _order(test, runs))


def _order(test: StoredTransfer, runs: Sequence[StoredRun]) -> tuple[object, ...]:
    protocol, sets = test.found.protocol, list(facts().transfer)
    at = sets.index(test.set) if test.set in sets else len(sets)
    nets = [runs.index(run) for run in test.runs]
    return at, test.set, len(nets), nets, protocol.boxes, -len(protocol.nets[0].Q)
