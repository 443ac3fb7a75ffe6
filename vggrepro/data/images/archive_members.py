"""Images found in folders and archives, and the meaning of file and folder names."""

import os
import re
from functools import lru_cache
from typing import NamedTuple

from vggrepro.errors import printable

SPLITS = ("train", "val")
SUFFIXES = {".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
VAL_WORDS = {"val", "valid", "validation"}  # names of the validation split
SPLIT_FOLDERS = {"train", *VAL_WORDS}
NUMBERED = "\0"  # prefix of a class that is a number: in a .cls file, a label file, a Parquet table
UNLABELLED = ""  # class of an image whose class is in a label file
_SYSTEM_NAMES = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}


class Member(NamedTuple):
    """An image in a folder or an archive."""

    split: str
    class_name: str
    container: str  # path of its folder, or of the archive
    name: str  # file name; in an archive, the path inside it
    offset: int
    length: int
    archive: bool
    mtime_ns: int = 0  # modification time of a separate file

    @property
    def file_name(self) -> str:
        """File name without folders."""
        return without_folders(self.name)

    @property
    def place(self) -> str:
        """Path for messages; in an archive, the archive's path followed by the path inside."""
        return os.path.join(self.container, self.name)

    @property
    def file(self) -> str:
        """Path of the file to open: the archive, or the separate file."""
        return self.container if self.archive else self.place


class Notes:
    """Remarks on a listing for the user: what is left out and why, and how numbers were read."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}  # distinct, in order
        self._left_out: dict[str, tuple[str, int]] = {}  # path of the first, and the number

    def add(self, line: str) -> None:
        """Adds a line."""
        self._lines[printable(line)] = None

    def leave_out(self, what: str, place: str, n: int = 1) -> None:
        """Counts `n` files of a kind that are left out, the first of them at `place`."""
        first, before = self._left_out.get(what, (place, 0))
        self._left_out[what] = first, before + n

    def include(self, other: "Notes") -> None:
        """Adds the notes of another listing."""
        self._lines |= other._lines
        for what, (place, n) in other._left_out.items():
            self.leave_out(what, place, n)

    def lines(self) -> tuple[str, ...]:
        """Returns all notes as lines of text."""
        left_out = (f"left out: {n:,} {what}, such as {place}" for what, (place, n) in self._left_out.items())
        return *self._lines, *map(printable, left_out)


def without_folders(name: str) -> str:
    """Returns the last part of a path inside an archive."""
    return name.rpartition("/")[2]


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return "." + name.rpartition(".")[2].lower() in SUFFIXES


def is_wnid(name: str) -> bool:
    """Whether a class name is a WordNet id."""
    return bool(re.fullmatch(r"n\d{8}", name))


def stem_of(name: str) -> str:
    """Removes the suffix of an image file from a name; other dots are part of the name."""
    return name.rpartition(".")[0] if is_image(name) else name


def without_wnid(name: str) -> str:
    """Removes the WordNet id that hubs append to the stem of an image's name."""
    stem = stem_of(name)
    return re.sub(r"_n\d{8}$", "", stem) + name[len(stem) :]


def is_hidden(name: str) -> bool:
    """Whether an operating system or editor has made a file or folder: `._X.JPEG`, `.ipynb_checkpoints`, `@eaDir`."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def is_number(name: str) -> bool:
    """Whether a class name is a number."""
    return name.isascii() and name.isdecimal()


@lru_cache(maxsize=4096)
def words_of(name: str) -> frozenset[str]:
    """Splits a name into lower-case words; `trainLabels` has two."""
    return frozenset(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def split_of(name: str) -> str | None:
    """Returns `train`, `val` or `test` if the words of a name contain it or a synonym; None otherwise."""
    words = words_of(name)
    if "train" in words:
        return "train"
    return "val" if words & VAL_WORDS else "test" if "test" in words else None
