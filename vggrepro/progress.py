"""What a person sees while something runs: a bar on a terminal, plain lines anywhere else. On standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Update = Callable[[int, str], None]
_SECONDS_BETWEEN_LINES = 5.0


def echo(line: str) -> None:
    """One line to the user; lost where standard error does not take it, as on a full disk."""
    with suppress(OSError):  # of a process that decodes images: where commands begin, `make_ready` sees to the rest
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A length of time in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def progress(title: str, total: int | None, *, shown: bool = True) -> Iterator[Update]:
    """Yields `update(done, note)`; on a terminal it moves a bar, elsewhere it prints a line every few seconds.

    `total` is None where it is not known beforehand.
    """
    if not shown:
        yield lambda done, note: None
    elif sys.stderr.isatty():
        with _bar(title, total) as update:
            yield update
    else:
        yield _lines(title, total)


def _lines(title: str, total: int | None) -> Update:
    last = time.monotonic()

    def update(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            echo(f"{title} {done}{f'/{total}' if total else ''} {note}".rstrip())

    return update


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
