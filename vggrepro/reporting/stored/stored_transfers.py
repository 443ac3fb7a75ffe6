"""Stored results of linear classifiers on features: the input of Tables 11 and 12."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggrepro.evaluation.transfers import Transferred, list_transferred
from vggrepro.paper import facts
from vggrepro.reporting.stored.runs import StoredRun


@dataclass(frozen=True)
class StoredTransfer:
    """A test of the features of a run, or of the stacked features of several."""

    runs: tuple[StoredRun, ...]
    found: Transferred

    @property
    def nets(self) -> tuple[str, ...]:
        """Columns of Table 1, or the names of custom nets."""
        return tuple(run.net for run in self.runs)

    @property
    def set(self) -> str:
        """Name of the data set."""
        return self.found.protocol.set

    @property
    def samples(self) -> tuple[object, ...]:
        """Equal for tests on the same samples and splits."""
        protocol = self.found.protocol
        return protocol.data, protocol.rows, protocol.drawing


def stored_transfers(runs: Sequence[StoredRun]) -> list[StoredTransfer]:
    """Returns all tests of the final nets of some runs, in the order of the paper's tables. Raises UserError."""
    by_weights = {run.weights: run for run in reversed(runs) if run.weights}
    stored = []
    for run in runs:
        for found in list_transferred(run.run_directory):
            first, *others = [net.weights for net in found.protocol.nets]
            # skips nets that were trained again since, and stacks with a net of a run that is not among these
            if first == run.weights and all(weights in by_weights for weights in others):
                stored.append(StoredTransfer((run, *(by_weights[weights] for weights in others)), found))
    return sorted(stored, key=lambda test: _order(test, runs))


def _order(test: StoredTransfer, runs: Sequence[StoredRun]) -> tuple[object, ...]:
    protocol, sets = test.found.protocol, list(facts().transfer)
    position = sets.index(test.set) if test.set in sets else len(sets)
    nets = [runs.index(run) for run in test.runs]
    return position, test.set, len(nets), nets, protocol.boxes, -len(protocol.nets[0].Q)
