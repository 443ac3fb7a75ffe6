"""A common interface to the files in a folder and in an uncompressed tar.

Hidden files, and files that systems and editors put beside images, are left out. Paths are relative and use `/`; the
root is "".
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vggrepro.data.decode import BadImageError
from vggrepro.data.decode import read as read_bytes
from vggrepro.data.images.archive_members import Member, Notes, is_hidden, is_image
from vggrepro.data.images.archives import files_in
from vggrepro.data.images.columns import Members
from vggrepro.errors import UserError

Files = Mapping[str, Member]
"""Members by file name, sorted; their split is `val` and their class empty until they are set."""
_ARCHIVES = re.compile(r".*\.(tar|tgz|tar\.\w+|zip)", re.IGNORECASE)


class Tree(ABC):
    """Folders and files below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root  # the folder, or the archive
        self.notes = Notes()

    @abstractmethod
    def listing(self, path: str) -> tuple[list[str], Files]:
        """Lists names of folders, and files, in a folder, sorted; empty if it does not exist. Raises UserError."""

    def folders(self, path: str) -> list[str]:
        """Lists names of the folders in a folder, sorted. Raises like :meth:`listing`."""
        return self.listing(path)[0]

    def files(self, path: str) -> Files:
        """Lists the files in a folder. Raises like :meth:`listing`."""
        return self.listing(path)[1]

    def leave_out(self, what: str, path: str, names: Sequence[str]) -> None:
        """Notes that files or folders in a folder are left out."""
        if names:
            self.notes.leave_out(what, os.path.join(self.root, path, names[0]), len(names))


class Folder(Tree):
    """A folder on disk; subfolders are listed on request."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.resolve())
        self._noted: set[str] = set()
        self._top: tuple[list[str], Files] | None = None

    def listing(self, path: str) -> tuple[list[str], Files]:
        """Implements :meth:`Tree.listing`."""
        if not path and self._top:
            return self._top
        place = os.path.join(self.root, path) if path else str(self.root)
        if not os.path.isdir(place):
            return [], {}
        folders, files = [], []
        notes = self.notes if path not in self._noted else Notes()
        self._noted.add(path)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        notes.leave_out("hidden files and folders", entry.path)
                    # a link to nothing, or to itself, is a file that cannot be read
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        files.append((entry.name, entry.stat(follow_symlinks=False)))
                    elif entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append((entry.name, entry.stat()))
                    else:
                        notes.leave_out("pipes, sockets and devices", entry.path)
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error.strerror}); change its permissions") from None
        members = {
            name: Member("val", "", place, name, 0, stat.st_size, False, stat.st_mtime_ns)
            for name, stat in sorted(files)
        }
        listing = sorted(folders), members
        if not path:
            self._top = listing
        return listing


class Tar(Tree):
    """An uncompressed tar, listed once; a nested tar is a folder of its name. Raises UserError if it is not a tar."""

    def __init__(self, file: Path) -> None:
        super().__init__(absolute(file))
        self._folders: dict[str, set[str]] = {}
        folder_numbers, hashes, folders = array("q"), array("q"), {"": 0}

        def members() -> Iterator[Member]:
            for path, offset, size in files_in(self.root, self.notes):
                above = path.rpartition("/")[0]
                inside = "" if above in folders else above
                while inside:
                    outside, _, folder = inside.rpartition("/")
                    self._folders.setdefault(outside, set()).add(folder)
                    inside = outside
                folder_numbers.append(folders.setdefault(above, len(folders)))
                hashes.append(hash(path))
                yield Member("val", "", str(self.root), path, offset, size, True)

        self._members = Members.of(members())
        numbers = np.asarray(folder_numbers)
        rows, counts = np.argsort(numbers, kind="stable"), np.bincount(numbers, minlength=len(folders))
        self._rows = dict(zip(folders, np.split(rows, np.cumsum(counts)[:-1]), strict=True))
        self.repeated = ""  # a path that several members share, if any
        if len(np.unique(hashes)) < len(hashes):
            paths: set[str] = set()
            for member in self._members:
                if member.name in paths:
                    self.notes.leave_out("files that a later one of the same name replaces", member.place)
                    self.repeated = member.name
                paths.add(member.name)

    def every_file(self) -> Iterator[Member]:
        """Yields all files at any depth."""
        return (file for path in self._rows for file in self._of_folder(path).values())

    def _of_folder(self, path: str) -> Files:
        """Files of a folder by name; the last of several with the same name counts, as in an extracted tar."""
        rows = self._rows.get(path)
        return {} if rows is None else {file.file_name: file for file in self._members.take(rows)}

    def folders(self, path: str) -> list[str]:
        """Lists names of the folders with files at any depth in a folder, sorted."""
        return sorted(self._folders.get(path, ()))

    def listing(self, path: str) -> tuple[list[str], Files]:
        """Implements :meth:`Tree.listing`."""
        return self.folders(path), dict(sorted(self._of_folder(path).items()))


def absolute(file: Path) -> Path:
    """Returns the absolute path of a file, with a link's name: the name of its target may be a hash."""
    return file.parent.resolve() / file.name


def tree_of(source: Path, wanted: str) -> Tree:
    """Opens a source as a tree. Raises UserError if it does not exist; `wanted` is the remedy."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give {wanted}")
    return Folder(source) if source.is_dir() else Tar(source)


def archives_in(tree: Tree) -> list[Path]:
    """Lists the archives in the root of a folder, including compressed ones."""
    return [tree.root / name for name in tree.files("") if isinstance(tree, Folder) and _ARCHIVES.fullmatch(name)]


def images_in(tree: Tree, path: str) -> list[Member]:
    """Lists the files with the suffix of an image in a folder of a tree, sorted."""
    return [file for name, file in tree.files(path).items() if is_image(name)]


def below(path: str, name: str) -> str:
    """Joins a path and a name."""
    return f"{path}/{name}" if path else name


def contents(file: Member, most: int) -> bytes:
    """Reads a file. Raises UserError if it cannot be read or is longer than `most` bytes."""
    if file.length > most:
        raise UserError(f"{file.place} is longer than {most >> 20} MiB; give the file as it was published")
    try:
        return read_bytes(file.file, file.offset, file.length)
    except BadImageError as error:
        raise UserError(f"{file.place}: {error}; copy it again, or change its permissions") from None
