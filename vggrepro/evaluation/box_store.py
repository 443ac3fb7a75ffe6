"""The store of boxes: what nets predict at every place, and what is made of it by merging; kept as posteriors are.

`Places` are the product of the nets and take a GPU. `Found` boxes are arithmetic on them, of one net at one Q or of
several nets at several, and are kept because that arithmetic takes minutes for ILSVRC. What is right of them is
arithmetic again, against the `Truth` that is kept beside them. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.boxes import Boxes, spans
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.boxes import Found, Truth
from vggrepro.evaluation.merging import merge
from vggrepro.evaluation.parts import read_arrays, write_arrays

CENTRE, DENSE = "centre", "dense"
"""Appendix A's two protocols: the centre crop with the true class, and all places of the whole image."""


@dataclass(frozen=True)
class BoxProtocol:
    """What a set of boxes was predicted from."""

    method: str
    Q: int
    """Shorter side of the rescaled images, px."""
    weights: str
    """SHA-256 of the net that predicts boxes."""
    data: str
    """Fingerprint of the index."""
    boxes: str
    """Fingerprint of the true boxes: images without one are left out."""
    guesses: str = ""
    """Hash of the classes that were asked for besides the true one: (n, 5), of the posteriors that they come from."""
    precision: str = "fp32"

    def file(self, folder: Path) -> Path:
        """Where it is stored."""
        return folder / f"places-Q{self.Q}-{_key(self)}.npz"


@dataclass(frozen=True)
class FoundProtocol:
    """What a set of final boxes was made from."""

    parts: tuple[BoxProtocol, ...]
    """The nets at their Q, whose boxes are pooled before merging."""
    merge_below: float | None = None
    """Where merging stopped; None for the centre crop, which has nothing to merge."""

    @property
    def method(self) -> str:
        """Of all parts."""
        return self.parts[0].method

    def file(self, folder: Path) -> Path:
        """Where it is stored."""
        Q = "_".join(dict.fromkeys(str(part.Q) for part in self.parts))
        return folder / f"{self.method}-Q{Q}-{_key(self)}.npz"


@dataclass(frozen=True)
class NetProtocols:
    """All that is stored of one net, on some images."""

    weights: str
    data: str
    boxes: str
    precision: str

    def centre(self, Q: int) -> FoundProtocol:
        """Table 8's test: the centre crop, the true class."""
        return FoundProtocol((BoxProtocol(CENTRE, Q, **asdict(self)),))

    def places(self, Q: Iterable[int], guesses: str) -> tuple[BoxProtocol, ...]:
        """What Table 9's test pools: all places at each Q, for guesses of a key."""
        return tuple(BoxProtocol(DENSE, side, guesses=guesses, **asdict(self)) for side in Q)

    def dense(self, Q: Iterable[int], guesses: str, merge_below: float) -> FoundProtocol:
        """Table 9's test of this net alone."""
        return FoundProtocol(self.places(Q, guesses), merge_below)


def _key(protocol: BoxProtocol | FoundProtocol) -> str:
    return hashlib.sha256(json.dumps(asdict(protocol), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Places:
    """What a net predicts at every place of n images for K classes each."""

    start: Ints
    """(n + 1,): image i has the places start[i] to start[i + 1]."""
    values: NDArray[np.float32]
    """(places, K, 5) left, top, right, bottom in px of the image as it is, and the posterior of the class there."""
    classes: Ints
    """(n, K) class numbers; see :class:`Found`."""


def save_places(protocol: BoxProtocol, places: Places, folder: Path) -> None:
    """Writes all or nothing."""
    write_arrays(protocol.file(folder), **vars(places), protocol=_text(protocol))


def load_places(protocol: BoxProtocol, folder: Path) -> Places | None:
    """What is stored under a protocol, or None. Raises UserError."""
    content = _load(protocol.file(folder), _text(protocol))
    return None if content is None else Places(content["start"], content["values"], content["classes"])


def save_found(protocol: FoundProtocol, found: Found, folder: Path, **said: Any) -> None:
    """Writes all or nothing; `said` is kept beside it for readers (JSON)."""
    note = np.array(json.dumps(said))
    write_arrays(protocol.file(folder), **vars(found), protocol=_text(protocol), said=note)


def load_found(protocol: FoundProtocol, folder: Path) -> Found | None:
    """What is stored under a protocol, or None. Raises UserError."""
    content = _load(protocol.file(folder), _text(protocol))
    return None if content is None else Found(content["boxes"], content["classes"])


def list_found(folder: Path) -> list[tuple[FoundProtocol, dict[str, Any]]]:
    """Every stored set of final boxes: its protocol and what was said of it. Raises UserError."""
    listed = []
    for file in sorted((*folder.glob(f"{CENTRE}-*.npz"), *folder.glob(f"{DENSE}-*.npz"))):
        content = read_arrays(file, "protocol", "said")
        try:
            tree = json.loads(str(content["protocol"]))
            parts = tuple(BoxProtocol(**part) for part in tree.pop("parts"))
            listed.append((FoundProtocol(parts, **tree), json.loads(str(content["said"]))))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"boxes {file} cannot be read ({error}); remove the file and evaluate again") from None
    return listed


def truth_file(folder: Path, data: str, boxes: str) -> Path:
    """Where what is to be found in the images of an index is stored, by the fingerprints of index and true boxes.

    One file for each: a folder may hold boxes that were predicted for other true ones before.
    """
    return folder / f"truth-{hashlib.sha256(f'{data} {boxes}'.encode()).hexdigest()[:16]}.npz"


def save_truth(truth: Truth, folder: Path, data: str, boxes: str) -> None:
    """Keeps what is to be found beside what is."""
    arrays = {"labels": truth.labels, "size": truth.size, "start": truth.boxes.start, "box": truth.boxes.box}
    write_arrays(truth_file(folder, data, boxes), **arrays)


def load_truth(folder: Path, data: str, boxes: str) -> Truth:
    """What is to be found. Raises UserError."""
    file = truth_file(folder, data, boxes)
    if not file.exists():
        raise UserError(f"boxes in {folder} lack the true ones, {file.name}; remove the folder and test again")
    content = read_arrays(file)
    return Truth(content["labels"], content["size"], Boxes(content["start"], content["box"]))


def merge_places(sets: Sequence[Places], below: float) -> Found:
    """One box for each class of each image, of all places of several nets and Q together (Appendix A)."""
    classes = sets[0].classes
    assert all(np.array_equal(one.classes, classes) for one in sets), "boxes of other classes or images"
    n, per_image = classes.shape
    counts = np.stack([np.diff(one.start) for one in sets])
    found = np.empty((n, per_image, 4), np.float32)
    for number in np.unique(counts, axis=1).T:  # images that have equally many places, which fit one array
        rows = np.flatnonzero((counts == number[:, None]).all(axis=0))
        pooled = [
            one.values[spans(one.start[rows], np.full(len(rows), places))].reshape(len(rows), places, per_image, 5)
            for one, places in zip(sets, number, strict=True)
        ]
        # a set for each image and class
        together = np.concatenate(pooled, axis=1).swapaxes(1, 2).reshape(len(rows) * per_image, -1, 5)
        best, _ = merge(together[..., :4], together[..., 4], below)
        found[rows] = best.reshape(len(rows), per_image, 4)
    return Found(found, classes)


def _text(protocol: BoxProtocol | FoundProtocol) -> NDArray[Any]:
    return np.array(json.dumps(asdict(protocol), sort_keys=True))


def _load(file: Path, protocol: NDArray[Any]) -> dict[str, NDArray[Any]] | None:
    if not file.exists():
        return None
    content = read_arrays(file)
    if str(content.get("protocol")) != str(protocol):
        raise UserError(f"boxes {file} are of another protocol; remove the file and evaluate again")
    return content
