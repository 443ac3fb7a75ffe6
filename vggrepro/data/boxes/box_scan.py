"""Finds the boxes of a data set, and checks every annotation against its image.

Boxes that do not fit are left out and reported. No annotation can stop the reading.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from vggrepro.data.boxes.annotations import KNOWN, Annotation, Unread, annotation_files, read_annotations
from vggrepro.data.boxes.box_set import Boxes, BoxSet, load
from vggrepro.data.images.archive_members import SPLIT_FOLDERS, SPLITS, VAL_WORDS, stem_of, without_folders, words_of
from vggrepro.data.images.columns import Texts
from vggrepro.data.images.index import Index, Split, numbers_of, stamp_of
from vggrepro.errors import UserError, printable
from vggrepro.files import why_unwritable

Progress = Callable[[int], None]
Edges = tuple[float, float, float, float]
Cut = tuple[Edges, bool]  # the part of a box inside its image, and whether more than a pixel was cut off
_READER_VERSION = 1  # increases when the same files give other boxes, so that cached ones are read again
_UNIQUE_NAME = re.compile(r"n\d{8}_\d+|ILSVRC\d+_val_\d+")  # ILSVRC gave each of these names to a single image
_SHOWN = 80  # characters of a file's content in messages
_KAGGLE = ("CLS-LOC", "Data", "ILSVRC")  # folders of Kaggle's tree, below the one that holds LOC_*_solution.csv


def read_boxes(index: Index, sources: Sequence[Path], progress: Progress = lambda annotations: None) -> BoxSet:
    """Reads the boxes of an index's images; calls `progress` with the number of annotations read so far.

    Raises UserError for a source without readable annotations. All other oddities are in the result.
    """
    images, found = _Images(index), _Collected()
    for source in sources:
        before, problem = found.annotations, ""
        for annotation in read_annotations(source):
            if isinstance(annotation, Unread):
                problem = problem or f" ({annotation.place}: {annotation.reason})"
                found.flag(f"unread: {annotation.reason}", annotation.place)
                continue
            found.add(annotation, images)
            if found.annotations % 1000 == 0:
                progress(found.annotations)
        if found.annotations == before:
            raise UserError(f"{source} contains no boxes{problem}; give {', '.join(KNOWN)}")
    progress(found.annotations)
    return found.box_set(index, sources)


class _Images:
    """Finds images of an index by name. A row is an image of any split, usable or rejected."""

    def __init__(self, index: Index) -> None:
        self._splits = [index.split(name) for name in SPLITS]
        self._label = numbers_of(index.table["label"].chunk(0))
        self._number = {name: number for number, name in enumerate(index.classes)}
        self._path = index.table["name"].chunk(0)
        stems = (hash(stem_of(without_folders(path.as_py()))) for path in self._path)
        by_row = np.fromiter(stems, np.int64, len(self._path))
        self._order = np.argsort(by_row, kind="stable")
        self._hash = by_row[self._order]  # a dictionary of a million names would take 0.5 GB

    def _name(self, row: int) -> str:
        return without_folders(self._path[row].as_py())

    def _rows(self, stem: str) -> list[int]:
        first, last = (np.searchsorted(self._hash, hash(stem), side) for side in ("left", "right"))
        return [row for row in self._order[first:last].tolist() if stem_of(self._name(row)) == stem]

    def at(self, row: int) -> tuple[Split, int]:
        """Returns split and image number of a row; the number of a rejected image is not below the split's length."""
        train, val = self._splits
        n_train = len(train) + train.rejected
        return (train, row) if row < n_train else (val, row - n_train)

    def find(self, annotation: Annotation) -> list[int]:
        """Finds the rows that an annotation may belong to: a single row, unless it is ambiguous."""
        stem = stem_of(annotation.name)
        rows = self._rows(stem)
        if split := next(filter(None, map(_split_of, reversed(annotation.folders))), None):
            in_split = [row for row in rows if self.at(row)[0].name == split]
            # ILSVRC's training images may be used for validation, but 1.jpg of train/ is not the one of val/
            rows = in_split or (rows if _UNIQUE_NAME.fullmatch(stem) else [])
        if len(rows) > 1:
            named = {self._number.get(name) for name, _ in annotation.objects if name}
            labels = named or {self._label_of(annotation.folders)}
            rows = [row for row in rows if self._label[row] in labels] or rows
            rows = [row for row in rows if self._name(row) == annotation.name] or rows
        return rows

    def fitted(self, row: int, annotation: Annotation, name: str | None, numbers: Sequence[str]) -> Cut | str:
        """Returns an object's box in the image of a row, or the reason to leave it out."""
        split, image = self.at(row)
        height, width = split.size[image].tolist()
        label = self._label_of(annotation.folders) if name is None else self._number.get(name, -1)
        if isinstance(edges := edges_of(numbers), str):
            return edges
        if label not in (None, split.label[image]):
            return "of another class than the image"
        if annotation.size not in (None, (height, width)):
            return "of another image size"
        return cut_to_image(edges, width, height) or "outside the image"

    def _label_of(self, folders: tuple[str, ...]) -> int | None:
        """Returns the label of the innermost folder that is a class, if any."""
        return next((self._number[folder] for folder in reversed(folders) if folder in self._number), None)


def _split_of(folder: str) -> str | None:
    """Returns the split in a folder's name; None if it contains both or neither."""
    train, val = "train" in words_of(folder), not VAL_WORDS.isdisjoint(words_of(folder))
    return None if train == val else "train" if train else "val"


class _Collected:
    """Collects boxes and oddities."""

    def __init__(self) -> None:
        self.annotations = 0
        self._flagged: list[tuple[str, str]] = []
        self._without_image: Counter[str] = Counter()
        self._images = {name: array("q") for name in SPLITS}
        self._boxes = {name: array("d") for name in SPLITS}
        self._places = {name: Texts() for name in SPLITS}

    def flag(self, status: str, place: str, words: Sequence[str] = ()) -> None:
        """Records an oddity of an annotation, or of its object with these words."""
        shown = f"{place}: {' '.join(words)[:_SHOWN]}" if words else place
        self._flagged.append((status, printable(shown)))

    def add(self, annotation: Annotation, images: _Images) -> None:
        """Adds the boxes of an annotation that fit its image."""
        self.annotations += 1
        rows = images.find(annotation)
        split, image = images.at(rows[0]) if rows else (None, 0)
        if split is None or (len(rows) == 1 and image >= len(split)):
            self._without_image["rejected" if rows else "unknown"] += 1
            return
        for name, numbers in annotation.objects:
            words = [name, *numbers] if name else numbers
            ambiguous = len(rows) > 1
            found = "of one of several images" if ambiguous else images.fitted(rows[0], annotation, name, numbers)
            if isinstance(found, str):
                self.flag(f"left out: {found}", annotation.place, words)
                continue
            cut, clipped = found
            if clipped:
                self.flag("clipped: reaches beyond the image", annotation.place, words)
            self._images[split.name].append(image)
            self._boxes[split.name].extend(cut)
            self._places[split.name].append(annotation.place)

    def box_set(self, index: Index, sources: Sequence[Path]) -> BoxSet:
        """Returns all boxes in index order, without duplicates."""
        splits = {name: self._in_order(name, len(index.split(name))) for name in SPLITS}
        statuses = Counter(status for status, _ in self._flagged)

        def by_reason(kind: str) -> dict[str, int]:
            return {status[len(kind) + 2 :]: n for status, n in sorted(statuses.items()) if status.startswith(kind)}

        return BoxSet(
            splits=splits,
            index=index.fingerprint,
            sources=tuple(map(str, sources)),
            counts={
                "annotations": self.annotations,
                "boxes": sum(len(boxes.box) for boxes in splits.values()),
                "clipped": sum(by_reason("clipped").values()),
                "left_out": by_reason("left out"),
                "unread": by_reason("unread"),
                "images": {
                    name: {"with": int(boxes.has.sum()), "without": int((~boxes.has).sum())}
                    for name, boxes in splits.items()
                },
                "rejected": self._without_image["rejected"],
                "unknown": self._without_image["unknown"],
            },
            flagged=tuple(sorted(self._flagged, key=lambda flagged: flagged[0])),
        )

    def _in_order(self, split: str, images: int) -> Boxes:
        image = np.array(self._images[split], np.int64)
        box = np.array(self._boxes[split], np.float64).reshape(-1, 4)
        order = np.lexsort((*box.T, image))  # stable, so the first of equal boxes comes first
        repeated = np.zeros(len(image), np.bool_)
        repeated[order[1:]] = (np.diff(image[order]) == 0) & (np.diff(box[order], axis=0) == 0).all(axis=1)
        for number in repeated.nonzero()[0].tolist():
            numbers = [f"{edge:g}" for edge in box[number] - (0, 0, 1, 1)]
            self.flag("left out: said before", self._places[split][number], numbers)
        distinct = (~repeated).nonzero()[0]
        distinct = distinct[np.argsort(image[distinct], kind="stable")]
        return Boxes(np.searchsorted(image[distinct], np.arange(images + 1)).astype(np.int64), box[distinct])


def edges_of(numbers: Sequence[str], first: int = 0) -> Edges | str:
    """Converts inclusive pixel numbers, counted from `first`, to edges in px, or returns the reason why it cannot."""
    try:
        left, top, right, bottom = (math.nan if "_" in number else float(number) for number in numbers)
    except ValueError:
        left = top = right = bottom = math.nan
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return "not four numbers"
    ends = ((left, right), (top, bottom))
    if any(last < first and last + 1 != first for first, last in ends):
        return "inverted"
    if any(last < first for first, last in ends):
        return "empty"
    return left - first, top - first, right + 1 - first, bottom + 1 - first


def cut_to_image(edges: Edges, width: int, height: int) -> Cut | None:
    """Returns the part of a box inside its image; None if nothing is left."""
    left, top, right, bottom = edges
    cut = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        return None
    # some of ILSVRC's numbers include the width itself, a pixel too far
    return cut, max(-left, -top, right - width, bottom - height) > 1


def beside(root: Path) -> list[Path]:
    """Finds known annotations beside the images of a folder or archive: boxes.tsv, or the first kind per split."""
    root = root.resolve() if root.is_dir() else root.resolve().parent
    places = [root, root / "ILSVRC"]
    while root.name in _KAGGLE:
        root = root.parent
        places.append(root)
    for place in places:
        if (place / "boxes.tsv").is_file():
            return [place / "boxes.tsv"]
    found: list[Path] = []
    for split in SPLITS:
        for pattern in (f"ILSVRC*_bbox_{split}*.t*", f"Annotations/CLS-LOC/{split}", f"LOC_{split}_solution.csv"):
            if files := [file for place in places for file in sorted(place.glob(pattern))]:
                found += files
                break
        else:
            for top in (places[0] / name for name in sorted(VAL_WORDS if split == "val" else {split})):
                if (top / "val_annotations.txt").is_file():
                    found.append(top / "val_annotations.txt")
                elif any((folder / f"{folder.name}_boxes.txt").is_file() for folder in top.glob("*")):
                    found.append(top)
    return found


def _roots(index: Index) -> Iterator[Path]:
    """Yields the folders that hold an index's archives, or its train/ and val/."""
    for container in map(Path, index.containers):
        if str(container) in index.archives:
            yield container.parent
        else:
            folders = (container, *container.parents[:2])
            yield from (folder.parent for folder in folders if folder.name.lower() in SPLIT_FOLDERS)


def open_boxes(
    index: Index, boxes: Path | None, root: Path | None, cache: Path, progress: Progress = lambda annotations: None
) -> BoxSet:
    """Opens `data.boxes`, or reads the boxes beside the images of `root` or else of the index. Raises UserError.

    Boxes are stored in `cache` for reuse until the images or the annotation files change.
    """
    if boxes is not None:
        return load(boxes, index)
    roots = [root] if root else dict.fromkeys(_roots(index))
    sources = list(dict.fromkeys(file for folder in roots for file in beside(folder)))
    if not sources:
        raise UserError(
            f"{root or index.source} has no boxes beside its images (boxes.tsv, ILSVRC2012_bbox_*, "
            f"Annotations/CLS-LOC, LOC_*_solution.csv, *_boxes.txt); put them there, or name a file made by "
            f"`vggrepro boxes` in data.boxes"
        )
    cached = cache / f"boxes-{_signature(index, sources)[:16]}.npz"
    with suppress(UserError):  # missing, of an earlier version, or torn
        return load(cached, index)
    box_set = read_boxes(index, sources, progress)
    if not why_unwritable(cache):
        box_set.save(cached)
    return box_set


def _signature(index: Index, sources: Sequence[Path]) -> str:
    """Computes a hash (hex) that changes with the images and with any annotation file."""
    digest = hashlib.sha256(f"{_READER_VERSION} {index.fingerprint}\n".encode())
    for source in sources:
        for file in annotation_files(source):
            digest.update(f"{file}\0{stamp_of(str(file))}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
