"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 5.0
_quiet = False
_bar: Progress | None = None
"""The only bar on the screen; lines are printed above it."""


class Update(Protocol):
    """Callback that reports progress."""

    def __call__(self, done: int, note: str | None, *, times: Sequence[str] = (), total: int | None = None) -> None:
        """Shows progress.

        Args:
            done: units of work done.
            note: text about them; with None the bar moves, but no line is printed.
            times: the time left, shown instead of the bar's estimate, and further times.
            total: total units of work, if they were unknown at the beginning.
        """


def _nothing(done: int, note: str | None, *, times: Sequence[str] = (), total: int | None = None) -> None:
    pass


def be_quiet(quiet: bool) -> None:
    """Silences progress and information on standard error in this process, except warnings and errors."""
    global _quiet  # noqa: PLW0603 (standard error belongs to the process as well)
    _quiet = quiet


def echo(line: str) -> None:
    """Prints a line of information, unless silenced by `be_quiet`."""
    if not _quiet:
        warn(line)


def warn(line: str) -> None:
    """Prints a line above the bar; write errors of standard error, such as a full disk, are ignored."""
    with suppress(OSError):  # in processes that decode images; `make_ready` covers those that run commands
        if _bar:
            from rich.text import Text

            _bar.console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Formats a duration: 45 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def progress(
    title: str, total: int | None, *, start: int = 0, shown: bool = True, in_lines: bool = True
) -> Iterator[Update]:
    """Yields an `Update`, which moves a bar on a terminal, and prints a line every few seconds elsewhere.

    Nested progress is a temporary row of the outer bar.

    Args:
        title: name of the work.
        total: units of work; None if unknown.
        start: units done before.
        shown: whether anything is shown.
        in_lines: whether lines are printed if there is no bar.
    """
    if _quiet or not shown:
        yield _nothing
    elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _row(title, total, start) as update:
            yield update
    else:
        yield _lines(title, total) if in_lines else _nothing


def _lines(title: str, total: int | None) -> Update:
    last = time.monotonic()
    known = total

    def update(done: int, note: str | None, *, times: Sequence[str] = (), total: int | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if note is not None and (now - last >= _SECONDS_BETWEEN_LINES or done == known):
            last = now
            words = f"{title} {done}{f'/{known}' if known else ''} {note}"
            echo(f"{words}  {', '.join(times)}" if times else words.rstrip())

    return update


@contextmanager
def _row(title: str, total: int | None, start: int) -> Iterator[Update]:
    """Adds a row to the bar. The first row creates the bar, whose final state remains on the screen."""
    global _bar  # noqa: PLW0603 (there is one screen)
    outer = _bar
    bar = outer or _new_bar()
    task = bar.add_task(f"  {title}" if outer else title, total=total, completed=start, note="", times=())

    def update(done: int, note: str | None, *, times: Sequence[str] = (), total: int | None = None) -> None:
        fields: dict[str, Any] = {} if total is None else {"total": total}
        if note is not None:
            fields |= {"note": "" if note == f"of {total}" else note, "times": times}
        bar.update(task, completed=done, **fields)

    if outer:
        try:
            yield update
        finally:
            bar.remove_task(task)
        return
    with bar:
        _bar = bar
        try:
            yield update
        finally:
            _bar = None
            bar.live.transient = bar.tasks[0].completed == start and bar.tasks[0].total != start  # nothing was done


def _new_bar() -> Progress:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Title(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.description)

    class Pace(ProgressColumn):
        """Column of the time left, with the rate if rich estimates the time."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            if times := task.fields["times"]:
                return Text("" if task.finished else times[0])
            speed, left = task.finished_speed or task.speed, task.time_remaining
            parts = [f"{speed:,.{0 if speed >= 10 else 1}f}/s"] if speed else []
            parts += [f"{duration(left)} left"] if left else []
            return Text(", ".join(parts))

    class TitledBar(Progress):
        """Bar with a row per task, followed by its note, which is truncated on a narrow terminal."""

        def get_renderables(self) -> Iterator[RenderableType]:
            """Yields the table of rows and the notes."""
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                words = "  ".join(part for part in (task.fields["note"], *task.fields["times"][1:]) if part)
                if words:
                    yield Text(f"  {words}", style="dim", no_wrap=True, overflow="ellipsis")

    console = Console(stderr=True)
    fixed = Column(no_wrap=True)
    columns = (
        Title(Column(no_wrap=True, overflow="ellipsis", max_width=max(12, console.width - 52))),
        BarColumn(40, table_column=Column(max_width=40)),
        MofNCompleteColumn(table_column=fixed),
        TimeElapsedColumn(fixed.copy()),
        Pace(fixed.copy()),
    )
    # Results on standard output are not redirected above the bar.
    return TitledBar(*columns, console=console, refresh_per_second=4, redirect_stdout=False)
