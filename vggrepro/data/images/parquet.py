"""Reads images in Parquet tables, as hubs serve ImageNet-1k: columns `image` = {bytes, path} and `label`.

An uncompressed table stores the bytes of each image contiguously, and an index stores their offsets. A compressed table
is rewritten once (:func:`repack`); its other columns, its schema and the class names do not change.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.data.images.archive_members import NUMBERED, SPLITS, Member, Notes, split_of, without_folders
from vggrepro.data.images.index import stamp_of
from vggrepro.data.images.tree import absolute
from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
SUMS = "SHA256SUMS"  # checksum file beside repacked tables, in the format of `sha256sum --check`
_STATE = ".repacked.json"  # the source of each table
_ROWS = 64  # rows read or written at once
_SHARD = re.compile(r"(.*-)(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet")
_WNID = re.compile(r"(?:.*_)?(n\d{8})(?:_\d+)?\.\w+")  # at the start or end of the names of ILSVRC's images


class Table:
    """A Parquet file. Raises UserError if it is not a table of images with labels."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = absolute(file)
        try:
            self._file = pq.ParquetFile(file)
            self.metadata, self.schema = self._file.metadata, self._file.schema_arrow
            columns = {column.name: column.type for column in self.schema}
            image, label = columns.get("image", pa.null()), columns.get("label", pa.null())
            fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as Parquet ({reason_of(error, 100)}); download it again") from None
        content, path = fields.get("bytes", pa.null()), fields.get("path", pa.string())
        of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        if not (any(kind(content) for kind in of_bytes) and path == pa.string() and pa.types.is_integer(label)):
            raise UserError(
                f"{file} has the columns {', '.join(columns)}; a table of images has image = {{bytes, path}} and an "
                f"integer, label"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty unless the schema's metadata contain distinct ones."""
        try:
            stated = json.loads((self.schema.metadata or {})[b"huggingface"])
            names = tuple(map(str, stated["info"]["features"]["label"]["names"]))
        except (KeyError, TypeError, ValueError):
            return ()
        return names if len(set(names)) == len(names) else ()

    def _byte_columns(self) -> Iterator[tuple[int, Any]]:
        for group in range(self.metadata.num_row_groups):
            for number in range(self.metadata.num_columns):
                column = self.metadata.row_group(group).column(number)
                if column.path_in_schema == "image.bytes":
                    yield group, column

    def batches(self, groups: Sequence[int] | None = None, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yields batches of a few rows. Raises UserError if the file is damaged."""
        import pyarrow as pa

        try:
            yield from self._file.iter_batches(_ROWS, row_groups=groups, columns=columns, use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged ({reason_of(error, 100)}); download it again") from None

    def members(self) -> Iterator[Member]:
        """Yields every image with its class number. Raises UserError if images are not stored contiguously."""
        split = split_of_table(self.path)
        if split not in SPLITS:
            raise UserError(f"{self.path} is neither train nor val by its name; rename it, e.g. train-{self.path.name}")
        if any(column.compression != "UNCOMPRESSED" for _, column in self._byte_columns()):
            raise UserError(f"{self.path} is compressed, not readable in place; rewrite it once with `vggrepro repack`")
        row = 0
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for group, column in self._byte_columns():
                first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
                last = first + column.total_compressed_size
                at = first
                for batch in self.batches([group], ["image", "label"]):
                    for name, content, label in _rows(batch):
                        if content is None or label is None or label < 0:
                            what = "bytes" if content is None else "label"
                            raise UserError(f"{self.path}: row {row} has no {what}; give a table that has")
                        # images are in order, except those that a dictionary page already holds
                        at = _find(mapped, content, at, last)
                        at = _find(mapped, content, first, last) if at < 0 else at
                        if at < 0:
                            raise UserError(
                                f"{self.path}: image {row} is not stored contiguously; rewrite it once with "
                                f"`vggrepro repack`"
                            )
                        shown = f"{row:07d}/{name}" if name else f"{row:07d}"
                        yield Member(split, f"{NUMBERED}{label}", str(self.path), shown, at, len(content), True)
                        at += len(content)
                        row += 1


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[str, memoryview | None, int | None]]:
    """Yields (path, bytes, label) of each row."""
    struct = batch.column("image")
    fields = dict(zip((field.name for field in struct.type), struct.flatten(), strict=True))
    paths = fields["path"].to_pylist() if "path" in fields else [None] * len(struct)
    for path, content, label in zip(paths, fields["bytes"], batch.column("label").to_pylist(), strict=True):
        encoded = memoryview(content.as_buffer()).cast("B") if content.is_valid else None
        yield without_folders(path or ""), encoded, label


def _find(mapped: mmap.mmap, content: memoryview, first: int, last: int) -> int:
    """Finds bytes between two offsets of a file; -1 if they are not there."""
    head = bytes(content[:64])
    while (first := mapped.find(head, first, last)) >= 0:
        if mapped[first : first + len(content)] == content and first + len(content) <= last:
            return first
        first += 1
    return -1


def wnids_of(members: Iterable[Member]) -> tuple[str, ...]:
    """Infers the WordNet ids of labels 0, 1, ... from image names; empty unless they are consistent and complete."""
    found: dict[int, str] = {}
    for member in members:
        match = _WNID.fullmatch(member.file_name)
        if not match or found.setdefault(int(member.class_name.removeprefix(NUMBERED)), match[1]) != match[1]:
            return ()
    names = tuple(found[number] for number in sorted(found))
    return names if sorted(found) == list(range(len(found))) and sorted(set(names)) == list(names) else ()


def split_of_table(file: Path) -> str | None:
    """Infers `train`, `val` or `test` from the name of a table, or else of its folder."""
    return split_of(file.stem) or split_of(file.parent.name)


def note_gaps(files: Iterable[Path], notes: Notes) -> None:
    """Notes missing tables of a series (`train-00000-of-00294.parquet`)."""
    series: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            series.setdefault((file.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (folder, name, n), present in series.items():
        if missing := sorted(set(range(n)) - present):
            notes.add(f"{len(missing)} of {n} tables {folder / name}* are missing, the first is number {missing[0]}")


def repack(sources: Sequence[Path], out: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """Rewrites tables without compression, so that images can be read in place; nothing else changes.

    Each table is read back and compared with its source by SHA-256 before it gets its name. Tables that an earlier call
    has made from the same files are not made again. Calls `progress(done, total)` in MiB, and returns the tables in
    `out`. Raises UserError for other tables, and before anything is written if disk space is insufficient.
    """
    tables = [Table(file) for source in sources for file in _tables_in(source)]
    if twice := [name for name, n in Counter(table.path.name for table in tables).items() if n > 1]:
        raise UserError(f"two tables are called {twice[0]}; repack them into separate folders")
    if same := [table.path for table in tables if table.path.parent == out.resolve()]:
        raise UserError(f"--out {out} holds {same[0].name} itself; name another folder")
    try:
        made: dict[str, dict[str, Any]] = {}  # tables of earlier calls, by name
        with suppress(FileNotFoundError, ValueError):
            made = json.loads((out / _STATE).read_bytes())
        pending = [table for table in tables if made.get(table.path.name, {}).get("of") != _stamps(table, out)]
        for table in pending:
            if (origin := made.get(table.path.name, {}).get("from", str(table.path))) != str(table.path):
                raise UserError(f"--out {out} holds {table.path.name} of {origin}; name another folder")
        total = sum(map(_size, pending))
        out.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out).free) < total:
            raise UserError(
                f"--out {out} has {free >> 20:,} MiB free, but {total >> 20:,} are needed; name another folder"
            )
        written = 0
        for table in pending:
            digest = _rewrite(table, out / table.path.name)
            made[table.path.name] = {"from": str(table.path), "of": _stamps(table, out), "sha256": digest}
            sums = "".join(f"{entry['sha256']}  {name}\n" for name, entry in made.items())
            for name, text in {_STATE: json.dumps(made), SUMS: sums}.items():
                with replacing(out / name) as temporary:
                    temporary.write_text(text)
            written += _size(table)
            progress(written >> 20, total >> 20)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({reason_of(error, 100)}); choose another folder") from None
    return [out / table.path.name for table in tables]


def _stamps(table: Table, out: Path) -> list[Any]:
    """Size and modification time of a table and of its rewritten copy; None for a missing file."""
    stamps = [stamp_of(str(file)) for file in (table.path, out / table.path.name)]
    return [stamp and list(stamp) for stamp in stamps]


def _tables_in(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    found = sorted(file for file in source.glob(f"[!.]*{SUFFIX}") if split_of_table(file) != "test")
    if not found:
        raise UserError(f"{source} holds no *{SUFFIX}; name the folder that holds the tables")
    return found


def _size(table: Table) -> int:
    """Approximate bytes of a table without compression."""
    return sum(table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups))


def _rewrite(table: Table, to: Path) -> str:
    """Rewrites a table and returns its SHA-256 (hex)."""
    import pyarrow.parquet as pq

    before, after = hashlib.sha256(), hashlib.sha256()
    with replacing(to) as temporary:
        with pq.ParquetWriter(temporary, table.schema, compression="none", use_dictionary=False) as writer:
            for batch in table.batches():
                writer.write_batch(batch)
                _digest(before, batch)
        for batch in Table(temporary).batches():
            _digest(after, batch)
        if before.digest() != after.digest():
            raise UserError(f"{temporary} differs from what was written; check the disk and repack {table.path} again")
        with temporary.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(digest: Any, batch: pa.RecordBatch) -> None:
    for name, content, label in _rows(batch):
        digest.update(f"{name} {label} {-1 if content is None else len(content)}\n".encode(errors="surrogateescape"))
        if content is not None:
            digest.update(content)
