"""Files by path, the same for a folder and for an uncompressed tar: what data sets with files of their own are read by.

Hidden files, and what macOS puts into archives, are not there. Paths are relative, with `/`; "" is the top.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from vggrepro.data.archives import files_in
from vggrepro.data.decode import BadImageError
from vggrepro.data.decode import read as read_bytes
from vggrepro.data.members import SUFFIXES, Member
from vggrepro.data.sources import list_folder
from vggrepro.errors import UserError

Files = Mapping[str, Member]
"""By file name; the members are in `val` and of no class yet."""
_ARCHIVES = re.compile(r".*\.(tar|tgz|tar\.\w+|zip)", re.IGNORECASE)


class Folder:
    """A folder, of which only the parts that are asked for are listed."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def folders(self, path: str) -> list[str]:
        """Names of the folders in one of its folders, sorted; none where there is no such folder. Raises UserError."""
        return [name for name in self._list(path)[0] if not _hidden(name)]

    def files(self, path: str) -> Files:
        """The files in one of its folders, sorted by name. Raises UserError."""
        place = str(self.root / path)
        return {
            name: Member("val", "", place, name, 0, size, False, mtime_ns)
            for name, size, mtime_ns in self._list(path)[1]
            if not _hidden(name)
        }

    def _list(self, path: str) -> tuple[list[str], list[tuple[str, int, int]]]:
        folder = self.root / path
        return list_folder(folder, images=False) if folder.is_dir() else ([], [])


class Tar:
    """An uncompressed tar, listed once. Raises UserError for what is none."""

    def __init__(self, file: Path) -> None:
        self.root = file.resolve()
        self._files: dict[str, dict[str, Member]] = {}
        self._folders: dict[str, set[str]] = {}
        for path, offset, size in files_in(self.root):
            parts = [part for part in PurePosixPath(path).parts if part != "/"]
            if not parts or any(map(_hidden, parts)):
                continue
            *above, name = parts
            for depth, folder in enumerate(above):
                self._folders.setdefault("/".join(above[:depth]), set()).add(folder)
            # of two members of one name the last counts, as it does where a tar is extracted
            self._files.setdefault("/".join(above), {})[name] = Member(
                "val", "", str(self.root), "/".join(parts), offset, size, True
            )

    def folders(self, path: str) -> list[str]:
        """As those of a folder; one without files is not there."""
        return sorted(self._folders.get(path, ()))

    def files(self, path: str) -> Files:
        """As those of a folder."""
        return dict(sorted(self._files.get(path, {}).items()))


Tree = Folder | Tar


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
    return [file for name, file in tree.files(path).items() if PurePosixPath(name).suffix.lower() in SUFFIXES]


def below(path: str, name: str) -> str:
    """The path of what lies in a folder."""
    return f"{path}/{name}" if path else name


def place_of(file: Member) -> str:
    """Where a file is, for messages."""
    return os.path.join(file.container, file.name)


def contents(file: Member, most: int) -> bytes:
    """A file's bytes. Raises UserError for one that cannot be read, or is longer than `most` bytes."""
    if file.length > most:
        raise UserError(f"{place_of(file)} is longer than {most >> 20} MiB; give the file as it was published")
    try:
        return read_bytes(file.container if file.archive else place_of(file), file.offset, file.length)
    except BadImageError as error:
        raise UserError(f"{place_of(file)}: {error}; copy it again, or change its permissions") from None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
