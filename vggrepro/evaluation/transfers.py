"""The store of what linear classifiers on features said of test samples: figures are arithmetic on it. No torch.

There is one file for each random split, so that an interrupted test goes on at the next one. The truth is kept beside
them, once for each data set, so that a reader needs neither images nor features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggrepro.errors import UserError
from vggrepro.evaluation.features import Combine
from vggrepro.evaluation.parts import read_arrays, write_arrays
from vggrepro.evaluation.recognition import Recognition, SplitScores, Targets
from vggrepro.evaluation.svm import C_GRID, Classified
from vggrepro.paper import Measure


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
    def key(self) -> str:
        """Equal for tests of the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def file(self, folder: Path, split: int) -> Path:
        """Where the test of one split is stored."""
        return folder / f"{self.set}-{self.key}-{split}.npz"


@dataclass(frozen=True)
class Transferred:
    """A whole test: all splits, with what was said of it."""

    protocol: TransferProtocol
    result: Recognition
    C: tuple[float, ...]
    """Chosen for each split."""
    said: Mapping[str, Any]
    """For readers: runs, source, images, classes, rejected."""


def save_split(protocol: TransferProtocol, split: int, found: Classified, folder: Path, **said: Any) -> None:
    """Writes all or nothing; `said` is kept for readers (JSON)."""
    note = {
        "protocol": asdict(protocol),
        "C": found.C,
        "validated": [[C, figure] for C, figure in found.validated.items()],
        "unfinished": list(found.unfinished),
    }
    text = np.array(json.dumps(note | {"said": said}))
    write_arrays(protocol.file(folder, split), rows=found.tested.rows, scores=found.tested.scores, note=text)


def is_stored(protocol: TransferProtocol, folder: Path) -> bool:
    """Whether all splits are there, and the truth."""
    return truth_file(folder, protocol.data).exists() and _has_splits(protocol, folder)


def _has_splits(protocol: TransferProtocol, folder: Path) -> bool:
    return all(protocol.file(folder, split).exists() for split in range(protocol.splits))


def truth_file(folder: Path, data: str) -> Path:
    """Where the targets of a data set are stored, by its fingerprint."""
    return folder / f"truth-{data[:16]}.npz"


def save_truth(targets: Targets, folder: Path, data: str) -> None:
    """Keeps what is to be recognised beside what was said."""
    if not truth_file(folder, data).exists():
        write_arrays(truth_file(folder, data), targets=targets)


def load_transferred(protocol: TransferProtocol, folder: Path) -> Transferred | None:
    """The test of a protocol, or None while splits are missing. Raises UserError."""
    return _whole(protocol.file(folder, 0), folder)


def list_transferred(folder: Path) -> Iterator[Transferred]:
    """Every whole test in a folder, in the order of file names. Raises UserError."""
    for file in sorted(folder.glob("[!.]*-0.npz")):
        if (found := _whole(file, folder)) is not None:
            yield found


def described(file: Path) -> tuple[TransferProtocol, dict[str, Any]]:
    """(protocol, what was said of it) of the stored test of a split, without reading its scores. Raises UserError."""
    try:
        note = json.loads(str(read_arrays(file, "note")["note"]))
        tree = note["protocol"]
        nets = tuple(NetProtocol(**net | {"Q": tuple(net["Q"])}) for net in tree["nets"])
        return TransferProtocol(**tree | {"nets": nets, "C": tuple(tree["C"])}), note["said"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"transfers {file} cannot be read ({error}); remove the file and test again") from None


def _whole(first: Path, folder: Path) -> Transferred | None:
    if not first.exists():
        return None
    protocol, said = described(first)
    if not _has_splits(protocol, folder):
        return None
    tested, chosen = [], []
    for split in range(protocol.splits):
        file = protocol.file(folder, split)
        content = read_arrays(file)
        try:
            tested.append(SplitScores(content["rows"], content["scores"]))
            chosen.append(json.loads(str(content["note"]))["C"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"transfers {file} cannot be read ({error}); remove the file and test again") from None
    truth = truth_file(folder, protocol.data)
    if not truth.exists():
        raise UserError(f"transfers in {folder} lack the truth, {truth.name}; test again, which restores it")
    targets = read_arrays(truth)["targets"]
    return Transferred(protocol, Recognition(protocol.measure, targets, tested), tuple(chosen), said)
