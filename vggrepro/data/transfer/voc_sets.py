"""Finds the files of a year in PASCAL VOC's development kits, and reads its image sets.

Image sets are text files. `ImageSets/Main/<class>_<set>.txt` labels every image of a set as showing the class or not
(`id label`), `ImageSets/Action/<class>_<set>.txt` every person (`id number label`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vggrepro.data.images.archive_members import Member
from vggrepro.data.images.tree import Files, Folder, Tar, Tree, archives_in, below, contents, tree_of
from vggrepro.errors import UserError

_LABELS = {"-1": -1, "0": 0, "1": 1}
_SETS = ("train", "val", "trainval", "test")
_DEEPEST = 3  # folders down to that of a year: VOCtrainval_06-Nov-2007/VOCdevkit/VOC2007
_SET_MOST = 16 << 20  # bytes of a set file; the largest has some 300,000
_SHOWN = 80  # characters of a file's content in messages
_ARCHIVES = {
    "2007": {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"},
    "2012": {"trainval": "VOCtrainval_11-May-2012.tar", "test": "VOC2012test.tar"},
}


class Challenge(NamedTuple):
    """A task of a year."""

    year: str
    folder: str  # subfolder of `ImageSets`
    labelled: tuple[str, ...]  # sets whose labels are public
    persons: bool  # whether a sample is a person, not an image


class SampleKey(NamedTuple):
    """An image, or a person in an image."""

    image: str
    person: int  # number of the object in the image's XML, from 1; 0: the sample is the image

    def __str__(self) -> str:
        image = f"image {self.image[:_SHOWN]}"
        return f"{image}, person {self.person}" if self.person else image


class Sample(NamedTuple):
    """A sample in the image sets."""

    set: str  # `train`, `val` or `test`
    place: str  # path and line that name it first, for messages
    labels: tuple[int, ...]  # 1, -1 or 0 (difficult) per class; empty without labels


_Lines = dict[SampleKey, tuple[str, int | None]]
"""Path and line, for messages, and label of each sample in an image set."""


class Kit:
    """The files of a year in any number of folders and archives; of files with the same name the first counts."""

    def __init__(self, source: Path, challenge: Challenge) -> None:
        """Raises UserError if the year is missing."""
        self.source, self.challenge = source, challenge
        year = challenge.year
        archives = _ARCHIVES[year].values()
        tree = tree_of(source, f"VOCdevkit, or a folder with {' and '.join(archives)}")
        trees: list[Tree] = [tree]
        trees += map(Tar, _worth_reading(archives_in(tree), year, unpacked=any(_years(tree))))
        found = [(tree, path, named) for tree in trees for path, named in _years(tree)]
        self._parts = [(tree, path) for tree, path, named in found if named in (year, None)]
        self._year_is_known = any(named for _, _, named in found)
        if not self._parts:
            others = ", ".join(sorted({f"VOC{named}" for _, _, named in found})) or "nothing of PASCAL VOC"
            raise UserError(f"{source} holds {others}, not VOC{year}; give VOCdevkit/VOC{year}, or {self.archive_of()}")

    def files(self, folder: str) -> Files:
        """Lists the files in a folder of the year, by name, sorted."""
        found: dict[str, Member] = {}
        for tree, path in reversed(self._parts):
            found.update(tree.files(below(path, folder)))
        return dict(sorted(found.items()))

    def archive_of(self, part: str | None = None) -> str:
        """Names the archive that holds a set, or all archives, for messages."""
        archives = _ARCHIVES[self.challenge.year]
        return archives.get(part, archives["trainval"]) if part else " and ".join(archives.values())

    def samples(self) -> tuple[tuple[str, ...], dict[SampleKey, Sample]]:
        """Returns sorted classes, and samples by image and person; `test` may have no labels. Raises UserError."""
        folder, labelled = f"ImageSets/{self.challenge.folder}", self.challenge.labelled
        files, shown = self.files(folder), f"{folder} of {self.source}"
        set_files: dict[str, dict[str, Member]] = {name: {} for name in _SETS}
        for name, file in files.items():
            class_name, _, part = name.removesuffix(".txt").rpartition("_")
            if class_name and part in set_files and name.endswith(".txt"):
                set_files[part][class_name] = file
        classes = tuple(sorted({name for part in {*labelled, "trainval"} for name in set_files[part]}))
        if not classes:
            raise UserError(f"{shown} has no image sets (<class>_train.txt); add {self.archive_of('trainval')}")
        found: dict[SampleKey, Sample] = {}
        for part in labelled:
            archive = self.archive_of(part)
            if not set_files[part]:
                raise UserError(f"{shown} has no image set {part} (<class>_{part}.txt); add {archive}")
            if missing := sorted(set(classes).difference(set_files[part])):
                raise UserError(f"{shown} has no {missing[0]}_{part}.txt; restore it from {archive}")
            columns = self._columns([set_files[part][name] for name in classes])
            if not columns[0]:
                raise UserError(f"{shown}: image set {part} is empty; restore it from {archive}")
            self._add(found, part, columns)
        list_of_all = files.get("test.txt") or next(iter(set_files["test"].values()), None)
        if "test" not in labelled and list_of_all:
            self._add(found, "test", [self._lines(list_of_all, labelled=False)])
        return classes, dict(sorted(found.items()))

    def _add(self, found: dict[SampleKey, Sample], part: str, columns: Sequence[_Lines]) -> None:
        for key, (place, _) in columns[0].items():
            if (other := found.get(key)) is not None:
                raise UserError(
                    f"{place}: {key} is also in set {other.set} ({other.place}); restore both files from "
                    f"{self.archive_of(part)}"
                )
            labels = (column[key][1] for column in columns)
            found[key] = Sample(part, place, tuple(label for label in labels if label is not None))

    def _columns(self, files: Sequence[Member]) -> list[_Lines]:
        """Reads the files of a set. Raises UserError if they name different samples."""
        columns = [self._lines(file) for file in files]
        for file, column in zip(files, columns, strict=True):
            if different := sorted(columns[0].keys() ^ column.keys()):
                with_it, without = (files[0], file) if different[0] in columns[0] else (file, files[0])
                raise UserError(f"{without.place} has no {different[0]}, {with_it.place} has; restore both files")
        return columns

    def _lines(self, file: Member, *, labelled: bool = True) -> _Lines:
        """Reads an image set. Raises UserError for an invalid line."""
        persons, year = self.challenge.persons, self.challenge.year
        restore = f"restore the file from {self.archive_of('test' if file.name.endswith('test.txt') else 'trainval')}"
        columns = ["id", *(["number"] if persons else []), *(["label"] if labelled else [])]
        found: _Lines = {}
        for number, line in enumerate(contents(file, _SET_MOST).split(b"\n"), 1):
            place = f"{file.place}:{number}"
            try:
                words = line.decode().split()
            except UnicodeDecodeError:
                raise UserError(f"{place}: not UTF-8; {restore}") from None
            if not words:
                continue
            # a file that should have no labels may have meaningless ones
            if len(words) != len(columns) and (labelled or len(words) != len(columns) + 1):
                shown = f"`{' '.join(words)[:_SHOWN]}`"
                raise UserError(f"{place}: {shown} is not `{' '.join(columns)}`; {restore}")
            if labelled and words[-1] not in _LABELS:
                raise UserError(f"{place}: label {words[-1][:_SHOWN]} must be -1, 0 or 1; {restore}")
            if persons and not re.fullmatch(r"[1-9][0-9]{0,5}", words[1]):
                raise UserError(f"{place}: {words[1][:_SHOWN]} must be an object's number, from 1; {restore}")
            key = SampleKey(words[0], int(words[1]) if persons else 0)
            if key in found:
                first = found[key][0].rpartition(":")[2]
                raise UserError(f"{place}: {key} is named twice, first in line {first}; {restore}")
            if not self._year_is_known and ("_" in key.image) != (year == "2012"):
                raise UserError(
                    f"{place}: image {key.image[:_SHOWN]} is not from VOC{year}; give VOC{year}, or name this data set"
                )
            found[key] = place, _LABELS[words[-1]] if labelled else None
        return found


def _years(tree: Tree) -> Iterator[tuple[str, str | None]]:
    """Yields (path, year) of the folders of years in a tree; the year is None if only the layout identifies it."""
    level = [""]
    for _ in range(_DEEPEST + 1):
        deeper = []
        for path in level:
            name = path.rpartition("/")[2] or (tree.root.name if isinstance(tree, Folder) else "")
            inside = tree.folders(path)
            if {"ImageSets", "JPEGImages"} & set(inside):
                year = re.fullmatch(r"VOC(\d{4})", name)
                yield path, year[1] if year else None
            else:
                deeper += [below(path, folder) for folder in inside if folder.upper().startswith("VOC")]
        level = deeper


def _worth_reading(archives: Sequence[Path], year: str, *, unpacked: bool) -> Sequence[Path]:
    """Selects archives with the year in their names, or else all; if files are unpacked, only uncompressed ones."""
    named = [file for file in archives if year in file.name]
    return [file for file in named if file.suffix == ".tar"] if unpacked else named or archives
