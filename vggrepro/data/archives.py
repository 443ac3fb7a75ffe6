"""Files inside tars: an uncompressed tar is a list of offsets, and so is a tar of tars."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from vggrepro.data.members import Notes, is_hidden
from vggrepro.errors import UserError

_LONGEST_END = 1 << 20  # bytes of zeros; tar writes 10 KiB, and a download that is not done has many
_COMPRESSED = {  # how a file starts, and what undoes it
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


def files_in(file: Path, notes: Notes) -> Iterator[tuple[str, int, int]]:
    """(path, offset, bytes) of every file in an uncompressed tar and in the tars inside it. Raises UserError.

    What a tar inside holds lies in a folder of that tar's name. A hard link is the file that it links to. Other links,
    sparse and hidden files are left out and noted.
    """
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions") from None
    with stream:
        start = stream.read(6)
        for magic, program in _COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"{file} is compressed, so its images have no place in it; uncompress it once ({program})"
                )
        if start.startswith(b"PAR1"):
            raise UserError(f"{file} is a table of Parquet, not a tar archive; let its name end in .parquet")
        stream.seek(0)
        yield from _files(file, stream, notes)


def _files(
    file: Path, stream: io.BufferedReader, notes: Notes, above: str = "", end: int | None = None
) -> Iterator[tuple[str, int, int]]:
    linked: dict[str, tuple[int, int]] = {}
    for member in _members(file, stream, end):
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not parts or member.isdir():
            continue
        path = "/".join([above, *parts] if above else parts)
        if any(map(is_hidden, parts)):
            notes.leave_out("hidden files", os.path.join(file, path))
        elif member.islnk() and member.linkname in linked:
            yield path, *linked[member.linkname]
        elif not member.isfile() or member.issparse():
            notes.leave_out("links, sparse and special files", os.path.join(file, path))
        elif path.endswith(".tar"):
            stream.seek(member.offset_data)
            yield from _files(file, stream, notes, path, member.offset_data + member.size)
        else:
            linked[member.name] = member.offset_data, member.size
            yield path, member.offset_data, member.size


def _members(file: Path, stream: io.BufferedReader, end: int | None) -> Iterator[tarfile.TarInfo]:
    """Members of the tar that starts where the stream stands, held to the bytes that are there."""
    limit = os.fstat(stream.fileno()).st_size if end is None else end
    nested = end is not None
    try:
        tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (closed below)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        problem = "is cut off" if "end of data" in str(error) else "is not a tar archive"
        raise UserError(f"{file} {problem} ({error}); download or copy it again") from None
    with tar:
        while member := _next(file, tar):
            tar.members = []  # type: ignore[attr-defined]  # else it remembers a million of them
            if member.offset_data + member.size > limit and not member.islnk():
                raise UserError(
                    f"{file} is cut off: {member.name} should end at byte {member.offset_data + member.size}, "
                    f"the {'inner archive' if nested else 'file'} ends at {limit}; copy it again"
                )
            at = stream.tell()
            yield member
            stream.seek(at)  # the caller may have read
        # Python's reader takes a damaged or torn header for the end, which is a block of zeros; after it come some more
        stream.seek(tar.offset)
        rest = stream.read(max(0, min(_LONGEST_END, limit - tar.offset)))
        if len(rest) < tarfile.BLOCKSIZE:
            raise UserError(f"{file} is cut off at byte {tar.offset}; download or copy it again")
        if any(rest) or len(rest) == _LONGEST_END:
            several = "" if any(rest[: tarfile.BLOCKSIZE]) else ", or holds several archives,"
            raise UserError(f"{file} is damaged{several} at byte {tar.offset}; download or copy it again")


def _next(file: Path, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member. Raises UserError for a damaged header, at which Python's reader may fail in any way, or loop."""
    before = tar.offset
    try:
        member = tar.next()
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
        problem = "is cut off" if "end of data" in str(error) else "is damaged"
        raise UserError(f"{file} {problem} at byte {before} ({error}); download or copy it again") from None
    if member and (member.size < 0 or tar.offset <= member.offset or "\0" in member.name):
        raise UserError(f"{file} is damaged at byte {before}; download or copy it again")
    return member
