"""The store of boxes: what nets predict at every place, and the final boxes that merging makes of it.

`Places` are the product of the nets and take a GPU. `Found` boxes are arithmetic on them, of one net at one Q or of
several nets at several, and are stored because that arithmetic takes minutes for ILSVRC. What is right of them is
arithmetic again, against the `Truth` beside them. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.boxes.box_set import Boxes, spans
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.boxes import Found, Truth
from vggrepro.evaluation.merging import merge
from vggrepro.evaluation.store import Key, digest, read_arrays, write_arrays
from vggrepro.storage.directory import RunDirectory

CENTRE, DENSE = "centre", "dense"
"""Appendix A's two protocols: the centre crop with the true class, and all places of the whole image."""
_MOST_IMAGES = 1024
"""Whose places are copied at a time: for ILSVRC, those of one size are a gigabyte."""


@dataclass(frozen=True)
class Places:
    """What a net predicts at every place of n images for K classes each."""

    start: Ints
    """(n + 1,): image i has the places start[i] to start[i + 1]."""
    values: NDArray[np.float32]
    """(places, K, 5) left, top, right, bottom in px of the image as it is, and the posterior of the class there."""
    classes: Ints
    """(n, K) class numbers; see :class:`Found`."""


@dataclass(frozen=True)
class PlacesKey(Key[Places]):
    """Identifies what one net predicts at every place, or for the centre crop, at one Q."""

    folder = "boxes"
    value_type = Places
    patterns = ("places-*.npz",)

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
    """Hash of where the guessed classes (n, 5) besides the true one come from: of these posteriors."""
    precision: str = "fp32"

    @property
    def stem(self) -> str:
        """Q and a hash."""
        return f"places-Q{self.Q}-{digest(self)}"


@dataclass(frozen=True)
class FoundKey(Key[Found]):
    """Identifies one set of final boxes, with a note of who named the classes (`guesses`, `top5`)."""

    folder = "boxes"
    value_type = Found
    patterns = (f"{CENTRE}-*.npz", f"{DENSE}-*.npz")

    parts: tuple[PlacesKey, ...]
    """The nets at their Q, whose boxes are pooled before merging."""
    merge_below: float | None = None
    """Where merging stopped; None for the centre crop, which has nothing to merge."""

    @property
    def method(self) -> str:
        """Of all parts."""
        return self.parts[0].method

    @property
    def stem(self) -> str:
        """Method, every Q and a hash."""
        Q = "_".join(dict.fromkeys(str(part.Q) for part in self.parts))
        return f"{self.method}-Q{Q}-{digest(self)}"


def truth_file(run: RunDirectory, data: str, boxes: str) -> Path:
    """Where the true boxes of an index are stored, by the fingerprints of index and boxes.

    One file for each: a run may have boxes that were predicted for other true ones before.
    """
    return run.boxes / f"truth-{hashlib.sha256(f'{data} {boxes}'.encode()).hexdigest()[:16]}.npz"


def save_truth(truth: Truth, run: RunDirectory, data: str, boxes: str) -> None:
    """Stores the true boxes beside the predicted ones."""
    arrays = {"labels": truth.labels, "size": truth.size, "start": truth.boxes.start, "box": truth.boxes.box}
    write_arrays(truth_file(run, data, boxes), **arrays)


def load_truth(run: RunDirectory, data: str, boxes: str) -> Truth:
    """Reads the true boxes. Raises UserError."""
    file = truth_file(run, data, boxes)
    if not file.exists():
        raise UserError(f"boxes in {run.boxes} lack the true ones, {file.name}; remove the folder and test again")
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
        alike = np.flatnonzero((counts == number[:, None]).all(axis=0))
        for rows in np.array_split(alike, -(-len(alike) // _MOST_IMAGES)):
            pooled = [
                one.values[spans(one.start[rows], np.full(len(rows), places))].reshape(len(rows), places, per_image, 5)
                for one, places in zip(sets, number, strict=True)
            ]
            # a set for each image and class
            together = np.concatenate(pooled, axis=1).swapaxes(1, 2).reshape(len(rows) * per_image, -1, 5)
            best, _ = merge(together[..., :4], together[..., 4], below)
            found[rows] = best.reshape(len(rows), per_image, 4)
    return Found(found, classes)
