"""Commands end mistakes with one line, and supply what their environment lacks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import fork_program, run_program, stream_breaking_code
from tiny import CONFIGS, TWO_STEPS, set_words

from vggrepro.errors import UserError, run_command
from vggrepro.progress import echo

COMMAND = """
import os, time
from vggrepro.errors import UserError, run_command

def command():
    rank = int(os.environ.get("RANK", 0))
    time.sleep({delays}[rank])
    if rank in {mistaken}:
        raise UserError("S=100: below the crop; raise it")
    time.sleep(60)

run_command("vggrepro", command)
"""


def lines_of(folder: Path, delays: tuple[float, ...], mistaken: tuple[int, ...]) -> list[str]:
    """Returns the messages of ranks under torchrun, of which some find a mistake after a delay in seconds."""
    program = folder / "program.py"
    program.write_text(COMMAND.format(delays=delays, mistaken=mistaken))
    done = run_program(program, ranks=len(delays))
    assert done.returncode != 0
    return [line for line in done.stderr.splitlines() if line.startswith("vggrepro:")]


def test_the_first_rank_reports_a_mistake_that_another_rank_finds_earlier(tmp_path: Path) -> None:
    """torchrun ends all ranks once one has ended."""
    assert lines_of(tmp_path, delays=(2, 0), mistaken=(0, 1)) == ["vggrepro: S=100: below the crop; raise it"]


def test_a_mistake_that_only_another_rank_finds_is_reported_by_that_rank(tmp_path: Path) -> None:
    assert lines_of(tmp_path, delays=(0, 0), mistaken=(1,)) == ["vggrepro: rank 1: S=100: below the crop; raise it"]


BLOCKED = """
import atexit, sys, time
from torch import distributed
from vggrepro.errors import Interrupted, UserError, run_command

atexit.register(time.sleep, 60)  # as NCCL may wait for ranks that have gone

def command():
    print("said before")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    raise {error}

run_command("vggrepro", command)
"""


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("UserError('S=100: raise it')", 2, "vggrepro: S=100: raise it\n"),
        ("Interrupted('SIGTERM')", 75, "vggrepro: stopped (SIGTERM); run the same command again to resume\n"),
        ("ZeroDivisionError('ours')", 1, "ZeroDivisionError: ours\n"),
        ("SystemExit('S is missing')", 1, "S is missing\n"),
        ("SystemExit(76)", 76, ""),
    ],
)
def test_a_rank_with_a_mistake_exits_at_once(tmp_path: Path, error: str, status: int, message: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(BLOCKED.format(error=error))
    done = fork_program(program, timeout=50, RANK="0")
    assert (done.returncode, done.stdout) == (status, "said before\n")
    assert done.stderr.endswith(message)
    assert (message == "") == (done.stderr == "")
    assert ("Traceback" in done.stderr) == (status == 1 and "ours" in message)


@pytest.mark.parametrize("rank", ["two", "-1", "1.5", "2"])
def test_an_impossible_rank_is_an_error_of_one_line(rank: str) -> None:
    places = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = fork_program("-m", "vggrepro", "reproduce", "--config", CONFIGS / "demo.yaml", timeout=120, **places)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"RANK={rank}, WORLD_SIZE=2" in done.stderr


def test_errors_of_the_file_system_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def command() -> None:
        (tmp_path / ("x" * 300)).read_text()

    with pytest.raises(SystemExit) as left:
        run_command("vggrepro", command)
    message = capsys.readouterr().err
    assert (left.value.code, message.count("\n")) == (2, 1)
    assert "File name too long; write elsewhere, or remove the cause" in message


def test_a_missing_internal_file_is_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_command("vggrepro", (tmp_path / "lost").read_text)  # type: ignore[arg-type]


def test_messages_have_no_control_characters() -> None:
    assert str(UserError("x=a\nb\x1b[2J: no")) == r"x=a\nb\x1b[2J: no"


@pytest.mark.parametrize(
    ("number", "file", "words"),
    [
        (errno.EMFILE, None, "Too many open files; raise `ulimit -n`"),
        (errno.EMFILE, "x.idx", "x.idx: Too many open files; raise `ulimit -n`"),
        (errno.ENFILE, None, "fs.file-max"),
        (errno.EAGAIN, None, "`ulimit -u`"),
        (errno.ENOMEM, None, "Cannot allocate memory; free some memory"),
        (errno.EIO, None, "`dmesg`"),
        (errno.ESTALE, "x.idx", "x.idx: Stale file handle; the file server has lost it"),
        (errno.ENOSPC, None, "No space left on device; free some space"),
        (errno.ENOSPC, "x.idx", "x.idx: No space left on device; write elsewhere"),
    ],
)
def test_errors_of_the_machine_have_a_remedy(
    capsys: pytest.CaptureFixture[str], number: int, file: str | None, words: str
) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), file)

    with pytest.raises(SystemExit) as left:
        run_command("vggrepro", command)
    line = capsys.readouterr().err
    assert (left.value.code, line.count("\n")) == (2, 1)
    assert words in line


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBADF, None])
def test_other_errors_are_a_traceback(number: int | None) -> None:
    def command() -> None:
        raise OSError(number, "ours")

    with pytest.raises(OSError, match="ours"):
        run_command("vggrepro", command)


# Failing standard streams. Python writes again at exit, so most of these tests need separate processes.

FULL = Path("/dev/full")
"""Behaves like a file on a full disk."""
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="/dev/full does not exist")


@needs_full
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["summary", "summary D --json", "--help", "tables --runs configs"])
def test_an_output_that_cannot_be_written_is_an_error_of_one_line(words: str, buffered: str) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vggrepro", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": buffered},
            check=False,
        )
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2 if "tables" in words else 1), done.stderr
    assert line == "vggrepro: standard output: No space left on device; write elsewhere, or remove the cause"


@pytest.mark.parametrize("words", ["summary", "summary D --json"])
def test_a_closed_pipe_is_not_an_error(words: str) -> None:
    """For example, `| head` closes its pipe."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "vggrepro", *words.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@needs_full
@pytest.mark.parametrize("full", [False, True], ids=["closed", "full"])
@pytest.mark.parametrize("streams", [("stderr",), ("stdout", "stderr")])
def test_training_continues_without_its_standard_streams(
    settings: list[str], tmp_path: Path, streams: tuple[str, ...], full: bool
) -> None:
    """For example, the disk of a job's log is full."""
    program = tmp_path / "program.py"
    program.write_text(f"{stream_breaking_code(*streams, full=full)}\nfrom vggrepro.cli.main import main\nmain()\n")
    prints = "stdout" not in streams
    words = (
        ["reproduce", "--config", CONFIGS / "demo.yaml"] if prints else ["train", "--config", CONFIGS / "vgg_A.yaml"]
    )
    done = fork_program(program, *words, *set_words(*settings, *TWO_STEPS))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").rglob("final.pt"))
    assert ("Table" in done.stdout) == prints
    assert done.stderr == ""


WAYS_TO_SPEAK = """
import logging, sys, traceback, warnings
from rich.console import Console
from rich.progress import track
from vggrepro.errors import run_command
from vggrepro.progress import echo, progress

def command():
    for _ in range(3):
        echo("x" * 9000)
        print("plain", file=sys.stderr)
        print("no end of the line", end="", file=sys.stderr, flush=True)
        sys.stderr.writelines(["several\\n"])
        logging.getLogger("any").warning("a warning")
        logging.basicConfig()
        warnings.warn("another", stacklevel=1)
        with progress("A: training", 1) as update:
            update(1, "")
        Console(stderr=True, force_terminal=True).print("[b]bold[/b]")
        list(track([1, 2], console=Console(stderr=True, force_terminal=True)))
        traceback.print_stack()
    print("done")

run_command("vggrepro", command)
"""


@needs_full
@pytest.mark.parametrize("full", [False, True], ids=["closed", "full"])
def test_a_full_standard_error_is_ignored(tmp_path: Path, full: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(stream_breaking_code("stderr", full=full) + WAYS_TO_SPEAK)
    done = run_program(program)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_replaced_standard_streams_are_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    run_command("vggrepro", lambda: echo("a line"))
    assert sys.stderr is before
    assert capsys.readouterr().err == "a line\n"


HOMELESS = """
import getpass, os, pwd

def nobody(number):
    raise KeyError(number)

pwd.getpwuid = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)

def command():
    from vggrepro.storage.mlflow_run import import_quietly

    import_quietly()
    print(os.environ["HOME"], oct(os.stat(os.environ["HOME"]).st_mode), getpass.getuser())

from vggrepro.errors import run_command
run_command("vggrepro", command)
"""


def test_a_user_without_name_and_home_gets_both(tmp_path: Path) -> None:
    """For example, a container runs as a user ID without a name."""
    program = tmp_path / "program.py"
    program.write_text(HOMELESS)
    done = fork_program(program)
    assert (done.returncode, done.stderr) == (0, "")
    home, mode, name = done.stdout.split()
    assert (mode, name) == ("0o40700", str(os.getuid()))
    assert not Path(home).exists(), "the folder is removed at exit"
