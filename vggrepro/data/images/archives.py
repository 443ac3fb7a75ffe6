"""Lists the files in an uncompressed tar, or in a tar of tars, with their offsets."""

import os
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vggrepro.data.images.archive_members import Notes, is_hidden
from vggrepro.errors import UserError

_LONGEST_END = 1 << 20  # bytes of zeros; tar writes 10 KiB, an unfinished download has many
_COMPRESSED = {  # first bytes of a file, and the program that uncompresses it
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


def files_in(file: Path, notes: Notes) -> Iterator[tuple[str, int, int]]:
    """Yields (path, offset, bytes) of every file in an uncompressed tar and in nested tars. Raises UserError.

    A nested tar is a folder of its name, a hard link its target. Other links, sparse and hidden files are left out.
    """
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions") from None
    with stream:
        start = stream.read(6)
        for magic, program in _COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(f"{file} is compressed, not readable in place; uncompress it once ({program})")
        if start.startswith(b"PAR1"):
            raise UserError(f"{file} is a Parquet table, not a tar archive; rename it to end in .parquet")
        stream.seek(0)
        yield from _files(file, stream, notes, os.fstat(stream.fileno()).st_size)


def _files(file: Path, stream: IO[bytes], notes: Notes, end: int, above: str = "") -> Iterator[tuple[str, int, int]]:
    links = _Links()
    for member in _members(file, stream, end):
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not parts or member.isdir():
            continue
        path = "/".join([above, *parts] if above else parts)
        if any(map(is_hidden, parts)):
            notes.leave_out("hidden files", os.path.join(file, path))
        elif member.islnk() and (place := links.place_of(member.linkname)):
            yield path, *place
        elif not member.isfile() or member.issparse():
            notes.leave_out("links, sparse and special files", os.path.join(file, path))
        elif path.endswith(".tar"):
            stream.seek(member.offset_data)
            yield from _files(file, stream, notes, member.offset_data + member.size, path)
        else:
            links.add(member.name, member.offset_data, member.size)
            yield path, member.offset_data, member.size


class _Links:
    """Locations of the files in a tar by name, for hard links: 24 bytes per file until the first link."""

    def __init__(self) -> None:
        self._files = array("q")  # hash, offset and bytes of files that are not yet in `_places`
        self._places: dict[int, tuple[int, int]] = {}

    def add(self, name: str, offset: int, size: int) -> None:
        self._files.extend((hash(name), offset, size))

    def place_of(self, name: str) -> tuple[int, int] | None:
        """Returns offset and bytes of the last file with a name."""
        files, self._files = self._files, array("q")
        self._places.update(zip(files[::3], zip(files[1::3], files[2::3], strict=True), strict=True))
        return self._places.get(hash(name))


def _members(file: Path, stream: IO[bytes], end: int) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar from the position of a stream to `end`. Raises UserError if it is damaged."""
    # with a damaged tar, Python's reader fails in many ways, loops, or takes a torn header for the end
    remedy = "download or copy it again"
    at, opened = stream.tell(), False
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            opened = True
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # otherwise it grows to a million members
                if member.size < 0 or tar.offset <= member.offset or "\0" in member.name:
                    raise tarfile.ReadError("invalid header")
                if (last := member.offset_data + member.size) > end and not member.islnk():
                    raise tarfile.ReadError(f"end of data at byte {end}, but {member.name} should end at {last}")
                at = tar.offset
                yield member
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
        cut_off = "is cut off" if "end of data" in str(error) else ""
        damaged = f"is damaged at byte {at}" if opened else "is not a tar archive"
        raise UserError(f"{file} {cut_off or damaged} ({error}); {remedy}") from None
    stream.seek(at)  # the end is at least a block of zeros
    rest = stream.read(max(0, min(_LONGEST_END, end - at)))
    if len(rest) < tarfile.BLOCKSIZE:
        raise UserError(f"{file} is cut off at byte {at}; {remedy}")
    if any(rest) or len(rest) == _LONGEST_END:
        several = "" if any(rest[: tarfile.BLOCKSIZE]) else ", or holds several archives,"
        raise UserError(f"{file} is damaged{several} at byte {at}; {remedy}")
