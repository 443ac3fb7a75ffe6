"""The index: one row per picture, saying where its bytes are, what it is labelled, how large it is and what is odd.

Training and evaluation read nothing else about a data set, so an unpacked folder and any archive whose members are
stored uncompressed are the same thing to them: a container, an offset and a length.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.decode import BadPictureError
from vggrepro.data.views import Ints
from vggrepro.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val")
_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Split:
    """The usable pictures of one split, in index order. Arrays are (pictures,) unless said otherwise."""

    name: str
    containers: Sequence[str]
    """Files that hold pictures; a picture names its own by number."""
    container: Ints
    offset: Ints
    """Byte where the picture starts in its container."""
    length: Ints
    """Bytes."""
    label: Ints
    size: Ints
    """(pictures, 2) height and width, px."""
    ordinary: NDArray[np.bool_]
    """Whether nothing is odd about the picture: a JPEG whose pixels every decoder gives alike."""
    rejected: int
    """Pictures of this split that cannot be used, and are not in the arrays."""

    def __len__(self) -> int:
        return len(self.label)

    def name_of(self, picture: int) -> str:
        """Where a picture is, for messages."""
        return self.containers[self.container[picture]]

    def read(self, picture: int) -> bytes:
        """The encoded picture. Raises BadPictureError."""
        length = int(self.length[picture])
        try:
            with open(self.containers[self.container[picture]], "rb") as container:
                encoded = os.pread(container.fileno(), length, int(self.offset[picture]))
        except OSError as error:
            raise BadPictureError(str(error.strerror)) from None
        if len(encoded) != length:
            raise BadPictureError(f"{len(encoded)} bytes are left of {length}")
        return encoded


@dataclass(frozen=True)
class Index:
    """A data set. `table` has the columns container, offset, length, split, label, width, height, format, status."""

    table: pa.Table
    classes: tuple[str, ...]
    """Class names (WordNet ids for ImageNet) in label order, which is their sorted order."""
    source: str
    """What was scanned."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the pictures are, wherever they lie: labels, lengths, sizes, splits, in order."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for column in ("label", "length", "width", "height"):
            digest.update(self.table[column].to_numpy().astype("<i8").tobytes())
        for column in ("split", "status"):
            digest.update("\n".join(self.table[column].to_pylist()).encode())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """The usable pictures of `train` or `val`."""
        table = self.table
        of_split = np.array([split == name for split in table["split"].to_pylist()], dtype=bool)
        usable = of_split & np.array([status.startswith("ok") for status in table["status"].to_pylist()], dtype=bool)

        def column(key: str) -> Ints:
            return table[key].to_numpy()[usable].astype(np.int64)

        containers = table["container"].combine_chunks()
        return Split(
            name=name,
            containers=containers.dictionary.to_pylist(),
            container=containers.indices.to_numpy()[usable].astype(np.int64),
            offset=column("offset"),
            length=column("length"),
            label=column("label"),
            size=np.stack([column("height"), column("width")], axis=1),
            ordinary=np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)[usable],
            rejected=int(of_split.sum() - usable.sum()),
        )

    def summary(self) -> dict[str, Any]:
        """Counts: pictures, usable, odd, rejected, by_reason, splits, classes, fingerprint."""
        statuses = Counter(self.table["status"].to_pylist())
        rejected = sum(n for status, n in statuses.items() if status.startswith("rejected"))
        return {
            "source": self.source,
            "pictures": self.table.num_rows,
            "usable": self.table.num_rows - rejected,
            "odd": sum(n for status, n in statuses.items() if status.startswith("ok-odd")),
            "rejected": rejected,
            "by_reason": {status.partition(": ")[2]: n for status, n in statuses.items() if ": " in status},
            "splits": {name: self.table["split"].to_pylist().count(name) for name in SPLITS},
            "classes": len(self.classes),
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Writes the index as one Arrow IPC file, atomically. Raises UserError."""
        import pyarrow as pa

        metadata = {"version": _FORMAT_VERSION, "classes": "\n".join(self.classes), "source": self.source}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(temporary), "wb") as sink:
                table = self.table.replace_schema_metadata(metadata)
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"index {path} cannot be written: {error.strerror}; choose another place") from None


def load(path: Path) -> Index:
    """An index written by :meth:`Index.save`, mapped into memory. Raises UserError."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise UserError(f"index {path} does not exist; make it with `vggrepro index SOURCE --out {path}`") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"index {path} cannot be read ({error}); make it again with `vggrepro index`") from None
    metadata = {key.decode(): item.decode() for key, item in (table.schema.metadata or {}).items()}
    if metadata.get("version") != _FORMAT_VERSION:
        raise UserError(f"index {path} is of another version; make it again with `vggrepro index`")
    return Index(table, tuple(metadata["classes"].split("\n")), metadata["source"])


def scan_folder(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Index:
    """Indexes an ImageNet-style folder (`train/<class>/*`, `val/<class>/*`) by reading each picture's header.

    `progress(done, total)` is called in pictures. Raises UserError for a folder that is not one: a split or a class
    missing, a class without pictures, a validation class that training does not have.
    """
    import pyarrow as pa

    found = list(_listing(root))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        headers = []
        for done, header in enumerate(pool.map(lambda row: _header(row[2]), found, chunksize=64), 1):
            headers.append(header)
            if done % 256 == 0 or done == len(found):
                progress(done, len(found))
    classes = tuple(sorted({name for split, name, _ in found if split == "train"}))
    label = {name: number for number, name in enumerate(classes)}
    table = pa.table(
        {
            "container": pa.array([str(path) for *_, path in found]).dictionary_encode(),
            "offset": pa.array(np.zeros(len(found), np.int64)),
            "length": pa.array([header.length for header in headers], pa.int64()),
            "split": pa.array([split for split, *_ in found]).dictionary_encode(),
            "label": pa.array([label[name] for _, name, _ in found], pa.int32()),
            "width": pa.array([header.width for header in headers], pa.int32()),
            "height": pa.array([header.height for header in headers], pa.int32()),
            "format": pa.array([header.format for header in headers]).dictionary_encode(),
            "status": pa.array([header.status for header in headers]).dictionary_encode(),
        }
    )
    return Index(table, classes, str(root))


def open_index(root: str | None, index: Path | None, cache: Path, progress: Callable[[int, int], None]) -> Index:
    """The index a configuration means: `data.index`, or a scan of `data.root` kept in `cache` for the next time.

    A kept scan is used again while the listing (names, sizes, times of change) is what it was. Raises UserError.
    """
    if index is not None:
        return load(index)
    if root is None:
        raise UserError(
            "data.root is not set: name an ImageNet-style folder, or data.index, or data.root=builtin:digits"
        )
    folder = Path(root)
    listing = hashlib.sha256(str(folder.resolve()).encode())
    for split, name, path in _listing(folder):
        stat = path.stat()
        listing.update(f"{split}/{name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    kept = cache / f"{folder.resolve().name}-{listing.hexdigest()[:16]}.arrow"
    if kept.exists():
        return load(kept)
    made = scan_folder(folder, progress)
    made.save(kept)
    return made


def _listing(root: Path) -> Iterable[tuple[str, str, Path]]:
    """(split, class, file) in sorted order."""
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder; give one that holds train/<class>/ and val/<class>/")
    names: dict[str, list[str]] = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise UserError(f"data.root={root} has no folder {split}; expected {root}/{split}/<class>/<picture>")
        names[split] = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not names[split]:
            raise UserError(f"{folder} has no class folders; expected {folder}/<class>/<picture>")
    if strange := sorted(set(names["val"]) - set(names["train"])):
        raise UserError(
            f"{root}/val/{strange[0]} is not a class of {root}/train; remove it or add its training pictures"
        )
    for split in SPLITS:
        for name in names[split]:
            folder = root / split / name
            files = sorted(e.name for e in os.scandir(folder) if Path(e.name).suffix.lower() in _SUFFIXES)
            if not files:
                raise UserError(f"{folder} holds no pictures ({', '.join(sorted(_SUFFIXES))}); fill it or remove it")
            yield from ((split, name, folder / file) for file in files)


@dataclass(frozen=True)
class _Header:
    length: int
    width: int
    height: int
    format: str
    status: str


def _header(path: Path) -> _Header:
    from PIL import Image

    length = 0
    try:
        length = path.stat().st_size
        with Image.open(path) as picture:
            odd = "" if (picture.format, picture.mode) == ("JPEG", "RGB") else f"{picture.format} {picture.mode}"
            status = f"ok-odd: {odd}" if odd else "ok"
            return _Header(length, picture.width, picture.height, picture.format or "", status)
    except Exception as error:  # PIL raises whatever a broken file provokes
        return _Header(length, 0, 0, "", f"rejected: {type(error).__name__}")
