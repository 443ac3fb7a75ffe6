"""How a command ends on a mistake: one line, whoever has found it."""

from pathlib import Path

import pytest
from programs import fork_program, run_program
from tiny import CONFIGS

from vggrepro.errors import UserError, run_command

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
    """What ranks under torchrun say that find a mistake after a delay in seconds; the others have none."""
    program = folder / "program.py"
    program.write_text(COMMAND.format(delays=delays, mistaken=mistaken))
    done = run_program(program, ranks=len(delays))
    assert done.returncode != 0
    return [line for line in done.stderr.splitlines() if line.startswith("vggrepro:")]


def test_the_first_rank_says_it_though_another_one_finds_it_earlier(tmp_path: Path) -> None:
    """torchrun ends all ranks once one has ended."""
    assert lines_of(tmp_path, delays=(2, 0), mistaken=(0, 1)) == ["vggrepro: S=100: below the crop; raise it"]


def test_a_mistake_that_only_another_rank_finds_is_said_by_that_one(tmp_path: Path) -> None:
    assert lines_of(tmp_path, delays=(0, 0), mistaken=(1,)) == ["vggrepro: rank 1: S=100: below the crop; raise it"]


HELD_UP = """
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
    ("error", "status", "said"),
    [
        ("UserError('S=100: raise it')", 2, "vggrepro: S=100: raise it\n"),
        ("Interrupted('SIGTERM')", 75, "vggrepro: stopped (SIGTERM); the same command goes on from there\n"),
        ("ZeroDivisionError('ours')", 1, "ZeroDivisionError: ours\n"),
        ("SystemExit('S is missing')", 1, "S is missing\n"),
        ("SystemExit(76)", 76, ""),
    ],
)
def test_a_rank_that_ends_on_a_mistake_ends_at_once(tmp_path: Path, error: str, status: int, said: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(HELD_UP.format(error=error))
    done = fork_program(program, timeout=50, RANK="0")
    assert (done.returncode, done.stdout) == (status, "said before\n")
    assert done.stderr.endswith(said)
    assert (said == "") == (done.stderr == "")
    assert ("Traceback" in done.stderr) == (status == 1 and "ours" in said)


@pytest.mark.parametrize("rank", ["two", "-1", "1.5", "2"])
def test_a_rank_that_cannot_be_is_a_mistake_like_any_other(rank: str) -> None:
    places = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = fork_program("-m", "vggrepro", "reproduce", "--config", CONFIGS / "demo.yaml", timeout=120, **places)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"RANK={rank}, WORLD_SIZE=2" in done.stderr


def test_what_the_file_system_refuses_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def command() -> None:
        (tmp_path / ("x" * 300)).read_text()

    with pytest.raises(SystemExit) as left:
        run_command("vggrepro", command)
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert "File name too long; choose another place" in said


def test_a_file_that_this_program_lost_is_a_fault_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_command("vggrepro", (tmp_path / "lost").read_text)  # type: ignore[arg-type]


def test_a_message_never_breaks_a_line_or_moves_the_cursor() -> None:
    assert str(UserError("x=a\nb\x1b[2J: no")) == r"x=a\nb\x1b[2J: no"
