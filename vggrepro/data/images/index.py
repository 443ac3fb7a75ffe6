"""The index: one row per image, saying where its bytes are, what it is labelled, how large it is and what is odd.

Training and evaluation read nothing else about a data set, so an unpacked folder and any archive whose members are
stored uncompressed are the same thing to them: a container, an offset and a length. Rows are ordered by split, by
usability and then by class and name, so the same images make the same rows wherever they lie, and a split's usable
images are one slice of a file that all processes of a machine share in memory.
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
    """The usable images of one split, in index order. Arrays are (images,) unless said otherwise."""

    name: str
    containers: Sequence[str]
    """Archives and folders that hold images; an image names its own by number."""
    container: NDArray[np.int32]
    names: pa.ChunkedArray
    """File names; in an archive with the folders there."""
    offset: Ints
    """Byte where the image starts in its archive; 0 in a file of its own."""
    length: Ints
    """Bytes."""
    label: Ints
    size: Ints
    """(images, 2) height and width, px."""
    ordinary: NDArray[np.bool_]
    """Whether nothing is odd about the image: a JPEG whose pixels every decoder gives alike."""
    rejected: int
    """Images of this split that cannot be used, and are not in the arrays."""
    _archives: OpenArchives

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Ints) -> Split:
        """Some of the images, in that order, as a split of their own."""
        taken = {
            key: getattr(self, key)[rows] for key in ("container", "offset", "length", "label", "size", "ordinary")
        }
        return replace(self, names=self.names.take(rows), **taken)

    def name_of(self, image: int) -> str:
        """Where an image is, for messages."""
        return os.path.join(self.containers[self.container[image]], self.names[image].as_py())

    def read(self, image: int) -> bytes:
        """The encoded image. Raises BadImageError for what is its own fault, UserError for what is the machine's."""
        container, length = self.containers[self.container[image]], int(self.length[image])
        if self._archives.is_archive(container):
            return self._archives.read(container, int(self.offset[image]), length)
        encoded = read(os.path.join(container, self.names[image].as_py()), 0, length + 1, least=length)
        if len(encoded) != length:
            raise BadImageError(f"{len(encoded)} bytes long, {length} when it was indexed")
        return encoded

    def read_or_reason(self, image: int) -> bytes | BadImageError:
        """The encoded image, or what is wrong with it. Raises UserError."""
        try:
            return self.read(image)
        except BadImageError as error:
            return error


@dataclass(frozen=True)
class Index:
    """A data set.

    `table` has the columns container, name, offset, length, split, label, size (height and width), format and status.
    """

    table: pa.Table
    classes: tuple[str, ...]
    """Class names (WordNet ids for ImageNet) in label order, which is their sorted order but for tables of Parquet."""
    source: str
    """What was scanned."""
    verified: str
    """`full` where every image was decoded once, `header` where only its header was read."""
    archives: tuple[str, ...]
    """The containers that are archives; the others are folders."""
    mean_rgb: tuple[float, float, float] | None = None
    """Mean of the usable training images' mean colours, grey levels, where it was asked for."""
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(bytes, time of change in ns) of archives and a label file when they were scanned, (0, time of change) of
    folders."""
    notes: tuple[str, ...] = ()
    """A line each: what was left out of the source, how numbers of classes were read."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the images are, wherever they lie: labels, lengths, sizes, splits, in order."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in SPLITS:
            split = self.split(name)
            digest.update(f"{name} {len(split)} {split.rejected}\n".encode())
            for column in (split.label, split.length, split.size):
                digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """The usable images of `train` or `val`. Arrays are views of the table, not copies."""
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {name: self._split(name) for name in SPLITS}

    def _split(self, name: str) -> Split:
        of_split = _codes(self.table["split"]) == SPLITS.index(name)
        usable = of_split & self._with_status(lambda status: status.startswith("ok"))
        start, n = int(of_split.argmax()), int(usable.sum())
        assert usable[start : start + n].all(), "usable images of a split must be one slice"
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
            rejected=int(of_split.sum() - n),
            _archives=OpenArchives(self.archives),
        )

    @property
    def containers(self) -> list[str]:
        """Archives and folders that hold images, each once."""
        return self.table["container"].chunk(0).dictionary.to_pylist()

    @property
    def _statuses(self) -> list[str]:
        return self.table["status"].chunk(0).dictionary.to_pylist()

    def _with_status(self, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
        """(images,) whether something holds of an image's status."""
        return np.array(list(map(holds, self._statuses)), np.bool_)[_codes(self.table["status"])]

    def summary(self) -> dict[str, Any]:
        """Counts: images, usable, odd, rejected, by_reason (of these two), splits, rejected_splits, classes, ..."""
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
        """Where a data set with the classes of ILSVRC-2012 departs from it; None for any other data set."""
        if len(self.classes) != value("classes") or not all(map(is_wnid, self.classes)):
            return None
        found = np.bincount(_codes(self.table["split"]), minlength=len(SPLITS))
        expected = (value("train_images"), value("val_images"))
        return [
            f"{n} {name} images, ILSVRC-2012 has {wanted}"
            for name, n, wanted in zip(SPLITS, found, expected, strict=True)
            if n != wanted
        ]

    def flagged(self) -> Iterator[tuple[str, str]]:
        """(status, place) of every image that is not simply ok."""
        containers, container = self.containers, _codes(self.table["container"])
        for status in sorted(set(self._statuses) - {"ok"}):
            for row in self._with_status(status.__eq__).nonzero()[0].tolist():
                yield status, os.path.join(containers[container[row]], self.table["name"][row].as_py())

    def save(self, path: Path) -> None:
        """Writes the index as one Arrow IPC file, atomically. Raises UserError."""
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
    """An index written by :meth:`Index.save`, mapped into memory and checked against its files. Raises UserError."""
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
        raise UserError(f"index {path} is of another version; make it again with `vggrepro index`")
    mean = json.loads(metadata["mean_rgb"])
    seen = {file: (size, changed) for file, (size, changed) in json.loads(metadata["seen"]).items()}
    for file, then in seen.items():
        now = stamp_of(file)
        if now is None:
            raise UserError(f"{file} of index {path} is gone; restore it, or make the index again")
        if now != then:
            raise UserError(f"index {path} is older than {file}, which has changed since; make it again")
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
    """(bytes, time of change in ns) of an archive, (0, time of change) of a folder; None where there is neither."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return (0 if os.path.isdir(file) else stat.st_size), stat.st_mtime_ns


def _codes(column: pa.ChunkedArray) -> NDArray[Any]:
    """The dictionary codes of a column, without copying."""
    return numbers_of(column.chunk(0).indices)


def numbers_of(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array, without copying. (Arrow's own `to_numpy` imports pandas: seconds.)"""
    values = np.frombuffer(array.buffers()[1], str(array.type))
    return values[array.offset : array.offset + len(array)]


def require_training_images(index: Index) -> None:
    """Raises UserError for an index without training images, which is enough for testing only."""
    train = index.split("train")
    if train.rejected and not len(train):
        raise UserError(f"{index.source} has no usable image in train; `vggrepro index` with --report says why")
    if not len(train):
        raise UserError(
            f"{index.source} has no training images, only validation images: enough for `vggrepro evaluate`, not for "
            f"training; index train/ or ILSVRC2012_img_train.tar as well"
        )
