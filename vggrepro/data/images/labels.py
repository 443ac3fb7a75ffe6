"""Finds the label file of validation images that are not in class folders, and reads lists of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vggrepro.data.images.archive_members import NUMBERED, Member, is_hidden, split_of
from vggrepro.data.images.label_files import GROUND_TRUTH, LONGEST, LabelFile, read_labels
from vggrepro.data.images.tree import Tar, contents
from vggrepro.errors import UserError
from vggrepro.paper import ilsvrc_classes

_LABEL_FILES = (
    *("LOC_val_solution.csv", "meta.bin", "ILSVRC2012_devkit_t12.tar.gz"),
    *(folder + GROUND_TRUTH for folder in ("ILSVRC2012_devkit_t12/data/", "data/", "")),
    *("imagenet_2012_validation_synset_labels.txt", "val_labels.txt", "val_labels.csv", "val_annotations.txt"),
    *("val.txt", "meta/val.txt", "caffe_ilsvrc12/val.txt"),
)
_TEXTS = (".txt", ".csv", ".tsv")  # suffixes of files that may contain labels
ILSVRC = "ilsvrc2012"  # stands for the 1000 classes of ILSVRC-2012 in place of a class list
_LABELS_WANTED = (
    "ILSVRC2012_devkit_t12.tar.gz, meta.bin, LOC_val_solution.csv or a text file with `image class` on a line"
)


class NoLabelsError(UserError):
    """Validation images have no label file."""


def listed_classes(class_list: str) -> tuple[str, ...]:
    """Reads all classes, sorted, from a list, or from a label file with every class. Raises UserError."""
    if class_list == ILSVRC:
        return ilsvrc_classes()
    file = Path(class_list)
    if not file.is_file():
        raise UserError(f"--classes {file} is not a file; give a list of all classes, one per line, or {ILSVRC}")
    if file.name.endswith(("gz", ".bin", ".csv")) or file.name == GROUND_TRUTH:
        names = sorted(read_labels(file).classes)
        if names and names[0].startswith(NUMBERED):
            raise UserError(f"--classes {file} numbers the classes; give their names, one per line, or {ILSVRC}")
        return tuple(names)
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error}); give a text file, one class per line") from None
    # a WordNet id may be followed by names
    names = [line.split()[0] if re.match(r"n\d{8}\s", line) else line for line in lines]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"--classes {file} names {twice[0]} twice; give each class once")
    if not names:
        raise UserError(f"--classes {file} is empty; give a list of all classes, one per line")
    return tuple(sorted(names))


def is_label_file(file: Path) -> bool:
    """Whether a source may contain labels, according to its name, or else its first bytes. Raises UserError."""
    if file.is_dir() or file.suffix in (".tar", ".parquet"):
        return False
    if file.name.endswith((".bin", *_TEXTS)) or ("devkit" in file.name and file.name.endswith("gz")):
        return True
    try:
        with file.open("rb") as stream:
            return b"\0" not in stream.read(512)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions") from None


@dataclass(frozen=True)
class Labels:
    """Files that may contain the classes of validation images."""

    given: Sequence[Path]  # files named by the user; if empty, those in tars and beside the images are searched
    sources: Sequence[Path]
    inside: Mapping[Path, Member]  # text files in tars by path, as of :func:`texts_in`

    def find(self, path: str, place: Path) -> LabelFile:
        """Finds the first file that labels an image, and so all images, in or beside `place`. Raises UserError."""
        near = [place, place.parent, *(source if source.is_dir() else source.parent for source in self.sources)]
        groups: list[list[Path]] = [list(self.given)]
        if not self.given:
            in_tars = sorted(self.inside, key=lambda file: not _has_known_name(file))
            groups = [in_tars, *([*_known(folder), *_texts(folder)] for folder in dict.fromkeys(near))]
            groups += [_known(folder) for folder in place.parents[1:4]]
        problems: list[UserError] = []
        unfit: list[Path] = []
        for group in groups:
            of_far_images = group and group[0].parent not in near and not self.given
            for file in self._naming(path, group, problems):
                if file.ordered and of_far_images and "_val_" not in path:
                    unfit.append(file.file)  # numbers alone fit any images
                    continue
                others = [other for other in group if other.suffix in _TEXTS and other != file.file]
                for other in self._naming(path, others, []):
                    if file.contradicts(other):
                        raise UserError(f"{file.file} and {other.file} give different classes; name the right one")
                return file
        if problems:
            raise problems[0]
        if tried := [file for group in groups for file in group if self._is_meant(file) and file not in unfit]:
            return self._read(tried[0])  # LabelFile.require will report the missing label
        raise NoLabelsError(
            f"labels of the validation images in {place} are missing; put {_LABELS_WANTED} beside them or name it"
        )

    def _naming(self, path: str, files: Sequence[Path], problems: list[UserError]) -> Iterator[LabelFile]:
        """Yields files that label an image; adds errors of files that were given, or have a known name."""
        for file in files:
            try:
                if (read := self._read(file)).of(path) is not None and (self._is_meant(file) or not read.ordered):
                    yield read
            except UserError as error:
                if self._is_meant(file):
                    problems.append(error)

    def _is_meant(self, file: Path) -> bool:
        """Whether a file was given, or has a known name."""
        return bool(self.given) or _has_known_name(file)

    def _read(self, file: Path) -> LabelFile:
        member = self.inside.get(file)
        return read_labels(file, contents(member, LONGEST) if member else None)


def texts_in(tree: Tar) -> dict[Path, Member]:
    """Finds the files in a tar that may contain labels."""
    return {Path(file.place): file for file in tree.every_file() if _may_hold_labels(file.file_name)}


def _may_hold_labels(name: str) -> bool:
    """Whether a name is that of a text file, and not of another split's or an editor's."""
    return name.endswith(_TEXTS) and split_of(name.rpartition(".")[0]) in (None, "val") and not is_hidden(name)


def _has_known_name(file: Path) -> bool:
    return any(file.match(name) for name in _LABEL_FILES)


def _known(folder: Path) -> list[Path]:
    return [file for name in _LABEL_FILES if (file := folder / name).is_file()]


def _texts(folder: Path) -> list[Path]:
    """Finds files in a folder that may contain labels but do not have a known name."""
    texts = sorted(file for pattern in ("*", "meta/*") for file in folder.glob(pattern) if _may_hold_labels(file.name))
    return [file for file in texts if str(file.relative_to(folder)) not in _LABEL_FILES and file.is_file()]


def stamped_labels(place: Path) -> list[Path]:
    """Lists the files on which the labels of images in or beside a folder depend."""
    known = [file for folder in (place, *place.parents[:4]) for file in _known(folder)]
    return [*known, *(file.with_name("meta.mat") for file in known if file.name == GROUND_TRUTH)]
