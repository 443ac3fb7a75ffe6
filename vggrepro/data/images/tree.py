"""Files by path, the same for a folder and for an uncompressed tar: what every data set is read by.

Hidden files, and what systems and editors put beside images, are not there. Paths are relative, with `/`; "" is the
top.
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
"""By file name, sorted; the members are in `val` and of no class yet."""
_ARCHIVES = re.compile(r".*\.(tar|tgz|tar\.\w+|zip)", re.IGNORECASE)


class Tree(ABC):
    """Folders and files below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """The folder, or the archive."""
        self.notes = Notes()

    @abstractmethod
    def listing(self, path: str) -> tuple[list[str], Files]:
        """(names of folders, files) in one of its folders, sorted; none where there is no such folder.

        Raises UserError for a folder that cannot be read.
        """

    def folders(self, path: str) -> list[str]:
        """Names of the folders in one of its folders, sorted. Raises as :meth:`listing`."""
        return self.listing(path)[0]

    def files(self, path: str) -> Files:
        """The files in one of its folders. Raises as :meth:`listing`."""
        return self.listing(path)[1]

    def leave_out(self, what: str, path: str, names: Sequence[str]) -> None:
        """Notes that some of what lies in a folder is left out."""
        if names:
            self.notes.leave_out(what, os.path.join(self.root, path, names[0]), len(names))


class Folder(Tree):
    """A folder, of which only the parts that are asked for are listed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.resolve())
        self._noted: set[str] = set()
        self._top: tuple[list[str], Files] | None = None

    def listing(self, path: str) -> tuple[list[str], Files]:
        """As of any tree."""
        if not path and self._top:
            return self._top
        place = os.path.join(self.root, path) if path else str(self.root)
        folders, files = [], []
        if not os.path.isdir(place):
            return [], {}
        notes = self.notes if path not in self._noted else Notes()
        self._noted.add(path)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        notes.leave_out("hidden files and folders", entry.path)
                    # a link that leads nowhere, or to itself, is a file that cannot be read
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
        listing = (
            sorted(folders),
            {
                name: Member("val", "", place, name, 0, stat.st_size, False, stat.st_mtime_ns)
                for name, stat in sorted(files)
            },
        )
        if not path:
            self._top = listing
        return listing


class Tar(Tree):
    """An uncompressed tar, listed once; a tar inside it is a folder of its name. Raises UserError for what is none."""

    def __init__(self, file: Path) -> None:
        super().__init__(absolute(file))
        self._folders: dict[str, set[str]] = {}
        of_folder, hashes, folders = array("q"), array("q"), {"": 0}

        def members() -> Iterator[Member]:
            for path, offset, size in files_in(self.root, self.notes):
                above = path.rpartition("/")[0]
                inside = "" if above in folders else above
                while inside:
                    outside, _, folder = inside.rpartition("/")
                    self._folders.setdefault(outside, set()).add(folder)
                    inside = outside
                of_folder.append(folders.setdefault(above, len(folders)))
                hashes.append(hash(path))
                yield Member("val", "", str(self.root), path, offset, size, True)

        self._members = Members.of(members())
        of_each = np.asarray(of_folder)
        rows, counts = np.argsort(of_each, kind="stable"), np.bincount(of_each, minlength=len(folders))
        self._rows = dict(zip(folders, np.split(rows, np.cumsum(counts)[:-1]), strict=True))
        self.repeated = ""
        """A path that several members have, if any."""
        if len(np.unique(hashes)) < len(hashes):
            self._note_repeated()

    def _note_repeated(self) -> None:
        paths: set[str] = set()
        for file in self._members:
            if file.name in paths:
                self.notes.leave_out("files that a later one of the same name replaces", file.place)
                self.repeated = file.name
            paths.add(file.name)

    def every_file(self) -> Iterator[Member]:
        """All files, wherever in it."""
        return (file for path in self._rows for file in self._of_folder(path).values())

    def _of_folder(self, path: str) -> Files:
        """The files of a folder by their names; the last of one name counts, as it does where a tar is extracted."""
        rows = self._rows.get(path)
        return {} if rows is None else {file.file_name: file for file in self._members.take(rows)}

    def folders(self, path: str) -> list[str]:
        """As of any tree; a folder without files is not there."""
        return sorted(self._folders.get(path, ()))

    def listing(self, path: str) -> tuple[list[str], Files]:
        """As of any tree."""
        return self.folders(path), dict(sorted(self._of_folder(path).items()))


def absolute(file: Path) -> Path:
    """The place of a file under its own name: what a link leads to may be called by a hash."""
    return file.parent.resolve() / file.name


def tree_of(source: Path, wanted: str) -> Tree:
    """A source as a tree; `wanted` says what else to give. Raises UserError where there is none."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give {wanted}")
    return Folder(source) if source.is_dir() else Tar(source)


def archives_in(tree: Tree) -> list[Path]:
    """The archives that lie in a folder, compressed ones too."""
    return [tree.root / name for name in tree.files("") if isinstance(tree, Folder) and _ARCHIVES.fullmatch(name)]


def images_in(tree: Tree, path: str) -> list[Member]:
    """The images in a folder of a tree, by the ends of their names, sorted."""
    return [file for name, file in tree.files(path).items() if is_image(name)]


def below(path: str, name: str) -> str:
    """The path of what lies in a folder."""
    return f"{path}/{name}" if path else name


def contents(file: Member, most: int) -> bytes:
    """A file's bytes. Raises UserError for one that cannot be read, or is longer than `most` bytes."""
    if file.length > most:
        raise UserError(f"{file.place} is longer than {most >> 20} MiB; give the file as it was published")
    try:
        return read_bytes(file.file, file.offset, file.length)
    except BadImageError as error:
        raise UserError(f"{file.place}: {error}; copy it again, or change its permissions") from None
