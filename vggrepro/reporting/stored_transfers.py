"""What linear classifiers on the features of runs got right, read from their stores: all that Tables 11 and 12 need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vggrepro.evaluation.feature_spec import scales_at
from vggrepro.evaluation.transfers import Transferred, list_transferred
from vggrepro.paper import TransferTask, facts
from vggrepro.reporting.runs import StoredRun


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
        asked = self.found.protocol
        return asked.data, asked.rows, asked.drawing


def stored_transfers(runs: Iterable[StoredRun]) -> list[StoredTransfer]:
    """All tests of the final nets of some runs, in the order of the paper's tables. Raises UserError."""
    runs = list(runs)
    by_weights = {run.weights: run for run in reversed(runs) if run.weights}
    return sorted(_stored(runs, by_weights), key=lambda one: _order(one, runs))


def _stored(runs: Sequence[StoredRun], by_weights: dict[str, StoredRun]) -> Iterator[StoredTransfer]:
    for run in runs:
        for found in list_transferred(run.run_directory):
            nets = [net.weights for net in found.protocol.nets]
            # of a net that was trained again since, or that was stacked with one that is not among these
            if nets[0] == run.weights and all(weights in by_weights for weights in nets):
                yield StoredTransfer((run, *(by_weights[weights] for weights in nets[1:])), found)


def _order(one: StoredTransfer, runs: Sequence[StoredRun]) -> tuple[object, ...]:
    asked, known = one.found.protocol, list(facts().transfer)
    at = known.index(one.set) if one.set in known else len(known)
    return at, one.set, len(one.runs), [runs.index(run) for run in one.runs], asked.boxes, -len(asked.nets[0].Q)


def as_the_paper(one: StoredTransfer, task: TransferTask) -> bool:
    """Whether a protocol is the paper's: scales in proportion to the crop, combination, mirror images, splits."""
    asked = one.found.protocol
    scales = [scales_at(run.config.model.crop, task.scales) for run in one.runs]
    drawn = (task.splits, task.train_per_class, task.test_per_class)
    own = tuple(asked.drawing[name] for name in ("splits", "train_per_class", "test_per_class"))
    return (
        [net.Q for net in asked.nets] == scales
        and asked.combine == task.combine
        and all(net.flip for net in asked.nets)
        and (task.splits is None or drawn == own)
    )
