"""Storage of results: a file per key in the run directory, written atomically. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import chain
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vggrepro.errors import UserError
from vggrepro.files import replacing
from vggrepro.storage.directory import RunDirectory

Value = TypeVar("Value")
Note = dict[str, Any]
"""JSON for readers."""
Arrays = dict[str, NDArray[Any]]
"""Arrays by name."""


@dataclass(frozen=True)
class Key(Generic[Value]):
    """Identifies a stored result by its inputs; subclasses add the fields and the stem of the file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    folder: ClassVar[str]
    """Folder in the run directory."""
    value_type: ClassVar[type[Any]]
    """Dataclass of the stored arrays."""
    patterns: ClassVar[tuple[str, ...]] = ("[!.]*.npz",)
    """Patterns of the files of this kind in the folder."""

    @property
    def stem(self) -> str:
        """Name of the file without its suffix."""
        raise NotImplementedError

    def file(self, run: RunDirectory) -> Path:
        """Returns the path of the stored result."""
        return run.path / self.folder / f"{self.stem}.npz"

    def exists(self, run: RunDirectory) -> bool:
        """Whether the result is stored; nothing is read."""
        return self.file(run).exists()

    def save(self, run: RunDirectory, value: Value, **note: Any) -> None:
        """Stores a result with a note for readers (JSON)."""
        arrays = {name: getattr(value, name) for name in self._arrays()}
        header = {name: np.array(json.dumps(tree, sort_keys=True)) for name, tree in self._header(note).items()}
        write_arrays(self.file(run), **arrays, **header)

    def load(self, run: RunDirectory) -> Value | None:
        """Reads the result, or None if it is not stored. Raises UserError for any other file in its place."""
        file = self.file(run)
        if not file.exists():
            return None
        content = read_arrays(file)
        try:
            key, _ = self._parsed(file, content)
            value: Value = self.value_type(**{name: content[name] for name in self._arrays()})
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(file, error) from None
        if key != self:
            raise UserError(f"{self.folder} {file} are of another protocol; remove the file and evaluate again")
        return value

    def note(self, run: RunDirectory) -> Note:
        """Reads the note of a stored result. Raises UserError."""
        return self._read_header(self.file(run))[1]

    @classmethod
    def listed(cls, run: RunDirectory) -> list[tuple[Self, Note]]:
        """Returns (key, note) of all stored results of this kind by file name, without reading the results.

        Raises UserError.
        """
        folder = run.path / cls.folder
        return [cls._read_header(file) for file in sorted(chain.from_iterable(map(folder.glob, cls.patterns)))]

    @classmethod
    def _read_header(cls, file: Path) -> tuple[Self, Note]:
        content = read_arrays(file, "protocol", "said", "note")
        try:
            return cls._parsed(file, content)
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(file, error) from None

    def _header(self, note: Note) -> dict[str, Note]:
        """Returns the JSON to store beside the result, by the name of the array."""
        return {"protocol": asdict(self)} | ({"said": note} if note else {})

    @classmethod
    def _parsed(cls, file: Path, content: Arrays) -> tuple[Self, Note]:
        """Parses (key, note) of a stored file. Raises KeyError and ValueError."""
        return parsed(cls, json.loads(str(content["protocol"]))), json.loads(str(content.get("said", "{}")))

    @classmethod
    def _arrays(cls) -> list[str]:
        return [field.name for field in fields(cls.value_type)]


Parsed = TypeVar("Parsed")


def parsed(kind: type[Parsed], tree: object) -> Parsed:
    """Validates JSON as a dataclass. Raises ValueError with a one-line message."""
    try:
        instance: Parsed = _adapter(kind).validate_python(tree)  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return instance


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def digest(key: Any) -> str:
    """Returns a hash of a key for file names, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()[:16]


def stem_of(*parts: object, flip: bool, precision: str, hashes: Iterable[str]) -> str:
    """Joins parts of a key to a stem; `flip` and precision appear only if they are not the defaults."""
    departures = [*([] if flip else ["noflip"]), *([] if precision == "fp32" else [precision])]
    return "-".join(map(str, [*parts, *departures, *(digits[:12] for digits in hashes)]))


def write_arrays(file: Path, **arrays: NDArray[Any]) -> None:
    """Writes arrays atomically: a file with its final name is complete."""
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def read_arrays(file: Path, *names: str) -> Arrays:
    """Reads arrays that :func:`write_arrays` wrote: all, or only the named ones that exist. Raises UserError."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in names or content.files if name in content}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from None


@dataclass(frozen=True)
class ArrayHeader:
    """Metadata of an array in a stored file."""

    shape: tuple[int, ...]
    by_column: bool
    """Whether the file has it in Fortran order."""
    dtype: np.dtype[Any]
    checksum: int
    """CRC-32 of its contents."""


def array_header(file: Path, name: str) -> ArrayHeader:
    """Reads the metadata of an array, some hundred bytes of the file. Raises UserError."""
    with _open_array(file, name) as (header, _):
        return header


def array_rows(file: Path, name: str, rows: int) -> Iterator[NDArray[Any]]:
    """Yields a stored array, at most `rows` rows at a time, and checks its checksum at the end. Raises UserError."""
    with _open_array(file, name) as (header, stream):
        if header.by_column:
            array = read_arrays(file, name)[name]
            yield from (array[first : first + rows] for first in range(0, len(array), rows))
            return
        for first in range(0, header.shape[0], rows):
            shape = (min(rows, header.shape[0] - first), *header.shape[1:])
            content = stream.read(math.prod(shape) * header.dtype.itemsize)
            yield np.frombuffer(content, header.dtype).reshape(shape)


@contextmanager
def _open_array(file: Path, name: str) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("an array of another version of NumPy's format")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
            yield ArrayHeader(shape, by_column, dtype, archive.getinfo(f"{name}.npy").CRC), stream
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    kind = file.parent.with_suffix("").name if file.parent.suffix == ".parts" else file.parent.name
    return UserError(f"{kind} {file} cannot be read ({error}); remove the file and evaluate again")
