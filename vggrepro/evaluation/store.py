"""What tests of nets have answered, stored: one file per key in the run directory, written all or nothing. No torch."""

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
"""For readers: JSON."""
Arrays = dict[str, NDArray[Any]]
"""By name."""


@dataclass(frozen=True)
class Key(Generic[Value]):
    """Identifies one stored answer by what it was computed from; a kind of answer adds fields and a file's stem."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    folder: ClassVar[str]
    """Of the run directory."""
    value_type: ClassVar[type[Any]]
    """The dataclass of arrays that is stored."""
    patterns: ClassVar[tuple[str, ...]] = ("[!.]*.npz",)
    """Of the files of this kind in the folder."""

    @property
    def stem(self) -> str:
        """Name of the file, without its ending."""
        raise NotImplementedError

    def file(self, run: RunDirectory) -> Path:
        """Where the answer is stored."""
        return run.path / self.folder / f"{self.stem}.npz"

    def exists(self, run: RunDirectory) -> bool:
        """Whether the answer is stored; nothing is read."""
        return self.file(run).exists()

    def save(self, run: RunDirectory, value: Value, **note: Any) -> None:
        """Stores an answer, with a note for readers (JSON)."""
        arrays = {name: getattr(value, name) for name in self._arrays()}
        header = {name: np.array(json.dumps(tree, sort_keys=True)) for name, tree in self._header(note).items()}
        write_arrays(self.file(run), **arrays, **header)

    def load(self, run: RunDirectory) -> Value | None:
        """Reads the answer; None where there is none. Raises UserError for a file that is something else."""
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
        """Reads the note of a stored answer. Raises UserError."""
        return self._read_header(self.file(run))[1]

    @classmethod
    def listed(cls, run: RunDirectory) -> list[tuple[Self, Note]]:
        """Every stored answer of this kind, (key, note), in the order of file names; no answer is read.

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
        """What is stored beside the answer, by the name of the array: JSON."""
        return {"protocol": asdict(self)} | ({"said": note} if note else {})

    @classmethod
    def _parsed(cls, file: Path, content: Arrays) -> tuple[Self, Note]:
        """(key, note) of a stored file. Raises KeyError and ValueError."""
        return parsed(cls, json.loads(str(content["protocol"]))), json.loads(str(content.get("said", "{}")))

    @classmethod
    def _arrays(cls) -> list[str]:
        return [field.name for field in fields(cls.value_type)]


_Made = TypeVar("_Made")


def parsed(kind: type[_Made], tree: object) -> _Made:
    """A dataclass from its JSON, checked. Raises ValueError in one line."""
    try:
        made: _Made = _adapter(kind).validate_python(tree)  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _text(key: Any) -> str:
    return json.dumps(asdict(key), sort_keys=True)


def digest(key: Any) -> str:
    """16 hexadecimal digits, equal for equal keys, for the names of files."""
    return hashlib.sha256(_text(key).encode()).hexdigest()[:16]


def stem_of(*parts: object, flip: bool, precision: str, hashes: Iterable[str]) -> str:
    """A stem from parts of a key: only what departs from mirror images and fp32 is named."""
    departures = [*([] if flip else ["noflip"]), *([] if precision == "fp32" else [precision])]
    return "-".join(map(str, [*parts, *departures, *(one[:12] for one in hashes)]))


def write_arrays(file: Path, **arrays: NDArray[Any]) -> None:
    """Writes all or nothing: a file with its final name is complete."""
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def read_arrays(file: Path, *names: str) -> Arrays:
    """Reads what :func:`write_arrays` wrote: all of it, or those of these arrays that are there and no byte of others.

    Raises UserError.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in names or content.files if name in content}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from None


@dataclass(frozen=True)
class ArrayHeader:
    """What a stored file says of one of its arrays, without its contents."""

    shape: tuple[int, ...]
    by_column: bool
    """Whether it lies in the file in NumPy's Fortran order."""
    dtype: np.dtype[Any]
    checksum: int
    """CRC-32 of the contents."""


def array_header(file: Path, name: str) -> ArrayHeader:
    """Reads some hundred bytes of a stored file. Raises UserError."""
    with _open_array(file, name) as (header, _):
        return header


def array_rows(file: Path, name: str, rows: int) -> Iterator[NDArray[Any]]:
    """The rows of a stored array, at most so many at a time; its checksum is compared at the end. Raises UserError."""
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
