"""Boxes of the objects in the images of an index (Appendix A)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.archive_members import SPLITS
from vggrepro.data.images.index import Index
from vggrepro.data.views import Ints
from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing

_FORMAT_VERSION = 1


def spans(start: Ints, counts: Ints) -> Ints:
    """Concatenates the numbers start[i] .. start[i] + counts[i] - 1 of every i, shape (sum of counts,)."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + counts, counts)


@dataclass(frozen=True)
class Boxes:
    """Boxes of the objects in the usable images of a split, in index order."""

    start: Ints
    """First box of each image, shape (images + 1,): image i has `box[start[i]:start[i + 1]]`."""
    box: NDArray[np.float64]
    """Left, top, right and bottom in the stored image, px, shape (boxes, 4); pixel i extends from i to i + 1."""

    def of(self, image: int) -> NDArray[np.float64]:
        """Returns the boxes of an image, shape (k, 4)."""
        return self.box[self.start[image] : self.start[image + 1]]

    @property
    def counts(self) -> Ints:
        """Number of boxes per image, shape (images,)."""
        return np.diff(self.start)

    @property
    def has(self) -> NDArray[np.bool_]:
        """Whether an image has boxes, shape (images,)."""
        return self.counts > 0

    def largest(self) -> NDArray[np.float64]:
        """Returns each image's box of largest area, the first of equal ones, or NaN, shape (images, 4)."""
        image = np.repeat(np.arange(len(self.start) - 1), self.counts)
        area = (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])
        order = np.lexsort((-area, image))  # stable, so the first of equal boxes stays first
        largest = np.full((len(self.start) - 1, 4), np.nan)
        largest[self.has] = self.box[order[self.start[:-1][self.has]]]
        return largest

    def take(self, rows: Ints) -> Boxes:
        """Returns the boxes of the images `rows`, shape (n,), in this order."""
        rows = np.asarray(rows, np.int64)
        counts = self.counts[rows]
        start = np.concatenate(([0], np.cumsum(counts)))
        return Boxes(start, self.box[spans(self.start[rows], counts)])


@dataclass(frozen=True)
class BoxSet:
    """The boxes of a data set, and the oddities of the annotation files."""

    splits: Mapping[str, Boxes]
    """Boxes of `train` and `val`."""
    index: str
    """Fingerprint of the index."""
    sources: tuple[str, ...]
    """Annotation files and folders."""
    counts: dict[str, Any]
    """annotations (XML files and rows of tables), boxes (used), clipped (of these), left_out and unread by reason,
    images by split (`with` boxes, `without`), rejected and unknown (annotations of rejected and unindexed images)."""
    flagged: tuple[tuple[str, str], ...] = field(repr=False)
    """Status and path of every box and file that is not ok."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the boxes of both splits, in order."""
        digest = hashlib.sha256()
        for name in SPLITS:
            boxes = self.split(name)
            digest.update(np.ascontiguousarray(boxes.start, "<i8").tobytes())
            digest.update(np.ascontiguousarray(boxes.box, "<f8").tobytes())
        return digest.hexdigest()

    def split(self, name: str) -> Boxes:
        """Returns the boxes of `train` or `val`."""
        return self.splits[name]

    def summary(self) -> dict[str, Any]:
        """Summarises the set for JSON: `counts`, sources, and the fingerprints of index and boxes."""
        return {"sources": list(self.sources), **self.counts, "index": self.index, "fingerprint": self.fingerprint}

    def save(self, path: Path) -> None:
        """Writes the boxes to an .npz file, atomically. Raises UserError."""
        about = {"version": _FORMAT_VERSION}
        about |= {key: getattr(self, key) for key in ("index", "sources", "counts", "flagged")}
        arrays = {f"{part}_{name}": getattr(self.split(name), part) for name in SPLITS for part in ("start", "box")}
        try:
            with replacing(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        except OSError as error:
            raise UserError(f"boxes {path} cannot be written: {error.strerror}; choose another place") from None


def load(path: Path, index: Index) -> BoxSet:
    """Reads boxes written by :meth:`BoxSet.save` and checks them against an index. Raises UserError."""
    remedy = f"make it again with `vggrepro boxes IMAGES --out {path}`"
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            if about["version"] != _FORMAT_VERSION:
                raise UserError(f"boxes {path} has another format version; {remedy}")
            splits = {name: Boxes(stored[f"start_{name}"], stored[f"box_{name}"]) for name in SPLITS}
        loaded = BoxSet(
            splits,
            about["index"],
            tuple(about["sources"]),
            about["counts"],
            tuple((status, place) for status, place in about["flagged"]),
        )
        valid = all(map(_is_valid, splits.values()))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"boxes {path} does not exist; make it with `vggrepro boxes IMAGES --out {path}`") from None
    except Exception as error:  # damaged zip files and arrays raise many types
        raise UserError(f"boxes {path} cannot be read ({reason_of(error, 100)}); {remedy}") from None
    if loaded.index != index.fingerprint:
        raise UserError(f"boxes {path} is of other images than {index.source}; {remedy}")
    if not valid or any(len(boxes.counts) != len(index.split(name)) for name, boxes in splits.items()):
        raise UserError(f"boxes {path} is damaged; {remedy}")
    return loaded


def _is_valid(boxes: Boxes) -> bool:
    start, box = boxes.start, boxes.box
    return (
        (start.dtype, box.dtype) == (np.int64, np.float64)
        and start.ndim == 1
        and len(start) > 0
        and start[0] == 0
        and bool((np.diff(start) >= 0).all())
        and box.shape == (start[-1], 4)
        and bool(np.isfinite(box).all() and (box[:, 2:] > box[:, :2]).all())
    )
