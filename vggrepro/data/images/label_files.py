"""Reads label files: the class of each image by its path, name or number."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vggrepro.data.images.archive_members import (
    NUMBERED,
    SUFFIXES,
    is_image,
    split_of,
    stem_of,
    without_folders,
    without_wnid,
)
from vggrepro.errors import UserError, reason_of

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
"""File of the development kit, whose class numbers have a special order."""
LONGEST = 64 << 20  # maximum bytes of a label file; ILSVRC's for training images has 40 million
_NAME_COLUMNS = {
    *("imageid", "image", "image_id", "image_name", "image name", "img", "img_path", "filename", "file_name", "fname"),
    *("file", "filepath", "file_path", "path", "name", "id"),
}
_IMAGE_AND_REST = re.compile(rf'"?(.*?(?:{"|".join(map(re.escape, SUFFIXES))}))"?\s+(.*)', re.IGNORECASE)
_CLASS_COLUMNS = ("label", "class", "wnid", "class_id", "class_name", "category", "target", "predictionstring")


def number_of(name: str) -> int | None:
    """Returns the number at the end of an image's name."""
    number = re.search(r"(\d+)$", stem_of(without_wnid(name)))
    return int(number[1]) if number else None


class LabelFile:
    """The labels in a file; classes that are numbers have the prefix NUMBERED."""

    def __init__(self, file: Path, rows: Sequence[tuple[str, str]], *, ordered: bool = False) -> None:
        """`rows` are (path or name of the image, class), or if `ordered`, (number of the image from 1, class)."""
        self.file = file
        self.ordered = ordered  # whether images are known by number only
        self.classes = {class_name for _, class_name in rows}  # all classes, including those of missing images
        self._class_of_path: dict[str, str] = {}
        self._class_of_stem: dict[str, str | None] = {}  # None: several images with different classes
        for row, class_name in rows:
            path = stem_of(row.replace("\\", "/").lstrip("./"))
            if self._class_of_path.setdefault(path, class_name) != class_name:
                raise UserError(f"labels {file} give {row} two classes; remove one of the lines")
            stem = without_folders(path)
            if self._class_of_stem.setdefault(stem, class_name) != class_name:
                self._class_of_stem[stem] = None

    def of(self, path: str) -> str | None:
        """Returns the class of an image by its name, or if several images share it, by the end of its path."""
        path = stem_of(path)
        stem = without_folders(path)
        if self.ordered:
            number = number_of(stem)
            return None if number is None else self._class_of_path.get(str(number))
        if stem not in self._class_of_stem:
            return self._class_of_stem.get(without_wnid(stem))
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        known = (self._class_of_path[end] for end in ends if end in self._class_of_path)
        return self._class_of_stem[stem] or next(known, None)

    def require(self, path: str) -> str:
        """Returns the class of an image. Raises UserError if it has none."""
        if (class_name := self.of(path)) is None:
            name, n = without_folders(path), len(self._class_of_path)
            raise UserError(f"{self.file} has no label for {name} ({n} labels); give the right file")
        return class_name

    def contradicts(self, other: LabelFile) -> bool:
        """Whether two files give an image different classes; names and numbers are not compared."""
        if self.ordered != other.ordered:
            return False
        shared = self._class_of_path.keys() & other._class_of_path.keys()
        pairs = [(self._class_of_path[path], other._class_of_path[path]) for path in shared]
        return any(a != b and a.startswith(NUMBERED) == b.startswith(NUMBERED) for a, b in pairs)


def read_labels(file: Path, content: bytes | None = None) -> LabelFile:
    """Reads labels in any known format; `content` is given for a file in a tar. Raises UserError."""
    try:
        if file.name.endswith("gz"):
            return _ordered(file, _devkit(file))
        if file.suffix == ".bin":
            from vggrepro.models.torch_file import read_torch  # loads torch

            _, wnids = read_torch(file)
            return _ordered(file, wnids)
        if content is None and (size := file.stat().st_size) > LONGEST:
            raise ValueError(f"{size >> 20} MiB are too large for labels")
        text = (file.read_bytes() if content is None else content).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it is not text")
        if file.name == GROUND_TRUTH:
            return _ordered(file, _ground_truth(text, (file.parent / "meta.mat").read_bytes()))
        rows = list(_rows(text))
        if all(len(row) < 2 for row in rows):
            return _ordered(file, ["".join(row) for row in rows])
        labels = _names_and_classes([row for row in rows if any(row)])
        return LabelFile(file, _marked([row for row in labels if not _is_of_other_split(row[0])]))
    except FileNotFoundError as error:
        raise UserError(f"{file} needs {error.filename} beside it; copy both from the development kit") from None
    except UserError:
        raise
    except Exception as error:  # pickle, tar and MATLAB files break in many ways
        raise UserError(f"labels {file} cannot be read ({reason_of(error, 100)}); give another file") from None


def _is_of_other_split(path: str) -> bool:
    """Whether the folders of an image name another split than val."""
    return any(split_of(folder) in ("train", "test") for folder in re.split(r"[/\\]", path)[:-1])


def _ordered(file: Path, classes: Sequence[str]) -> LabelFile:
    if odd := [name for name in classes if not name or is_image(name) or ";" in name]:
        raise ValueError(f"{odd[0][:40]!r} in a line is not a class" if odd[0] else "a line between others is empty")
    rows = _marked([(str(number), class_name) for number, class_name in enumerate(classes, 1)])
    if rows[0][1].startswith(NUMBERED):
        raise ValueError(
            f"numbers without names of images: those of the development kit need meta.mat beside {GROUND_TRUTH}; "
            f"otherwise write `image number` on a line"
        )
    return LabelFile(file, rows, ordered=True)


def _marked(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Adds the prefix NUMBERED to the classes if all are numbers."""
    if not rows:
        raise ValueError("it is empty")
    numbers = [re.fullmatch(r"[-+]?\d+(\.\d*)?", class_name, re.ASCII) for _, class_name in rows]
    if not all(numbers):
        return list(rows)
    if odd := [class_name for _, class_name in rows if not class_name.isdecimal()]:
        raise ValueError(f"class {odd[0]} is neither a name nor an integer from 0")
    return [(path, f"{NUMBERED}{int(class_name)}") for path, class_name in rows]


def _rows(text: str) -> Iterator[list[str]]:
    """Splits lines into cells at tabs, commas, semicolons or spaces; names of classes and files may contain spaces."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    if any("\t" in line for line in lines):
        yield from ([cell.strip(' "') for cell in line.split("\t")] for line in lines)
        return
    for mark in ",;":
        if any(mark in line.partition(" ")[0] or re.search(rf'\.\w{{3,4}}"?{mark}', line) for line in lines):
            rows = csv.reader(lines, delimiter=mark, skipinitialspace=True)
            yield from ([cell.strip() for cell in row] for row in rows)
            return
    for line in lines:
        named = _IMAGE_AND_REST.match(line.strip())
        name, *rest = named.groups() if named else line.split(maxsplit=1) or [""]
        cells = rest[0].split() if rest else []
        # several cells with a number among them are columns, not a name with spaces
        yield [name, *cells] if any(re.fullmatch(r"[-+.\d]+", cell) for cell in cells) else [name, *rest]


def _names_and_classes(rows: Sequence[Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yields the first cell, and the class: in the column that a header names, or the second of two or six cells."""
    head = [cell.lower() for cell in rows[0]]
    column: int | None = None
    if not is_image(head[0]) and (head[0] in _NAME_COLUMNS or not {*_CLASS_COLUMNS}.isdisjoint(head[1:])):
        column = next((head.index(name) for name in _CLASS_COLUMNS if name in head), 0)
    for row in rows[column is not None :]:
        is_clear = len(row) <= 2 or (len(row) == 6 and all(cell.isdecimal() for cell in row[2:]))  # Tiny ImageNet's
        label = int(is_clear) if column is None else column
        if not 0 < label < len(row) or not row[0] or not row[label]:
            raise ValueError(f"the class in {' '.join(row)[:40]!r} is ambiguous; write `image class` on a line")
        # Kaggle's column has the boxes after the class
        yield row[0], row[label].split()[0] if rows[0][label] == "PredictionString" else row[label].strip('"')


def _devkit(file: Path) -> list[str]:
    content: dict[str, bytes] = {}
    with tarfile.open(file, "r:gz") as tar:
        for member in tar:
            name = without_folders(member.name)
            if name in (GROUND_TRUTH, "meta.mat") and (stream := tar.extractfile(member)):
                content[name] = stream.read()
    if len(content) < 2:
        raise UserError(f"{file} holds no {GROUND_TRUTH} and meta.mat; give ILSVRC2012_devkit_t12.tar.gz")
    return _ground_truth(content[GROUND_TRUTH].decode(), content["meta.mat"])


def _ground_truth(truth: str, meta: bytes) -> list[str]:
    """Translates the development kit's class numbers to WordNet ids with meta.mat."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    return [wnid[int(number)] for number in truth.split()]
