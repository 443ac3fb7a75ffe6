"""The store of the scores that linear classifiers on features give to test samples. No torch.

Each random split has a file, so that an interrupted test resumes at the next one. The targets are stored beside them
once per data set, so that readers need neither images nor features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vggrepro.errors import UserError
from vggrepro.evaluation.recognition import Recognition, SplitScores, Targets
from vggrepro.evaluation.store import Arrays, Key, Note, digest, parsed, read_arrays, write_arrays
from vggrepro.evaluation.svm import C_GRID
from vggrepro.paper import Combine, Measure
from vggrepro.storage.directory import RunDirectory


@dataclass(frozen=True)
class NetProtocol:
    """A net whose features are used, and how; see :class:`FeaturesKey`."""

    weights: str
    layer: str
    Q: tuple[int, ...]
    flip: bool
    precision: str


@dataclass(frozen=True)
class TransferProtocol:
    """Protocol of a test: the data set, the features and the splits."""

    set: str
    data: str
    """Fingerprint of the data set."""
    measure: Measure
    nets: tuple[NetProtocol, ...]
    """The nets; the descriptors of several are stacked."""
    combine: Combine
    boxes: bool
    """Whether the descriptor of a box is added to that of its image (Table 12)."""
    drawing: Mapping[str, Any]
    """Parameters of the random splits: seed, splits, train_per_class, test_per_class."""
    splits: int
    """Number of splits: random ones, or 1 for the data set's split."""
    C: tuple[float, ...] = C_GRID
    """Values that the validation samples choose from."""
    rows: str = ""
    """Fingerprint of the splits; VOC's come from files, which may be edited."""

    @property
    def keys(self) -> list[SplitKey]:
        """Keys of the results of the splits."""
        return [SplitKey(self, split) for split in range(self.splits)]

    def files(self, run: RunDirectory) -> list[Path]:
        """Returns all files of the test: the targets and the splits."""
        return [truth_file(run, self.data), *(key.file(run) for key in self.keys)]


@dataclass(frozen=True)
class SplitKey(Key[SplitScores]):
    """Key of the scores of a split, with a note for readers.

    The note has C, the validation score of each C (`validated`), the classes without convergence (`unfinished`), and
    runs, source, images, classes, rejected, train and test.
    """

    folder = "transfers"
    value_type = SplitScores
    patterns = ("[!.]*-0.npz",)

    test: TransferProtocol
    split: int

    @property
    def stem(self) -> str:
        """Data set, a hash of the protocol, and the number of the split."""
        return f"{self.test.set}-{digest(self.test)}-{self.split}"

    def _header(self, note: Note) -> dict[str, Note]:
        solved = {name: note.pop(name) for name in ("C", "validated", "unfinished")}
        return {"note": solved | {"protocol": asdict(self.test), "said": note}}

    @classmethod
    def _parsed(cls, file: Path, content: Arrays) -> tuple[SplitKey, Note]:
        note = json.loads(str(content["note"]))
        test = parsed(TransferProtocol, note.pop("protocol"))
        return cls(test, int(file.stem.rpartition("-")[2])), note.pop("said") | note


@dataclass(frozen=True)
class Transferred:
    """A test with all its splits."""

    protocol: TransferProtocol
    result: Recognition
    C: tuple[float, ...]
    """C chosen for each split."""
    note: Mapping[str, Any]
    """The note of the first split; see :class:`SplitKey`."""


def truth_file(run: RunDirectory, data: str) -> Path:
    """Returns the file of the targets of a data set with this fingerprint."""
    return run.transfers / f"truth-{data[:16]}.npz"


def save_truth(targets: Targets, run: RunDirectory, data: str) -> None:
    """Stores the targets beside the scores, once."""
    if not truth_file(run, data).exists():
        write_arrays(truth_file(run, data), targets=targets)


def load_transferred(protocol: TransferProtocol, run: RunDirectory) -> Transferred | None:
    """Reads the test of a protocol, or None if splits are missing. Raises UserError."""
    splits = [key.load(run) for key in protocol.keys if key.exists(run)]
    if len(splits) < protocol.splits:
        return None
    truth = truth_file(run, protocol.data)
    if not truth.exists():
        raise UserError(f"transfers in {run.transfers} lack the truth, {truth.name}; test again, which restores it")
    notes = [key.note(run) for key in protocol.keys]
    result = Recognition(protocol.measure, read_arrays(truth)["targets"], [split for split in splits if split])
    return Transferred(protocol, result, tuple(note["C"] for note in notes), notes[0])


def list_transferred(run: RunDirectory) -> Iterator[Transferred]:
    """Yields every complete test of a run by file name. Raises UserError."""
    for key, _ in SplitKey.listed(run):
        if (found := load_transferred(key.test, run)) is not None:
            yield found
