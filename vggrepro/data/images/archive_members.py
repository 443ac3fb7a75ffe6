"""An image that was found, wherever it lies, and what names of files and folders mean."""

import os
import re
from functools import lru_cache
from typing import NamedTuple

from vggrepro.errors import printable

SPLITS = ("train", "val")
SUFFIXES = {".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
VAL_WORDS = {"val", "valid", "validation"}  # what the validation split is called in names
SPLIT_FOLDERS = {"train", *VAL_WORDS}
NUMBERED = "\0"  # marks a class that is a number: of a .cls file, a label file, a table of Parquet
UNLABELLED = ""  # marks an image whose class stands in a label file
_OF_SYSTEMS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}


class Member(NamedTuple):
    """An image that was found."""

    split: str
    class_name: str
    container: str
    """The archive that holds it, or its folder."""
    name: str
    """File name; in an archive with the folders there."""
    offset: int
    length: int
    archive: bool
    mtime_ns: int = 0
    """When a file of its own changed last."""

    @property
    def file_name(self) -> str:
        """Without folders."""
        return without_folders(self.name)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return os.path.join(self.container, self.name)

    @property
    def file(self) -> str:
        """The file to open: the archive, or its own."""
        return self.container if self.archive else self.place


class Notes:
    """What a person should know of a listing: what is left out and why, how numbers were read."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}  # in order, each once
        self._left_out: dict[str, tuple[str, int]] = {}  # place of the first, and how many

    def add(self, line: str) -> None:
        """Notes a line."""
        self._lines[printable(line)] = None

    def leave_out(self, what: str, place: str, n: int = 1) -> None:
        """Counts `n` of what is left out, the first of them at `place`."""
        first, before = self._left_out.get(what, (place, 0))
        self._left_out[what] = first, before + n

    def include(self, other: "Notes") -> None:
        """Adds what another listing noted."""
        self._lines |= other._lines
        for what, (place, n) in other._left_out.items():
            self.leave_out(what, place, n)

    def lines(self) -> tuple[str, ...]:
        """Everything noted, a line each."""
        left_out = (f"left out: {n:,} {what}, as {place}" for what, (place, n) in self._left_out.items())
        return *self._lines, *map(printable, left_out)


def without_folders(name: str) -> str:
    """The last part of a path inside an archive."""
    return name.rpartition("/")[2]


def is_image(name: str) -> bool:
    """Whether a file is an image by the end of its name."""
    return "." + name.rpartition(".")[2].lower() in SUFFIXES


def is_wnid(name: str) -> bool:
    """Whether a class is called by a WordNet id."""
    return bool(re.fullmatch(r"n\d{8}", name))


def stem_of(name: str) -> str:
    """An image's name without the suffix of an image file; other dots are part of the name."""
    return name.rpartition(".")[0] if is_image(name) else name


def without_wnid(name: str) -> str:
    """An image's name without the wnid that hubs put at its end."""
    stem = stem_of(name)
    return re.sub(r"_n\d{8}$", "", stem) + name[len(stem) :]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is an operating system's or an editor's: `._X.JPEG`, `.ipynb_checkpoints`, `@eaDir`."""
    return name.startswith(".") or name in _OF_SYSTEMS


def is_number(name: str) -> bool:
    """Whether a class is called by a number."""
    return name.isascii() and name.isdecimal()


@lru_cache(maxsize=4096)
def words_of(name: str) -> frozenset[str]:
    """The words of a name in small letters; `trainLabels` has two."""
    return frozenset(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def split_of(name: str) -> str | None:
    """Train, val, or `test` (which nothing here uses), where the words of a name say it."""
    words = words_of(name)
    if "train" in words:
        return "train"
    return "val" if words & VAL_WORDS else "test" if "test" in words else None
