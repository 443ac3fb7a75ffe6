"""The index: the location, label, size and oddities of every image, a row per image.

Training and evaluation read nothing else about a data set. An unpacked folder and an archive whose members are stored
uncompressed are the same to them: a container, an offset and a length. Rows are ordered by split, by usability, and
then by class and name. So the same images make the same rows wherever they are stored, and the usable images of a split
are a single slice of a file that all processes of a machine share in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.decode import BadImageError, read
from vggrepro.data.images.archive_members import SPLITS, is_wnid
from vggrepro.data.images.open_archives import OpenArchives
from vggrepro.data.views import Ints
from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing
from vggrepro.paper import value

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT_VERSION = "2"
_METADATA = ("classes", "source", "verified", "archives", "mean_rgb", "seen", "notes")


@dataclass(frozen=True)
class Split:
    """The usable images of a split in index order. Arrays have the shape (images,) unless stated otherwise."""

    name: str
    """`train` or `val`."""
    containers: Sequence[str]
    """Archives and folders that hold images."""
    container: NDArray[np.int32]
    """Position of an image's archive or folder in `containers`."""
    names: pa.ChunkedArray
    """File names; in an archive, paths inside it."""
    offset: Ints
    """First byte of the image in its archive; 0 in a separate file."""
    length: Ints
    """Bytes of the encoded image."""
    label: Ints
    """Class numbers, positions in `Index.classes`."""
    size: Ints
    """Height and width, px, shape (images, 2)."""
    ordinary: NDArray[np.bool_]
    """Whether nothing is odd about the image: a JPEG that every decoder decodes to the same pixels."""
    rejected: int
    """Number of images of this split that cannot be used and are not in the arrays."""
    _archives: OpenArchives

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Ints) -> Split:
        """Returns the images `rows`, shape (n,), in this order as a split."""
        columns = ("container", "offset", "length", "label", "size", "ordinary")
        return replace(self, names=self.names.take(rows), **{key: getattr(self, key)[rows] for key in columns})

    def name_of(self, image: int) -> str:
        """Path of an image for messages; in an archive, the archive's path followed by the path inside."""
        return os.path.join(self.containers[self.container[image]], self.names[image].as_py())

    def read(self, image: int) -> bytes:
        """Reads the encoded image.

        Raises:
            BadImageError: The file is missing, or its length is not the indexed one.
            UserError: The machine cannot read it.
        """
        container, length = self.containers[self.container[image]], int(self.length[image])
        if self._archives.is_archive(container):
            return self._archives.read(container, int(self.offset[image]), length)
        encoded = read(self.name_of(image), 0, length + 1, least=length)
        if len(encoded) != length:
            raise BadImageError(f"{len(encoded)} bytes long, {length} when it was indexed")
        return encoded

    def read_or_reason(self, image: int) -> bytes | BadImageError:
        """Reads the encoded image, or returns the reason why it is bad. Raises UserError."""
        try:
            return self.read(image)
        except BadImageError as error:
            return error


@dataclass(frozen=True)
class Index:
    """The images of a data set, its classes, and the outcome of the scan."""

    table: pa.Table
    """Columns: container, name, offset, length, split, label, size (height and width, px), format and status."""
    classes: tuple[str, ...]
    """Class names (WordNet ids for ImageNet) in label order: sorted, except those of Parquet tables."""
    source: str
    """The scanned folders and archives."""
    verified: str
    """`full` if every image was decoded once, `header` if only headers were read."""
    archives: tuple[str, ...]
    """The containers that are archives; the others are folders."""
    mean_rgb: tuple[float, float, float] | None = None
    """Mean of the mean colours of the usable training images, grey levels, if requested."""
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and modification time of archives, folders and a label file at the time of the scan, as of `stamp_of`."""
    notes: tuple[str, ...] = ()
    """Remarks on files that were left out, and on how class numbers were read; a line each."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of classes, splits, labels, lengths and sizes in index order, independent of paths."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in SPLITS:
            split = self.split(name)
            digest.update(f"{name} {len(split)} {split.rejected}\n".encode())
            for column in (split.label, split.length, split.size):
                digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """Returns the usable images of `train` or `val`; the arrays are views of the table, not copies."""
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {name: self._split(name) for name in SPLITS}

    def _split(self, name: str) -> Split:
        in_split = _codes(self.table["split"]) == SPLITS.index(name)
        usable = in_split & self._with_status(lambda status: status.startswith("ok"))
        start, n = int(in_split.argmax()), int(usable.sum())
        assert usable[start : start + n].all(), "usable images of a split must be a single slice"
        rows = slice(start, start + n)
        table = self.table.slice(start, n)
        return Split(
            name=name,
            containers=self.containers,
            container=_codes(self.table["container"])[rows],
            names=table["name"],
            offset=numbers_of(self.table["offset"].chunk(0))[rows],
            length=numbers_of(self.table["length"].chunk(0))[rows],
            label=numbers_of(self.table["label"].chunk(0))[rows],
            size=numbers_of(self.table["size"].chunk(0).values).reshape(-1, 2)[rows],
            ordinary=self._with_status(lambda status: status == "ok")[rows],
            rejected=int(in_split.sum() - n),
            _archives=OpenArchives(self.archives),
        )

    @property
    def containers(self) -> list[str]:
        """Distinct archives and folders that hold images."""
        return self.table["container"].chunk(0).dictionary.to_pylist()

    @property
    def _statuses(self) -> list[str]:
        return self.table["status"].chunk(0).dictionary.to_pylist()

    def _with_status(self, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
        """Whether `holds` is true of the status, per image, shape (images,)."""
        return np.array(list(map(holds, self._statuses)), np.bool_)[_codes(self.table["status"])]

    def summary(self) -> dict[str, Any]:
        """Summarises the index for JSON: counts in total, by reason and by split, differences from ILSVRC, notes."""
        counts = np.bincount(_codes(self.table["status"]), minlength=len(self._statuses))
        statuses = {status: int(n) for status, n in zip(self._statuses, counts, strict=True) if n}
        by_reason = {
            kind: {status.partition(": ")[2]: n for status, n in sorted(statuses.items()) if status.startswith(prefix)}
            for kind, prefix in (("odd", "ok-odd: "), ("rejected", "rejected: "))
        }
        rejected = sum(by_reason["rejected"].values())
        splits = np.bincount(_codes(self.table["split"]), minlength=len(SPLITS))
        return {
            "source": self.source,
            "verified": self.verified,
            "images": self.table.num_rows,
            "usable": self.table.num_rows - rejected,
            "odd": sum(by_reason["odd"].values()),
            "rejected": rejected,
            "by_reason": by_reason,
            "splits": {name: int(n) for name, n in zip(SPLITS, splits, strict=True)},
            "rejected_splits": {name: self.split(name).rejected for name in SPLITS},
            "classes": len(self.classes),
            "ilsvrc": self.against_ilsvrc(),
            "mean_rgb": self.mean_rgb,
            "notes": list(self.notes),
            "fingerprint": self.fingerprint,
        }

    def against_ilsvrc(self) -> list[str] | None:
        """Lists differences from ILSVRC-2012, if the data set has the same number of WordNet ids; None otherwise."""
        if len(self.classes) != value("classes") or not all(map(is_wnid, self.classes)):
            return None
        found = np.bincount(_codes(self.table["split"]), minlength=len(SPLITS))
        expected = (value("train_images"), value("val_images"))
        return [
            f"{n} {name} images, ILSVRC-2012 has {published}"
            for name, n, published in zip(SPLITS, found, expected, strict=True)
            if n != published
        ]

    def flagged(self) -> Iterator[tuple[str, str]]:
        """Yields (status, path) of every image whose status is not `ok`."""
        containers, container = self.containers, _codes(self.table["container"])
        for status in sorted(set(self._statuses) - {"ok"}):
            for row in self._with_status(status.__eq__).nonzero()[0].tolist():
                yield status, os.path.join(containers[container[row]], self.table["name"][row].as_py())

    def save(self, path: Path) -> None:
        """Writes the index to an Arrow IPC file, atomically. Raises UserError."""
        import pyarrow as pa

        about = {key: getattr(self, key) for key in _METADATA}
        texts = {key: item if isinstance(item, str) else json.dumps(item) for key, item in about.items()}
        try:
            with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                table = self.table.replace_schema_metadata({"version": _FORMAT_VERSION, **texts})
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
        except OSError as error:
            raise UserError(f"index {path} cannot be written: {error.strerror}; choose another place") from None


def load(path: Path) -> Index:
    """Maps an index written by :meth:`Index.save` into memory and checks it against its files. Raises UserError."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise UserError(f"index {path} does not exist; make it with `vggrepro index SOURCE --out {path}`") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"index {path} cannot be read ({reason_of(error)}); make it again with `vggrepro index`"
        ) from None
    metadata = {key.decode(): item.decode() for key, item in (table.schema.metadata or {}).items()}
    if metadata.get("version") != _FORMAT_VERSION:
        raise UserError(f"index {path} has another format version; make it again with `vggrepro index`")
    mean = json.loads(metadata["mean_rgb"])
    seen = {file: (size, changed) for file, (size, changed) in json.loads(metadata["seen"]).items()}
    for file, indexed in seen.items():
        if (current := stamp_of(file)) is None:
            raise UserError(f"{file} of index {path} is missing; restore it, or make the index again")
        if current != indexed:
            raise UserError(f"{file} has changed since index {path} was made; make the index again")
    return Index(
        table=table,
        classes=tuple(json.loads(metadata["classes"])),
        source=metadata["source"],
        verified=metadata["verified"],
        archives=tuple(json.loads(metadata["archives"])),
        mean_rgb=tuple(mean) if mean else None,
        seen=seen,
        notes=tuple(json.loads(metadata.get("notes", "[]"))),
    )


def stamp_of(file: str) -> tuple[int, int] | None:
    """Size in bytes (0 for a folder) and modification time in ns of a file; None if it does not exist."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return (0 if os.path.isdir(file) else stat.st_size), stat.st_mtime_ns


def _codes(column: pa.ChunkedArray) -> NDArray[Any]:
    """Returns the dictionary codes of a column without copying."""
    return numbers_of(column.chunk(0).indices)


def numbers_of(array: pa.Array) -> NDArray[Any]:
    """Returns the numbers of an Arrow array without copying; Arrow's `to_numpy` would import pandas for seconds."""
    values = np.frombuffer(array.buffers()[1], str(array.type))
    return values[array.offset : array.offset + len(array)]


def require_training_images(index: Index) -> None:
    """Raises UserError for an index without usable training images."""
    train = index.split("train")
    if train.rejected and not len(train):
        raise UserError(f"{index.source} has no usable image in train; `vggrepro index --report` lists the reasons")
    if not len(train):
        raise UserError(
            f"{index.source} has no training images, only validation images: enough for `vggrepro evaluate`, not for "
            f"training; index train/ or ILSVRC2012_img_train.tar as well"
        )
