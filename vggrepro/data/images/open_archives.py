"""Keeps archives open for reading, because opening files is slow on network file systems."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar

from vggrepro.data.decode import BadImageError, patiently, read_at

_MOST_OPEN = 256


class OpenArchives:
    """Archives of which the most recently read stay open: 256, or a quarter of the file descriptors, per process."""

    # No lock is needed: each operation on an ordered dictionary is atomic.
    _open: ClassVar[OrderedDict[tuple[int, str], _File]] = OrderedDict()

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = frozenset(paths)

    def __reduce__(self) -> tuple[type[OpenArchives], tuple[Sequence[str]]]:
        return OpenArchives, (tuple(self._paths),)  # another process opens the files itself

    def is_archive(self, container: str) -> bool:
        """Whether a container is among the archives."""
        return container in self._paths

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Reads bytes of an archive. Raises BadImageError if it is too short, UserError if it cannot be read."""
        encoded = patiently(path, partial(self._read, path, offset, length), archive=True)
        if len(encoded) < length:
            raise BadImageError("the archive ends early")
        return encoded

    def _read(self, path: str, offset: int, length: int) -> bytes:
        key = (id(self), path)
        try:
            try:
                file = self._open[key]
                self._open.move_to_end(key)
            except KeyError:
                file = self._opened(key)
            return read_at(file.number, offset, length, length)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._open.clear()
            self._open.pop(key, None)  # a stale handle can be opened again
            raise

    def _opened(self, key: tuple[int, str]) -> _File:
        file = self._open[key] = _File(os.open(key[1], os.O_RDONLY))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, limit // 4))
        with suppress(KeyError):  # another thread has closed all files
            while len(self._open) > most:
                self._open.popitem(last=False)
        return file

    def __del__(self) -> None:
        for path in self._paths:
            self._open.pop((id(self), path), None)


class _File:
    """An open file, which is closed after the last thread has read it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
