"""Atomic writes, locks between processes, and checks that a folder is writable."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a hidden file with the same suffix beside `file` for the block to write; it then replaces `file`.

    Creates missing folders, and flushes the file to disk before replacing. After an exception or a crash, `file` is
    unchanged. Raises OSError.
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
    """Returns the reason why no file can be created in a folder, which need not exist, or None."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        return None
    read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
    return os.strerror(errno.ENOTDIR if not existing.is_dir() else errno.EROFS if read_only else errno.EACCES)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Runs the block in one process at a time, unless the lock file cannot be locked; creates missing folders."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        yield
