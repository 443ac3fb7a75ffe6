import errno
import io
import os
import pty
import subprocess
import sys

import pytest

from vggrepro.progress import duration, echo, progress

CODE = """
from vggrepro.progress import progress
with progress("A: training", 4) as update:
    for done in range(1, 5):
        update(done, f"loss {done}.5")
"""


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("A: training", 4) as update:
        for done in range(1, 5):
            update(done, f"loss {done}.5")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "A: training 4/4 loss 4.5\n", "soon after one another, only the last is worth a line"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_unknown_total(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggrepro.progress._SECONDS_BETWEEN_LINES", 0)
    with progress("reading", None) as update:
        update(7, "of 9")
    assert capsys.readouterr().err == "reading 7 of 9\n"


def test_nothing_where_it_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("A: training", 4, shown=False) as update:
        update(4, "")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], stderr=theirs, stdout=subprocess.PIPE, env=environment, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b""
    assert "━" in shown
    assert "4/4" in shown
    assert "loss 4.5" in shown


def test_say_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_a_line_that_a_full_disk_does_not_take_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    echo("a line")
