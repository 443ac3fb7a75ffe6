"""Reads annotation files of boxes, in a detected format, including those in archives.

Numbers are not interpreted here; :mod:`vggrepro.data.boxes.box_scan` checks them against images. A file that cannot be
read is reported and never stops the reading.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from vggrepro.data.images.archive_members import is_hidden, stem_of
from vggrepro.errors import UserError

KNOWN = ("*.xml", "*_boxes.txt", "val_annotations.txt", "LOC_*_solution.csv", "*boxes.tsv", "ILSVRC*_bbox_*.t*")
"""Names of the files in a folder that are read."""
_IS_KNOWN = re.compile("|".join(fnmatch.translate(name) for name in KNOWN))
NUMBERS = ("xmin", "ymin", "xmax", "ymax")
XML_MOST = 1 << 20  # maximum bytes of an XML file; ILSVRC's largest has some 10,000
_LINE_MOST = 1 << 20  # bytes
_READ_MOST = 16 << 20  # bytes that an archive's headers may request at once
_MAGIC = 6  # bytes that identify the compression of a file
_DEEPEST = 3  # archives in archives
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_BLOCK = 512  # bytes of a tar's header and of its end
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
Objects = Sequence[tuple[str | None, Sequence[str]]]  # class, if stated, and xmin, ymin, xmax, ymax as written


class Annotation(NamedTuple):
    """The objects of an image in an XML file, or in a row of a table."""

    place: str  # path and line, for messages
    folders: tuple[str, ...]  # folders and archives between the named source and the annotation, outermost first
    name: str  # the image's file name without folders, with or without its suffix
    size: tuple[int, int] | None  # height and width of the image, px, if stated
    objects: Objects


class Unread(NamedTuple):
    """A file, or a part of a file, that could not be read."""

    reason: str
    place: str


Read = Iterator[Annotation | Unread]


def annotation_files(source: Path) -> list[Path]:
    """Lists a source's annotation files: itself, or those with known names in a folder. Raises UserError if none."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give a file or folder of boxes: {', '.join(KNOWN)}")
    if not source.is_dir():
        return [source]
    found: list[Path] = []
    # read_annotations will report a folder that cannot be listed
    for folder, inside, names in os.walk(source, onerror=lambda error: found.append(Path(error.filename))):
        inside[:] = [name for name in inside if not is_hidden(name)]
        found.extend(Path(folder, name) for name in names if _IS_KNOWN.match(name) and not is_hidden(name))
    if not found:
        raise UserError(f"{source} holds no annotations; give a file or folder of boxes: {', '.join(KNOWN)}")
    return sorted(found)


def read_annotations(source: Path) -> Read:
    """Yields all annotations of a file or folder, ordered by file name. Raises UserError if there are no files."""
    for file in annotation_files(source):
        place = str(file)
        folders = file.relative_to(source.parent).parts[:-1] if source.is_dir() else ()
        try:
            with file.open("rb") as stream:
                head = stream.peek(_BLOCK)
                if file.suffix == ".xml":
                    yield parse_voc(stream.read(XML_MOST + 1), place, folders, file.stem)
                elif _opener(head) or head[257:262] == b"ustar" or file.name.endswith(_ARCHIVES):
                    yield from _in_archive(stream, place, (*folders, file.name), 1)
                else:
                    yield from _in_text(stream, file.name, place, (*folders, file.name))
        except OSError as error:
            yield Unread(f"cannot be opened ({error.strerror})", place)


def _opener(head: bytes) -> Callable[[Any], IO[bytes]] | None:
    """Returns the function that uncompresses a file with these first bytes, if any."""
    return next((opener for start, opener in _OPENERS.items() if head.startswith(start)), None)


class _Window(io.RawIOBase):
    """A stream of the next `size` bytes of another stream, or of all; rejects reads larger than `_READ_MOST`.

    The file object of a tarfile member returns nothing of the last 10 KiB before a cut.
    """

    def __init__(self, stream: IO[bytes] | _Window, size: int | None = None, head: bytes = b"") -> None:
        """`head` has already been read: seeking back would uncompress the stream from its start again."""
        self._stream, self._size, self._head, self._start = stream, size, head, stream.tell() - len(head)
        self._at = 0
        self.last = b""  # result of the last read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _READ_MOST:
            raise tarfile.ReadError("a header requests too much")
        if self._size is not None:
            size = min(size, self._size - self._at)
        self.last = self._head[self._at : self._at + size]
        if size > len(self.last):
            self.last += self._stream.read(size - len(self.last))
        self._at += len(self.last)
        return self.last

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        to += self._at if whence == io.SEEK_CUR else 0
        self._at = to if self._size is None else min(to, self._size)
        self._stream.seek(self._start + max(self._at, len(self._head)))
        return self._at

    def tell(self) -> int:
        return self._at


def _in_archive(
    stream: IO[bytes] | _Window, place: str, folders: tuple[str, ...], depth: int, size: int | None = None
) -> Read:
    """Reads the XML files of a tar of `size` bytes at the position of the stream, front to back, and of nested tars."""
    try:
        head = stream.read(_MAGIC)
        opened = _Window(stream, size, head)
        opener = _opener(head)
        watched = _Window(opener(opened)) if opener else opened
        last = -1
        with tarfile.open(fileobj=watched, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # otherwise it grows with every member
                if member.size < 0 or member.offset <= last:
                    raise tarfile.ReadError("a header points back")
                last = member.offset
                above, _, name = member.name.rpartition("/")
                if not member.isfile() or is_hidden(name):
                    continue
                where, inside = f"{place}/{member.name}", folders + _parts(above)
                if name.endswith(".xml"):
                    if member.size > XML_MOST:
                        yield Unread(f"longer than {XML_MOST >> 20} MiB", where)
                    elif content := tar.extractfile(member):
                        yield parse_voc(content.read(), where, inside, name[:-4])
                elif name.endswith(_ARCHIVES) and depth == _DEEPEST:
                    yield Unread("too many nested archives", where)
                elif name.endswith(_ARCHIVES):
                    watched.seek(member.offset_data)
                    yield from _in_archive(watched, where, (*inside, name), depth + 1, member.size)
            # Python's reader takes damage for the end, but a real end is a block of zeros
            if len(watched.last) < _BLOCK or any(watched.last):
                yield Unread("archive cut off or damaged", place)
    except Exception:  # tars and compressed streams break in many ways
        yield Unread("archive cut off or damaged", place)


@lru_cache(maxsize=4096)
def _parts(folder: str) -> tuple[str, ...]:
    return tuple(part for part in folder.split("/") if part not in ("", "."))


def parse_voc(content: bytes, place: str, folders: tuple[str, ...], name: str) -> Annotation | Unread:
    """Parses PASCAL VOC's XML. Ignores <filename>, which is `%s` in some of ILSVRC's files."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if len(content) > XML_MOST:
        return Unread(f"longer than {XML_MOST >> 20} MiB", place)
    try:
        root = fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        return Unread("declares a DTD or entities", place)
    except (ParseError, ValueError, LookupError):  # encodings cause the last two
        return Unread("torn or invalid XML", place)
    if root.tag != "annotation":
        return Unread("not an annotation of PASCAL VOC", place)
    size = None
    if (element := root.find("size")) is not None:
        height, width = (element.findtext(side, "").strip() for side in ("height", "width"))
        if len(height) < 10 and len(width) < 10 and height.isdecimal() and width.isdecimal():
            size = (int(height), int(width))
    objects = []
    for element in root.iterfind("object"):
        box = element.find("bndbox")
        numbers = [""] * 4 if box is None else [box.findtext(number, "").strip() for number in NUMBERS]
        objects.append((element.findtext("name", "").strip() or None, numbers))
    return Annotation(place, folders, stem_of(name), size if size and min(size) > 0 else None, objects)


def _in_text(stream: IO[bytes], name: str, place: str, folders: tuple[str, ...]) -> Read:
    """Reads a table in a format that its first line determines: boxes.tsv, Kaggle's or Tiny ImageNet's."""
    columns: list[str] | None = None
    for number, line in enumerate(iter(lambda: stream.readline(_LINE_MOST + 1), b""), 1):
        where = f"{place}:{number}"
        if len(line) > _LINE_MOST:
            yield Unread(f"a line longer than {_LINE_MOST >> 20} MiB, where reading stopped", where)
            return
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield Unread("not UTF-8", where)
            text = ""
        cells = text.split("\t")
        if columns is None:
            kaggle = text.startswith("ImageId,")
            if kaggle or {"file", *NUMBERS} <= set(cells):
                columns = [] if kaggle else cells
                continue
            columns = {5: ["file", *NUMBERS], 6: ["file", "class", *NUMBERS]}.get(len(cells))
            if columns is None:
                yield Unread("neither XML, an archive of XML, nor a table of boxes", place)
                return
            if name.endswith("_boxes.txt"):
                folders = (*folders, name.removesuffix("_boxes.txt"))
        if text.strip():
            file, objects = _row(dict(zip(columns, cells, strict=False))) if columns else _kaggle(text)
            above, _, image = file.strip().replace("\\", "/").rpartition("/")
            found = Annotation(where, folders + _parts(above), image, None, objects)
            yield found if image else Unread("names no image", where)


def _row(cells: dict[str, str]) -> tuple[str, Objects]:
    numbers = [cells.get(number, "").strip() for number in NUMBERS]
    return cells.get("file", ""), [(cells.get("class", "").strip() or None, numbers)]


def _kaggle(text: str) -> tuple[str, Objects]:
    """Parses `ImageId,wnid xmin ymin xmax ymax wnid xmin ...`."""
    name, _, rest = text.partition(",")
    words = rest.strip(' "').split()
    return name, [(words[n], words[n + 1 : n + 5]) for n in range(0, len(words), 5)]
