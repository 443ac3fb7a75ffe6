"""The classes of validation images that lie flat, and lists of classes."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vggrepro.data.members import NUMBERED, Member, is_hidden, is_image, split_of, stem_of
from vggrepro.data.tree import Tar, contents, place_of
from vggrepro.errors import UserError, reason_of
from vggrepro.paper import ilsvrc_classes

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_LABEL_FILES = (
    "LOC_val_solution.csv",
    "meta.bin",
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_devkit_t12/data/" + _GROUND_TRUTH,
    "data/" + _GROUND_TRUTH,
    _GROUND_TRUTH,
    "imagenet_2012_validation_synset_labels.txt",
    "val_labels.txt",
    "val_labels.csv",
    "val_annotations.txt",
    "val.txt",
    "meta/val.txt",
    "caffe_ilsvrc12/val.txt",
)
_TEXTS = (".txt", ".csv", ".tsv")  # ends of names of files that may hold labels
_NAME_COLUMNS = {"imageid", "image", "image_id", "filename", "file_name", "file", "path", "name", "id"}
_CLASS_COLUMNS = ("label", "class", "wnid", "class_id", "class_name", "category", "target", "predictionstring")
_LONGEST = 64 << 20  # bytes of a file of labels; ILSVRC's for training images has 40 million
ILSVRC = "ilsvrc2012"
"""The name that stands for the 1000 classes of ILSVRC-2012 in place of a file that lists them."""
_LABELS_WANTED = (
    "ILSVRC2012_devkit_t12.tar.gz, meta.bin, LOC_val_solution.csv or a text file with `image class` on a line"
)


class NoLabelsError(UserError):
    """No file says the classes of validation images."""


def listed_classes(class_list: str) -> tuple[str, ...]:
    """All classes of a list, sorted: wnids, of which a line may say more, or other names, one a line. Raises UserError.

    A development kit or another file with the labels of all validation images names them, too.
    """
    if class_list == ILSVRC:
        return ilsvrc_classes()
    file = Path(class_list)
    if not file.is_file():
        raise UserError(f"--classes {file} is not a file; give a list of all classes, one a line, or {ILSVRC}")
    if file.name.endswith(("gz", ".bin", ".csv")) or file.name == _GROUND_TRUTH:
        names = sorted(read_labels(file).classes)
        if names and names[0].startswith(NUMBERED):
            raise UserError(f"--classes {file} numbers the classes; give their names, one a line, or {ILSVRC}")
        return tuple(names)
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error}); give a text file, one class a line") from None
    names = [line.split()[0] if re.match(r"n\d{8}\s", line) else line for line in lines]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"--classes {file} names {twice[0]} twice; give each class once")
    if not names:
        raise UserError(f"--classes {file} is empty; give a list of all classes, one a line")
    return tuple(sorted(names))


def is_label_file(file: Path) -> bool:
    """Whether a file may hold labels, by its name; what else is in it shows when it is read."""
    return file.name.endswith((".bin", *_TEXTS)) or ("devkit" in file.name and file.name.endswith("gz"))


class LabelFile:
    """The classes that one file names, as they stand there; NUMBERED ones are marked."""

    def __init__(self, file: Path, rows: Sequence[tuple[str, str]], *, ordered: bool = False) -> None:
        """`rows` are (image's path or name, class); `ordered`: (number of the image from 1, class)."""
        self.file = file
        self.ordered = ordered
        """Whether images are known by their numbers alone."""
        self.classes = {class_name for _, class_name in rows}
        """All of them, also of images that are not there."""
        self._of_path: dict[str, str] = {}
        self._of_stem: dict[str, str | None] = {}  # None: of several images with several classes
        for row, class_name in rows:
            path = stem_of(row.replace("\\", "/").lstrip("./"))
            if self._of_path.setdefault(path, class_name) != class_name:
                raise UserError(f"labels {file} say two classes of {row}; remove one of the lines")
            stem = path.rpartition("/")[2]
            if self._of_stem.setdefault(stem, class_name) != class_name:
                self._of_stem[stem] = None

    def of(self, path: str) -> str | None:
        """The class of an image, by its name and, where several have that, by the end of its path; None: none."""
        path = stem_of(path)
        stem = path.rpartition("/")[2]
        if self.ordered:
            number = re.search(r"(\d+)$", stem)
            return self._of_path.get(str(int(number[1]))) if number else None
        if (known := self._of_stem.get(stem)) is not None or stem not in self._of_stem:
            return known
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self._of_path[end] for end in ends if end in self._of_path), None)

    def __len__(self) -> int:
        return len(self._of_path)


@dataclass
class Labels:
    """Classes of validation images: the first file that names one of them names them all."""

    given: Sequence[Path]
    """Files that are named; without any, those in tars and beside the images are looked through."""
    sources: Sequence[Path]
    inside: Mapping[Path, Member]
    """Texts in tars by their places, as :func:`texts_in` finds them."""
    _file: LabelFile | None = field(default=None, init=False)

    def of(self, path: str, place: Path) -> str:
        """The class of an image that lies in or beside `place`. Raises UserError."""
        file = self.file(path, place)
        known = file.of(path)
        if known is None:
            name = path.rpartition("/")[2]
            raise UserError(f"{file.file} has no label for {name} ({len(file)} labels); give the right file")
        return known

    @property
    def taken(self) -> Path | None:
        """The file that was taken, where one was needed."""
        return self._file.file if self._file else None

    def file(self, path: str, place: Path) -> LabelFile:
        """The file that names an image, and all others. Raises UserError where there is none."""
        if self._file is None:
            self._file = self._search(path, place)
        return self._file

    def _search(self, path: str, place: Path) -> LabelFile:
        near = [place, place.parent, *(source if source.is_dir() else source.parent for source in self.sources)]
        above = dict.fromkeys([place, *place.parents[:4], *near])
        known = [file for file in self.inside if str(file).endswith(_LABEL_FILES)]
        known += [file for folder in above for name in _LABEL_FILES if (file := folder / name).is_file()]
        files, problems = list(self.given or known), list[UserError]()
        if first := next(self._naming(path, files, problems), None):
            return first
        others = [] if self.given else [file for file in (*self.inside, *_texts(near)) if file not in known]
        found = [file for file in self._naming(path, others, []) if not file.ordered]
        if len({file.of(path) for file in found}) > 1:
            several = " and ".join(str(file.file) for file in found[:2])
            raise UserError(f"{several} say different classes of {path.rpartition('/')[2]}; name the right one")
        if found:
            return found[0]
        if problems:
            raise problems[0]
        if files:
            return self._read(files[0])  # which has no label for the image
        raise NoLabelsError(
            f"labels of the validation images in {place} are missing; put {_LABELS_WANTED} beside them or name it"
        )

    def _naming(self, path: str, files: Sequence[Path], problems: list[UserError]) -> Iterator[LabelFile]:
        """Those that name an image; of others that cannot be read the errors."""
        for file in files:
            try:
                if (read := self._read(file)).of(path) is not None:
                    yield read
            except UserError as error:
                problems.append(error)

    def _read(self, file: Path) -> LabelFile:
        member = self.inside.get(file)
        return read_labels(file, contents(member, _LONGEST) if member else None)


def texts_in(tree: Tar) -> dict[Path, Member]:
    """The files in a tar that may hold labels."""
    texts = (file for file in tree.every_file() if file.name.endswith(_TEXTS) and split_of(file.file_name) != "train")
    return {Path(place_of(file)): file for file in texts}


def _texts(folders: Sequence[Path]) -> Iterator[Path]:
    """Files of any name in some folders that may hold labels."""
    for folder in dict.fromkeys(folders):
        for file in sorted(file for pattern in ("*", "meta/*") for file in folder.glob(pattern)):
            usable = not is_hidden(file.name) and file.is_file() and file.stat().st_size < _LONGEST
            if file.suffix in _TEXTS and split_of(file.stem) in (None, "val") and usable:
                yield file


def read_labels(file: Path, content: bytes | None = None) -> LabelFile:
    """What a file says: the development kit, torchvision's `meta.bin`, a table, or `image class` on a line.

    `content` is that of a file in a tar. Raises UserError for what says nothing of classes.
    """
    try:
        if file.name.endswith("gz"):
            return _ordered(file, _devkit(file))
        if file.suffix == ".bin":
            from vggrepro.models.torch_file import read_torch  # loads torch

            _, wnids = read_torch(file)
            return _ordered(file, wnids)
        if content is None and (size := file.stat().st_size) > _LONGEST:
            raise ValueError(f"{size >> 20} MiB are too long for labels")
        text = (file.read_bytes() if content is None else content).decode("utf-8-sig")
        if file.name == _GROUND_TRUTH:
            return _ordered(file, _ground_truth(text, (file.parent / "meta.mat").read_bytes()))
        rows = [row for row in _rows(text) if any(row)]
        if all(len(row) == 1 for row in rows):
            return _ordered(file, [row[0] for row in rows])
        return LabelFile(file, _marked([_name_and_class(rows, row) for row in rows[_has_head(rows) :]]))
    except FileNotFoundError as error:
        raise UserError(f"{file} needs {error.filename} beside it; copy both from the development kit") from None
    except UserError:
        raise
    except Exception as error:  # pickle, tar and MATLAB files break in many ways
        raise UserError(f"labels {file} cannot be read ({reason_of(error, 100)}); give another file") from None


def _ordered(file: Path, classes: Sequence[str]) -> LabelFile:
    rows = _marked([(str(number), class_name) for number, class_name in enumerate(classes, 1)])
    if rows and rows[0][1].startswith(NUMBERED):
        raise ValueError(
            "numbers without names of images: of the development kit, they need meta.mat beside "
            f"{_GROUND_TRUTH}; else write `image number` on a line"
        )
    return LabelFile(file, rows, ordered=True)


def _marked(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows, their classes marked where all of them are numbers."""
    if not rows:
        raise ValueError("it is empty")
    numbers = [re.fullmatch(r"[-+]?\d+(\.\d*)?", class_name, re.ASCII) for _, class_name in rows]
    if not all(numbers):
        return list(rows)
    if odd := [class_name for _, class_name in rows if not class_name.isdecimal()]:
        raise ValueError(f"class {odd[0]} is neither a name nor a place from 0 on")
    return [(path, f"{NUMBERED}{int(class_name)}") for path, class_name in rows]


def _rows(text: str) -> Iterator[list[str]]:
    """The cells of every line, by tabs, commas or spaces; a name of a class may have spaces, and so may a file's."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if any("\t" in line for line in lines):
        yield from ([cell.strip() for cell in line.split("\t")] for line in lines)
    elif any("," in line.partition(" ")[0] or re.search(r'\.\w{3,4}"?,', line) for line in lines):
        yield from ([cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True))
    else:
        for line in lines:
            named = re.match(r"(.*?\.(?:jpe?g|png|webp|bmp|tiff?|gif))\s+(.*)", line.strip(), re.IGNORECASE)
            name, *rest = named.groups() if named else line.split(maxsplit=1)
            cells = rest[0].split() if rest else []
            yield [name, *cells] if all(cell.isdecimal() for cell in cells) else [name, *rest]


def _has_head(rows: Sequence[Sequence[str]]) -> bool:
    return rows[0][0].lower() in _NAME_COLUMNS and not is_image(rows[0][0])


def _name_and_class(rows: Sequence[Sequence[str]], row: Sequence[str]) -> tuple[str, str]:
    """The first cell, and the class that the table's head names; without a head the second of two, or of Tiny
    ImageNet's six."""
    label = 1
    if _has_head(rows) and len(row) > 2:
        head = [cell.lower() for cell in rows[0]]
        label = next((head.index(column) for column in _CLASS_COLUMNS if column in head), 0)
    elif len(row) > 2 and not (len(row) == 6 and all(cell.isdecimal() for cell in row[2:])):
        label = 0
    if not 0 < label < len(row) or not row[0] or not row[label]:
        raise ValueError(f"which class {' '.join(row)[:40]!r} says is not clear; write `image class` on a line")
    # Kaggle's says the boxes behind the class
    return row[0], row[label].split()[0] if rows[0][label] == "PredictionString" else row[label]


def _devkit(file: Path) -> list[str]:
    truth, meta = None, None
    with tarfile.open(file, "r:gz") as tar:
        for member in tar:
            if (stream := tar.extractfile(member)) and member.name.endswith(_GROUND_TRUTH):
                truth = stream.read().decode()
            elif stream and member.name.endswith("/meta.mat"):
                meta = stream.read()
    if truth is None or meta is None:
        raise UserError(f"{file} holds no {_GROUND_TRUTH} and meta.mat; give ILSVRC2012_devkit_t12.tar.gz")
    return _ground_truth(truth, meta)


def _ground_truth(truth: str, meta: bytes) -> list[str]:
    """The development kit numbers classes in an order of its own; meta.mat says which number is which wnid."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    return [wnid[int(number)] for number in truth.split()]
