"""Images that were found, in columns: some 70 bytes each for a million of them, where tuples of Python's take 700."""

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

_AT_ONCE = 4096  # members that there are while all are gone through
_ANY_BYTES = "surrogateescape"  # names of files need not be UTF-8


class Texts:
    """Texts, one behind the other in one buffer."""

    def __init__(self) -> None:
        self._buffer, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Adds one."""
        self._buffer += text.encode(errors=_ANY_BYTES)
        self._ends.append(len(self._buffer))

    def __getitem__(self, number: int) -> str:
        return self._buffer[self._ends[number] : self._ends[number + 1]].decode(errors=_ANY_BYTES)

    def column(self) -> pa.LargeBinaryArray:
        """All of them without copying, after which none can be added."""
        import pyarrow as pa

        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._buffer)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._ends) - 1, buffers)


@dataclass(frozen=True)
class Members:
    """Members, each of which is made when it is looked at. Arrays are (images,)."""

    split: NDArray[np.int8]
    """Places in SPLITS."""
    class_name: NDArray[np.int32]
    classes: Sequence[str]
    """What `class_name` numbers, each once; some may have no images."""
    container: NDArray[np.int32]
    containers: Sequence[tuple[str, bool]]
    """What `container` numbers, and whether it is an archive."""
    name: pa.LargeBinaryArray
    offset: Ints
    length: Ints
    mtime_ns: Ints

    @classmethod
    def of(cls, members: Iterable[Member]) -> Members:
        """All that an iterable gives."""
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
        """The members of the rows first to last - 1, as far as there are some."""
        rows = slice(first, last)
        codes = (self.split, self.class_name, self.container, self.offset, self.length, self.mtime_ns)
        columns = zip(self.name[rows].to_pylist(), *(column[rows].tolist() for column in codes), strict=True)
        found = []
        for name, split, class_name, container, offset, length, mtime_ns in columns:
            place, is_archive = self.containers[container]
            text = name.decode(errors=_ANY_BYTES)
            image = Member(SPLITS[split], self.classes[class_name], place, text, offset, length, is_archive, mtime_ns)
            found.append(image)
        return found

    def __iter__(self) -> Iterator[Member]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self.part(first, first + _AT_ONCE)

    def take(self, rows: NDArray[Any]) -> Members:
        """Some of the members, in that order."""
        names = ("split", "class_name", "container", "offset", "length", "mtime_ns")
        return replace(
            self, name=self.name.take(column_of(rows)), **{name: getattr(self, name)[rows] for name in names}
        )

    def rows_of(self, split: str, classes: Iterable[str] | None = None) -> Ints:
        """The rows of a split; of some classes only, where they are given."""
        found = self.split == SPLITS.index(split)
        if classes is not None:
            wanted = set(classes)
            found &= np.array([name in wanted for name in self.classes], np.bool_)[self.class_name]
        return np.flatnonzero(found)

    def names_are_text(self) -> bool:
        """Whether all names, of classes and containers, too, are UTF-8 without zeros."""
        import pyarrow as pa
        import pyarrow.compute as pc

        few = [name[1:] for name in (*self.classes, *(place for place, _ in self.containers))]  # may be NUMBERED
        try:
            self.name.cast(pa.large_string())
            "".join(few).encode()
        except (pa.ArrowInvalid, UnicodeEncodeError):
            return False
        return "\0" not in "".join(few) and not pc.any(pc.match_substring(self.name, "\0")).as_py()

    def class_names(self, split: str | None = None) -> set[str]:
        """The classes that images are of, all or those of a split."""
        codes = self.class_name if split is None else self.class_name[self.rows_of(split)]
        return {self.classes[code] for code in np.bincount(codes).nonzero()[0].tolist()}

    def with_class_names(self, names: Mapping[str, str]) -> Members:
        """The members, those of some classes with other names for them."""
        classes: dict[str, int] = {}
        codes = [classes.setdefault(names.get(name, name), len(classes)) for name in self.classes]
        return replace(self, class_name=np.array(codes, np.int32)[self.class_name], classes=list(classes))

    def with_classes_of(self, rows: Ints, names: Iterable[str]) -> Members:
        """The members, those of some rows with the names that are given for them."""
        classes = {name: code for code, name in enumerate(self.classes)}
        codes = self.class_name.copy()
        codes[rows] = [classes.setdefault(name, len(classes)) for name in names]
        return replace(self, class_name=codes, classes=list(classes))


def column_of(values: NDArray[Any]) -> pa.Array:
    """Numbers as a column, without copying where they lie one behind the other."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def in_order(codes: NDArray[Any]) -> Ints:
    """Every code once, by where it comes first."""
    present, first = np.unique(codes, return_index=True)
    return present[np.argsort(first)]
