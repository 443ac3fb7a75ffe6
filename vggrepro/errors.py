"""Exceptions for mistakes of the user and for requests to stop, and the start and end of a command."""

import atexit
import errno
import getpass
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn


def printable(text: str) -> str:
    """Escapes line breaks and control characters, which text from users and files may contain."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """Mistake in a setting, a file or a command.

    The text is one line: the thing, the value and the remedy. The command line prints it and exits with status 2,
    without a traceback. Use ``assert`` for errors that only this program can cause.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Interrupted(Exception):
    """Raised on all ranks at the same point after a request to stop; the text is the reason."""


INTERRUPTED_STATUS = 75
"""Exit status of an interrupted run (EX_TEMPFAIL of sysexits.h), which the same command resumes."""

_FILE_SYSTEM_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENOSPC, errno.EDQUOT),
}
"""Errors of a file system that no program can prevent: permissions, names, space."""

MACHINE_REMEDIES = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "end some programs, or have fs.file-max raised",
    errno.EAGAIN: "raise `ulimit -u`, or --pids-limit in a container",
    errno.ENOMEM: "free some memory, or lower data.workers, data.processes or evaluation.batch",
    errno.EIO: "a disk or file server is failing: see `dmesg`, or choose another location",
    errno.ESTALE: "the file server has lost it: remount it, or choose another location",
    errno.ENOSPC: "free some space on the disk of run.root, in /tmp or in /dev/shm",
    errno.EDQUOT: "free some space, or have the quota raised",
}
"""Remedies for errors of the machine, which mostly name no file."""

_OUTPUT = "standard output"

HOME_PREFIX = "vggrepro-home-"
"""Prefix of the temporary home folder of a user without a home."""

_FIRST_RANK_DELAY_S = 5.0
"""Seconds for which other ranks wait for the first rank to report a mistake."""


def ending_of(status: int) -> str:
    """Describes the end of a process by its return code: "was killed by SIGKILL" (-9), "ended with status 3"."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def reason_of(error: Exception, most: int | None = None) -> str:
    """Returns the first line of an error's text, at most `most` characters, or its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


class _Stream(io.FileIO):
    """Standard stream whose write errors are ignored, or with `fails` are raised once."""

    def __init__(self, number: int, *, fails: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._fails = fails

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            if not self._fails:
                return len(data)
            self._fails = False  # Python writes again at exit, where the error can no longer be one line
            error.filename = _OUTPUT
            raise
        return written


def make_ready(*logs: str) -> None:
    """Supplies open standard streams, a home folder and a user name; write errors of the streams `logs` are ignored."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed: the next open file would get its number, and the output of C code
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # not replaced already, as in tests
            raw = io.BufferedWriter(_Stream(stream.fileno(), fails=name not in logs))
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=lines))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user ID without a name
        os.environ["USER"] = str(os.getuid())
    if os.path.expanduser("~") == "~":  # MLflow cannot be imported without a home
        with suppress(OSError):  # most commands work without a home
            os.environ["HOME"] = home = tempfile.mkdtemp(prefix=HOME_PREFIX)
            atexit.register(shutil.rmtree, home, ignore_errors=True)


def run_command(name: str, command: Callable[[], None]) -> None:
    """Runs a command-line program; a UserError ends it with one line on standard error and status 2.

    Errors of the file system or the machine, such as a full disk, end it in the same way; Interrupted ends it with
    status 75. The first rank reports a mistake of all ranks; another rank reports its mistake a few seconds later.
    """
    make_ready("stderr")
    text = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
    rank = int(text) if text.isdecimal() else 0  # the command reports a rank that is not a number
    try:
        _run(name, rank, command)
    except BaseException as error:
        distributed = sys.modules.get("torch.distributed")  # some commands do not import it
        if distributed and distributed.is_initialized():
            _leave(error)
        raise


def run_app(name: str, app: Callable[..., Any]) -> None:
    """Runs a typer program as :func:`run_command` does; usage errors are one line as well."""
    run_command(name, lambda: _call_app(name, app))


def _call_app(name: str, app: Callable[..., Any]) -> NoReturn:
    import typer

    usage_error: Any = typer.BadParameter.__mro__[1]  # of click, or of the copy of click in newer versions of typer
    try:
        status = app(standalone_mode=False, prog_name=name) or 0
        sys.stdout.flush()  # an error of the flush at Python's exit could not be one line
        sys.exit(status)
    except usage_error as error:
        text = error.format_message().strip().removesuffix(".").replace("Value error, ", "")
        if type(error).__name__ == "NoArgsIsHelpError":  # rich has printed the help, click has not
            typer.echo(text, err=True, nl=bool(text))
            sys.exit(error.exit_code)
        faults = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []  # pydantic's omit the value
        text += "".join(f", not {value}" for fault in faults if (value := repr(fault["input"])) not in text)
        command = error.ctx.command_path if error.ctx else name
        raise UserError(f"{text}{'' if text[-1] == '?' else ';'} see `{command} --help`") from None


def _run(name: str, rank: int, command: Callable[[], None]) -> None:
    try:
        command()
    except UserError as error:
        _end(name, rank, error)
    except OSError as error:
        if error.filename == _OUTPUT and error.errno == errno.EPIPE:
            sys.exit(1)  # the reader has closed the pipe, as `| head` does
        file_fault = error.filename and (error.filename == _OUTPUT or error.errno in _FILE_SYSTEM_ERRORS)
        remedy = "write elsewhere, or remove the cause" if file_fault else MACHINE_REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        _end(name, rank, UserError(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}; {remedy}"))
    except Interrupted as stop:
        if not rank:
            print(f"{name}: stopped ({stop}); run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)


def _end(name: str, rank: int, error: UserError) -> NoReturn:
    if rank:
        # Every rank finds most mistakes, and the launcher ends all ranks when one exits. So another rank waits for the
        # first rank's report, which also ends the wait.
        time.sleep(_FIRST_RANK_DELAY_S)
    print(f"{name}: rank {rank}: {error}" if rank else f"{name}: {error}", file=sys.stderr)
    sys.exit(2)


def _leave(error: BaseException) -> NoReturn:
    """Exits as usual, but without shutting down NCCL, which would wait for ranks that no longer respond."""
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif not isinstance(error.code, int):
        print(error.code, file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
