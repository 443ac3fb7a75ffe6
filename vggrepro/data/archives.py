"""Images inside archives: an uncompressed tar is a list of offsets, and so is a tar of tars."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from vggrepro.data.labels import Labels
from vggrepro.data.members import NUMBERED, SUFFIXES, VAL_WORDS, Member
from vggrepro.errors import UserError


def in_archive(file: Path, labels: Labels) -> Iterator[Member]:
    """The images of one tar, whatever its layout; each layout shows in the names of its members."""
    classes: dict[str, str] = {}  # WebDataset: the class file of a key
    images: dict[str, Member] = {}
    any_found = False
    with _open(file) as stream:
        for member in _members(file, stream):
            path = PurePosixPath(member.name)
            place = (str(file), str(path).lstrip("/"), member.offset_data, member.size, True)
            if path.suffix == ".tar":
                any_found = True
                stream.seek(member.offset_data)
                for inner in _members(file, stream, member.offset_data + member.size):
                    inside = PurePosixPath(inner.name)
                    if inside.suffix.lower() in SUFFIXES:
                        name = f"{path}/{inside}".lstrip("/")
                        yield Member("train", path.stem, str(file), name, inner.offset_data, inner.size, True)
            elif path.suffix in (".cls", ".wnid"):
                classes[str(path.with_suffix(""))] = _contents(stream, member)
            elif path.suffix.lower() in SUFFIXES:
                any_found = True
                if split := _split_of(path.parts[:-1]):
                    folders = [part for part in path.parts[:-1] if part not in (".", "images")]
                    flat = folders[-1] in {split, *VAL_WORDS}
                    yield Member(split, labels.of(path.name, file.parent) if flat else folders[-1], *place)
                else:
                    images[str(path.with_suffix(""))] = Member("", "", *place)
    if not any_found:
        raise UserError(f"{file} holds no images; give the archives of the images themselves")
    split = _split_of([file.stem])
    for key, image in images.items():
        if key not in classes and re.fullmatch(r"ILSVRC\d+_val_\d+", key):
            yield image._replace(split="val", class_name=labels.of(image.name, file.parent))
            continue
        if key not in classes:
            raise UserError(
                f"{file} holds {image.name}, but neither folders train/<class>/ or val/<class>/ nor "
                f"{PurePosixPath(key).name}.cls say what it is; give ILSVRC's archives, WebDataset shards or folders"
            )
        if not split:
            raise UserError(f"{file} is neither train nor val by its name; rename it, e.g. train-{file.name}")
        number = classes[key]
        yield image._replace(split=split, class_name=NUMBERED + number if number.isdigit() else number)


def files_in(file: Path) -> Iterator[tuple[str, int, int]]:
    """(path, offset, bytes) of every file in an uncompressed tar. Raises UserError."""
    with _open(file) as stream:
        for member in _members(file, stream):
            yield member.name, member.offset_data, member.size


def _open(file: Path) -> io.BufferedReader:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions") from None
    start = stream.read(6)
    stream.seek(0)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        stream.close()
        raise UserError(f"{file} is compressed, so its images have no place in it; uncompress it once (e.g. gunzip)")
    return stream


def _members(file: Path, stream: io.BufferedReader, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Members of the tar that starts where the stream stands, held to the bytes that are there."""
    limit = os.fstat(stream.fileno()).st_size if end is None else end
    nested = end is not None
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # else it remembers a million of them
                if member.offset_data + member.size > limit:
                    raise UserError(
                        f"{file} is cut off: {member.name} should end at byte {member.offset_data + member.size}, "
                        f"the {'inner archive' if nested else 'file'} ends at {limit}; copy it again"
                    )
                if member.isfile():
                    at = stream.tell()
                    yield member
                    stream.seek(at)  # the caller may have read
            # Python's reader takes a damaged or torn header for the end, which is a block of zeros
            stream.seek(tar.offset)
            if any(rest := stream.read(max(0, min(tarfile.BLOCKSIZE, limit - tar.offset)))):
                problem = "is cut off" if len(rest) < tarfile.BLOCKSIZE else "is damaged"
                raise UserError(f"{file} {problem} at byte {tar.offset}; download or copy it again")
    except tarfile.ReadError as error:
        problem = "is cut off" if "end of data" in str(error) else "is not a tar archive"
        raise UserError(f"{file} {problem} ({error}); download or copy it again") from None


def _contents(stream: io.BufferedReader, member: tarfile.TarInfo) -> str:
    stream.seek(member.offset_data)
    return stream.read(member.size).decode(errors="replace").strip()


def _split_of(names: Iterable[str]) -> str | None:
    """Train or val, where the names of folders or the words of a file name say it."""
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        if "train" in words:
            return "train"
        if words & VAL_WORDS:
            return "val"
    return None
