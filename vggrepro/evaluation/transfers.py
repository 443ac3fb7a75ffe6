"""The store of the scores that linear classifiers on features give test samples. No torch: figures are arithmetic.

There is one file for each random split, so that an interrupted test goes on at the next one. The truth lies beside
them, once for each data set, so that a reader needs neither images nor features.
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
    """One net whose features are used."""

    weights: str
    """SHA-256 of the net."""
    layer: str
    Q: tuple[int, ...]
    """Shorter sides of the rescaled images, px."""
    flip: bool
    precision: str


@dataclass(frozen=True)
class TransferProtocol:
    """What was classified, and from what."""

    set: str
    """The data set's name."""
    data: str
    """Its fingerprint."""
    measure: Measure
    nets: tuple[NetProtocol, ...]
    """Several where their descriptors are stacked."""
    combine: Combine
    """What was made of the features at several Q."""
    boxes: bool
    """Whether the descriptor of a box stands beside that of its image (Table 12)."""
    drawing: Mapping[str, Any]
    """How samples were split: seed, splits, train_per_class, test_per_class."""
    splits: int
    """How many splits there are: of one drawing, or the one that the data set has."""
    C: tuple[float, ...] = C_GRID
    """Among which the held-out samples choose."""
    rows: str = ""
    """Fingerprint of the splits: VOC's come from files, which may be edited."""

    @property
    def keys(self) -> list[SplitKey]:
        """Under which the test of each split is stored."""
        return [SplitKey(self, split) for split in range(self.splits)]

    def files(self, run: RunDirectory) -> list[Path]:
        """Where all that is stored of the test lies: the truth, and each split."""
        return [truth_file(run, self.data), *(key.file(run) for key in self.keys)]


@dataclass(frozen=True)
class SplitKey(Key[SplitScores]):
    """Identifies what the classifiers of one split said, with a note for readers.

    The note has C, what the held-out samples said of each C (`validated`), the C at which the solver was `unfinished`,
    and runs, source, images, classes, rejected, train and test.
    """

    folder = "transfers"
    value_type = SplitScores
    patterns = ("[!.]*-0.npz",)

    test: TransferProtocol
    split: int

    @property
    def stem(self) -> str:
        """Data set, a hash of the test, and the split."""
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
    """Chosen for each split."""
    note: Mapping[str, Any]
    """The note of the first split; see :class:`SplitKey`."""


def truth_file(run: RunDirectory, data: str) -> Path:
    """Where the targets of a data set are stored, by its fingerprint."""
    return run.transfers / f"truth-{data[:16]}.npz"


def save_truth(targets: Targets, run: RunDirectory, data: str) -> None:
    """Stores the targets beside the scores."""
    if not truth_file(run, data).exists():
        write_arrays(truth_file(run, data), targets=targets)


def load_transferred(protocol: TransferProtocol, run: RunDirectory) -> Transferred | None:
    """Reads the test of a protocol; None while splits are missing. Raises UserError."""
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
    """Every complete test of a run, in the order of file names. Raises UserError."""
    for key, _ in SplitKey.listed(run):
        if (found := load_transferred(key.test, run)) is not None:
            yield found
