"""Files that are whole or not there, locks between processes, and places that cannot be written to."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A hidden file of the same ending beside `file`, for the block to write; in the end it takes the place of `file`.

    Missing folders are made. The file is flushed to the disk before. After an exception, or a crash, what was there
    before stays. Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{uuid.uuid4().hex}{file.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def why_unwritable(folder: Path) -> str | None:
    """What keeps files from being made in a folder, which need not be there yet; None where nothing does."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if os.access(there, os.W_OK | os.X_OK) and there.is_dir():
        return None
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    return os.strerror(errno.ENOTDIR if not there.is_dir() else errno.EROFS if read_only else errno.EACCES)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Runs the block in one process at a time, by a lock file; without it where that cannot be written or locked.

    Missing folders are made.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        yield
