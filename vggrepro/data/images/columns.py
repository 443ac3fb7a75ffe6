"""Stores found images in columns: some 70 bytes per image, a tenth of what tuples take."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.archive_members import SPLITS, Member
from vggrepro.data.views import Ints

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 4096  # members created at a time during an iteration
_ANY_BYTES = "surrogateescape"  # file names need not be UTF-8


class Texts:
    """A list of texts in a single buffer."""

    def __init__(self) -> None:
        self._buffer, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Appends a text."""
        self._buffer += text.encode(errors=_ANY_BYTES)
        self._ends.append(len(self._buffer))

    def __getitem__(self, number: int) -> str:
        return self._buffer[self._ends[number] : self._ends[number + 1]].decode(errors=_ANY_BYTES)

    def column(self) -> pa.LargeBinaryArray:
        """Returns all texts without copying; afterwards no text can be appended."""
        import pyarrow as pa

        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._buffer)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._ends) - 1, buffers)


@dataclass(frozen=True)
class Members:
    """Members in columns, shape (images,); a `Member` is created when it is accessed."""

    split: NDArray[np.int8]
    """Positions in SPLITS."""
    class_name: NDArray[np.int32]
    """Positions in `classes`."""
    classes: Sequence[str]
    """Distinct names; some may have no images."""
    container: NDArray[np.int32]
    """Positions in `containers`."""
    containers: Sequence[tuple[str, bool]]
    """Distinct paths, and whether they are archives."""
    name: pa.LargeBinaryArray
    offset: Ints
    length: Ints
    mtime_ns: Ints

    @classmethod
    def of(cls, members: Iterable[Member]) -> Members:
        """Collects the members of an iterable."""
        split, class_name, container, offset, length, mtime_ns = (array(code) for code in "biiqqq")
        classes: dict[str, int] = {}
        containers: dict[tuple[str, bool], int] = {}
        names = Texts()
        for member in members:
            split.append(SPLITS.index(member.split))
            class_name.append(classes.setdefault(member.class_name, len(classes)))
            container.append(containers.setdefault((member.container, member.archive), len(containers)))
            names.append(member.name)
            offset.append(member.offset)
            length.append(member.length)
            mtime_ns.append(member.mtime_ns)
        return cls(
            np.asarray(split),
            np.asarray(class_name),
            list(classes),
            np.asarray(container),
            list(containers),
            names.column(),
            *map(np.asarray, (offset, length, mtime_ns)),
        )

    def __len__(self) -> int:
        return len(self.split)

    def part(self, first: int, last: int) -> list[Member]:
        """Returns the members of the rows first to last - 1, or up to the end."""
        rows = slice(first, last)
        codes = (self.split, self.class_name, self.container, self.offset, self.length, self.mtime_ns)
        columns = zip(self.name[rows].to_pylist(), *(column[rows].tolist() for column in codes), strict=True)
        members = []
        for name, split, class_name, container, offset, length, mtime_ns in columns:
            place, is_archive = self.containers[container]
            text = name.decode(errors=_ANY_BYTES)
            member = Member(SPLITS[split], self.classes[class_name], place, text, offset, length, is_archive, mtime_ns)
            members.append(member)
        return members

    def __iter__(self) -> Iterator[Member]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self.part(first, first + _AT_ONCE)

    def take(self, rows: NDArray[Any]) -> Members:
        """Selects members by row, in the given order."""
        columns = ("split", "class_name", "container", "offset", "length", "mtime_ns")
        taken = {column: getattr(self, column)[rows] for column in columns}
        return replace(self, name=self.name.take(column_of(rows)), **taken)

    def rows_of(self, split: str, classes: Iterable[str] | None = None) -> Ints:
        """Finds the rows of a split, optionally those of some classes only."""
        found = self.split == SPLITS.index(split)
        if classes is not None:
            wanted = set(classes)
            found &= np.array([name in wanted for name in self.classes], np.bool_)[self.class_name]
        return np.flatnonzero(found)

    def class_names(self, split: str | None = None) -> set[str]:
        """Returns the classes that have images, in a split or in all."""
        codes = self.class_name if split is None else self.class_name[self.rows_of(split)]
        return {self.classes[code] for code in np.bincount(codes).nonzero()[0].tolist()}

    def with_class_names(self, names: Mapping[str, str]) -> Members:
        """Renames classes."""
        classes: dict[str, int] = {}
        codes = [classes.setdefault(names.get(name, name), len(classes)) for name in self.classes]
        return replace(self, class_name=np.array(codes, np.int32)[self.class_name], classes=list(classes))

    def with_classes_of(self, rows: Ints, names: Iterable[str]) -> Members:
        """Sets the classes of some rows."""
        classes = {name: code for code, name in enumerate(self.classes)}
        codes = self.class_name.copy()
        codes[rows] = [classes.setdefault(name, len(classes)) for name in names]
        return replace(self, class_name=codes, classes=list(classes))


def column_of(values: NDArray[Any]) -> pa.Array:
    """Converts numbers to an Arrow array, without a copy if they are contiguous."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def in_order(codes: NDArray[Any]) -> Ints:
    """Returns the distinct codes in the order of first occurrence."""
    present, first = np.unique(codes, return_index=True)
    return present[np.argsort(first)]
