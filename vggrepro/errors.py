"""The exceptions for what a user can cause and for being asked to stop, and how a command begins and ends."""

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
    """Text on one line: what was typed, or read from a file, may hold line breaks and bytes that terminals obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake in a setting, a file or a command.

    Its text is one line: the thing, the value and the remedy. The command line prints it and exits with status 2,
    without a traceback. For what only this program can cause, use ``assert``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Interrupted(Exception):
    """The run was asked to stop, and all ranks have left at the same point; its text is the reason."""


INTERRUPTED_STATUS = 75
"""Exit status of an interrupted run (EX_TEMPFAIL of sysexits.h): the same command goes on where it stopped."""

_OF_THE_FILE_SYSTEM = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENOSPC, errno.EDQUOT),
}
"""What a file system may refuse whatever the program does: permissions, names, space."""

MACHINE_REMEDIES = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "other programs have them open: end some, or have fs.file-max raised",
    errno.EAGAIN: "raise `ulimit -u`, in a container --pids-limit",
    errno.ENOMEM: "free some memory, or ask for less: data.workers, data.processes, evaluation.batch",
    errno.EIO: "a disk or a file server fails: see `dmesg`, or choose another place",
    errno.ESTALE: "its file server has lost it: mount it again, or choose another place",
    errno.ENOSPC: "make room on the disk of run.root, in /tmp or in /dev/shm",
    errno.EDQUOT: "make room, or have the quota raised",
}
"""What the machine may refuse, mostly without naming a file, and the remedy."""

_OUTPUT = "standard output"

HOME_PREFIX = "vggrepro-home-"
"""Of the folder that stands in for the home of a user who has none."""

_FIRST_SPEAKS_S = 5.0
"""How long another rank leaves it to the first to say a mistake."""


def ending_of(status: int) -> str:
    """How a process ended, by its return code: "was killed by SIGKILL" (-9), "ended with status 3"."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def reason_of(error: Exception, most: int | None = None) -> str:
    """The first line of an error's text, or so many characters of it; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


class _Stream(io.FileIO):
    """A standard stream. A log takes everything: what its disk has no room for is lost; other output fails once."""

    def __init__(self, number: int, *, fails: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._fails = fails

    def write(self, data: Any) -> int:
        """Writes what can be written."""
        try:
            written = super().write(data)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            if not self._fails:
                return len(data)
            self._fails = False  # Python tries again when it ends, and then nobody can say it in one line
            error.filename = _OUTPUT
            raise
        return written


def make_ready(*logs: str) -> None:
    """Lets a process go on where its surroundings lack something: open streams, room for `logs`, a home, a user's name.

    `logs` are the standard streams that may lose what is written to them, rather than end the process.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed: the next file to be opened would get its number, and what C prints
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else another one stands there already, as in tests
            raw = io.BufferedWriter(_Stream(stream.fileno(), fails=name not in logs))
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=lines))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # as in a container that is run as some number
        os.environ["USER"] = str(os.getuid())
    if os.path.expanduser("~") == "~":  # MLflow cannot be imported without
        with suppress(OSError):  # where nothing may be written, most commands need none
            os.environ["HOME"] = home = tempfile.mkdtemp(prefix=HOME_PREFIX)
            atexit.register(shutil.rmtree, home, ignore_errors=True)


def run_command(name: str, command: Callable[[], None]) -> None:
    """Runs a command-line program; a UserError ends it with one line on standard error and status 2.

    So does what a file system or the machine refuses: a name too long, a full disk, too many open files. Interrupted
    ends it with status 75. Of several ranks the first speaks; a mistake that only another one has found is said by that
    one, a few seconds later. What cannot be written to standard error is lost, and nothing else.
    """
    make_ready("stderr")
    text = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
    rank = int(text) if text.isdecimal() else 0  # what is no number is a mistake that the command names
    try:
        _run(name, rank, command)
    except BaseException as error:
        distributed = sys.modules.get("torch.distributed")  # not imported for the commands that need none
        if distributed and distributed.is_initialized():
            _leave(error)
        raise


def run_app(name: str, app: Callable[..., Any]) -> None:
    """The same for a program of typer's: words that it cannot read are a mistake like any other, and one line."""
    run_command(name, lambda: _read_words(name, app))


def _read_words(name: str, app: Callable[..., Any]) -> NoReturn:
    import typer

    usage_error: Any = typer.BadParameter.__mro__[1]  # of click, or of the click that newer typers bring along
    try:
        status = app(standalone_mode=False, prog_name=name) or 0
        sys.stdout.flush()  # when Python does so at its end, nobody can say what is wrong with it
        sys.exit(status)
    except usage_error as error:
        said = error.format_message().strip().removesuffix(".").replace("Value error, ", "")
        if type(error).__name__ == "NoArgsIsHelpError":  # no words at all; rich has printed the help, click has not
            typer.echo(said, err=True, nl=bool(said))
            sys.exit(error.exit_code)
        faults = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []  # pydantic's, without the value
        said += "".join(f", not {value}" for fault in faults if (value := repr(fault["input"])) not in said)
        command = error.ctx.command_path if error.ctx else name
        raise UserError(f"{said}{'' if said[-1] == '?' else ';'} `{command} --help` says what it takes") from None


def _run(name: str, rank: int, command: Callable[[], None]) -> None:
    try:
        command()
    except UserError as error:
        _end(name, rank, error)
    except OSError as error:
        if error.filename == _OUTPUT and error.errno == errno.EPIPE:
            sys.exit(1)  # as with `| head`: nobody reads on
        misplaced = error.filename and (error.filename == _OUTPUT or error.errno in _OF_THE_FILE_SYSTEM)
        remedy = "choose another place, or make it fit" if misplaced else MACHINE_REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        _end(name, rank, UserError(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}; {remedy}"))
    except Interrupted as stop:
        if not rank:
            print(f"{name}: stopped ({stop}); the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)


def _end(name: str, rank: int, error: UserError) -> NoReturn:
    if rank:
        # Most mistakes are found by every rank. The launcher ends all of them once one has ended, so this one waits
        # until the first has spoken, which ends the wait; else the mistake is its own.
        time.sleep(_FIRST_SPEAKS_S)
    print(f"{name}: rank {rank}: {error}" if rank else f"{name}: {error}", file=sys.stderr)
    sys.exit(2)


def _leave(error: BaseException) -> NoReturn:
    """Ends a rank that has left its process group standing, as an ordinary exit would but at once.

    An ordinary exit takes NCCL down, which waits for what the other ranks will never answer.
    """
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif not isinstance(error.code, int):
        print(error.code, file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
