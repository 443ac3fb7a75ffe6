import errno
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Command, run_on_terminal
from screen import screens
from tiny import REPOSITORY, set_words

from vggrepro import progress as module
from vggrepro.progress import be_quiet, duration, echo, progress, warn

CODE = """
from vggrepro.progress import progress
with progress("A: training", 4) as update:
    for done in range(1, 5):
        update(done, f"loss {done}.5")
"""


class Terminal(io.StringIO):
    """Terminal as standard error."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80, **variables: str) -> Terminal:
    """Replaces standard error from now on, because pytest replaces it after fixtures."""
    terminal = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, text in ({"TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"} | variables).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.fixture
def loud() -> Iterator[None]:
    """Restores the output after the test."""
    yield
    be_quiet(False)


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_hidden_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_echo_prints_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_write_errors_of_lines_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    echo("a line")


EPOCH = "E-384-jitter: epoch 1.0  centre-crop top-1 error 89.6 %" + "; and more" * 4
NOTE, TIMES = "loss 2.3028  rate 0.01  848 images/s  waits 11%  MFU 45.3% of 989 TFLOP/s", ("12 h 30 min left", "300 h")


def training() -> None:
    """Shows the progress of a stage."""
    with progress("E-384-jitter: training", 370_000, start=100) as update:
        update(101, NOTE, times=TIMES)
        update(102, None)
        module._bar.refresh()  # type: ignore[union-attr]
        with progress("validation", 500, in_lines=False) as nested:
            nested(250, "")
            module._bar.refresh()  # type: ignore[union-attr]
        echo(EPOCH)


@pytest.mark.parametrize(
    ("columns", "note"), [(80, f"{NOTE}  300 h"[:77] + "…"), (120, f"{NOTE}  300 h"), (60, NOTE[:57] + "…")]
)
def test_the_rows_of_a_terminal(columns: int, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, columns)
    training()
    seen, wrapped = screens(shown.getvalue(), columns)
    assert wrapped == (columns < len(EPOCH)), "that line alone, which is one line where it is copied from"
    row, inner, below = next(screen for screen in seen if "250/500" in screen and screen.endswith(note)).splitlines()
    assert re.fullmatch(r"E-384-jitt(er: training|e…) [━╸╺ ]+ +102/370000 +0:00:00 12 h 30 min left", row)
    assert re.fullmatch(r"  validation? *…? +[━╸╺]+ +250/500 +0:00:00.*", inner)
    assert below == f"  {note}"
    *line, row, below = seen[-1].splitlines()
    assert "".join(line) == EPOCH
    assert "102/370000" in row


def colours(sent: str) -> set[str]:
    return set(re.findall(r"\x1b\[(?:\d+;)*(3\d|9\d)(?:;\d+)*m", sent))


def test_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = terminal(monkeypatch)
    training()
    plain = terminal(monkeypatch, NO_COLOR="1")
    training()
    assert colours(coloured.getvalue())
    assert not colours(plain.getvalue())
    assert "102/370000" in plain.getvalue()


def test_lines_on_a_terminal_without_cursor_control(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, TERM="dumb")
    with progress("A: training", 4) as update:
        update(4, "loss 4.5", times=("1 min left", "2 min with later stages"))
    assert shown.getvalue() == "A: training 4/4 loss 4.5  1 min left, 2 min with later stages\n"


def test_a_bar_moves_without_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0)
    with progress("A", 4) as update:
        update(2, "loss 4.5")
        update(3, None)
        with progress("validation", 2, in_lines=False) as nested:
            nested(2, "")
        update(4, None)
    assert capsys.readouterr().err == "A 2/4 loss 4.5\n"
    shown = terminal(monkeypatch)
    with progress("A", 4) as update:
        update(2, "loss 4.5", times=("5 min left",))
        update(4, None)
    (last, _), *_ = [screens(shown.getvalue(), 80)]
    assert re.fullmatch(r"A ━+ 4/4 0:00:00\n  loss 4.5", last[-1]), "no time is left"


def test_a_bar_without_work_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with progress("reading image headers", None):
        pass
    assert screens(shown.getvalue(), 80)[0][-1] == ""


def test_a_total_that_becomes_known_later(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with progress("looking at images", None) as update:
        update(0, "of 9 found so far")
        update(9, "of 9", total=9)
    assert re.fullmatch(r"looking at images ━+ 9/9 0:00:00.*", screens(shown.getvalue(), 80)[0][-1])


@pytest.mark.usefixtures("loud")
def test_quiet_still_prints_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    be_quiet(True)
    echo("information")
    warn("a number may be wrong")
    with progress("A: training", 1) as update:
        update(1, "")
    assert capsys.readouterr() == ("", "a number may be wrong\n")
    shown = terminal(monkeypatch)
    with progress("A: training", 1) as update:
        update(1, "")
    assert shown.getvalue() == ""


@pytest.mark.usefixtures("loud")
def test_quiet_commands(tmp_path: Path, settings: list[str], command: Command) -> None:
    """They print the same results, and nothing else but mistakes."""
    words = ("--config", "configs/vgg_A.yaml", *set_words(*settings, "train.iterations=2"))
    status, out, err = command("train", *words, "-q")
    assert (status, out, err) == (0, "", "")
    run = tmp_path / "runs" / "paper" / "A-256"
    quiet = command("evaluate", run, "--quiet")
    assert quiet[0] == 0
    assert quiet[2] == ""
    assert command("evaluate", run)[:2] == quiet[:2]
    assert command("train", *words)[2].startswith("A-256: already trained"), "the next command is not quiet"
    assert command("evaluate", tmp_path, "--quiet")[2].startswith("vggrepro: "), "mistakes are said"


def test_training_on_a_terminal(settings: list[str], tmp_path: Path) -> None:
    """The bar moves at each step and includes the validation; complete lines for epochs are above it."""
    steps = ("run.root=runs", "train.iterations=7", "train.log_every=6", "train.validate_every=1")
    words = ("train", "--config", REPOSITORY / "configs" / "vgg_A.yaml", *set_words(*settings, *steps))
    status, sent = run_on_terminal("-m", "vggrepro", *words, columns=80, cwd=tmp_path)
    assert status == 0, sent
    seen, wrapped = screens(sent, 80)
    assert not wrapped
    lines = seen[-1].splitlines()
    assert re.fullmatch(r"A-256: departs from the paper in \d+ settings, see .*", lines[1])
    epochs = [line for line in lines if re.fullmatch(r"A-256: epoch \d\.\d  centre-crop top-1 error [\d.]+ %", line)]
    assert len(epochs) == 3
    assert re.fullmatch(r"A-256: training ━+ 7/7 0:00:\d\d", lines[-2])
    assert re.fullmatch(r"  loss \d\.\d{4}  rate 0.01  \d+ images/s  waits \d+%", lines[-1])
    assert sum("A-256: training" in line for line in lines) == 1
