"""The store of boxes: predictions at every position, and the final boxes that merging makes of them. No torch.

`Places` are the output of a net and need a GPU. `Found` boxes are arithmetic on the `Places` of one or several nets and
Q, stored because it takes minutes for ILSVRC. Their correctness is arithmetic again, against the stored `Truth`.
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
"""Appendix A's two protocols: the centre crop with the true class, and all positions of the full image."""
_MAX_IMAGES = 1024
"""Images whose positions are copied at a time; for ILSVRC, those of one size are a gigabyte."""


@dataclass(frozen=True)
class Places:
    """Predictions of a net at every position of n images, for K classes per image."""

    start: Ints
    """Shape (n + 1,): image i has the positions start[i] to start[i + 1]."""
    values: NDArray[np.float32]
    """Left, top, right, bottom in px of the original image and the posterior of the class, shape (positions, K, 5)."""
    classes: Ints
    """Class numbers, shape (n, K); see :class:`Found`."""


@dataclass(frozen=True)
class PlacesKey(Key[Places]):
    """Key of the predictions of a localisation net at one Q; see :class:`PosteriorsKey` for fields of the same name."""

    folder = "boxes"
    value_type = Places
    patterns = ("places-*.npz",)

    method: str
    Q: int
    weights: str
    data: str
    boxes: str
    """Fingerprint of the true boxes; images without a box are left out."""
    guesses: str = ""
    """Hash of the posteriors that the five class guesses come from; see `guesses_key`."""
    precision: str = "fp32"

    @property
    def stem(self) -> str:
        """`places`, Q and a hash."""
        return f"places-Q{self.Q}-{digest(self)}"


@dataclass(frozen=True)
class FoundKey(Key[Found]):
    """Key of a set of final boxes, with a note on the class guesses (`guesses`, `top5`)."""

    folder = "boxes"
    value_type = Found
    patterns = (f"{CENTRE}-*.npz", f"{DENSE}-*.npz")

    parts: tuple[PlacesKey, ...]
    """Nets at their Q, whose boxes are pooled before merging."""
    merge_below: float | None = None
    """Distance at which merging stopped; None for the centre crop, which has nothing to merge."""

    @property
    def method(self) -> str:
        """Method of all parts."""
        return self.parts[0].method

    @property
    def stem(self) -> str:
        """Method, all Q and a hash."""
        Q = "_".join(dict.fromkeys(str(part.Q) for part in self.parts))
        return f"{self.method}-Q{Q}-{digest(self)}"


def truth_file(run: RunDirectory, data: str, boxes: str) -> Path:
    """Returns the file of the true boxes with these fingerprints; a run may have predictions for several sets."""
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
    """Merges all positions of several nets and Q, up to the distance `below`, into a box per class and image."""
    classes = sets[0].classes
    assert all(np.array_equal(places.classes, classes) for places in sets), "boxes of other classes or images"
    n, per_image = classes.shape
    counts = np.stack([np.diff(places.start) for places in sets])
    found = np.empty((n, per_image, 4), np.float32)
    for numbers in np.unique(counts, axis=1).T:  # images with the same number of positions fit one array
        alike = np.flatnonzero((counts == numbers[:, None]).all(axis=0))
        for rows in np.array_split(alike, -(-len(alike) // _MAX_IMAGES)):
            pooled = [
                places.values[spans(places.start[rows], np.full(len(rows), number))].reshape(len(rows), number, -1, 5)
                for places, number in zip(sets, numbers, strict=True)
            ]
            # a set per image and class
            together = np.concatenate(pooled, axis=1).swapaxes(1, 2).reshape(len(rows) * per_image, -1, 5)
            best, _ = merge(together[..., :4], together[..., 4], below)
            found[rows] = best.reshape(len(rows), per_image, 4)
    return Found(found, classes)
