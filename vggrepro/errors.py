"""The exceptions for what a user can cause and for being asked to stop, and how a command ends on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in a setting, a file or a command.

    Its text is one line: the thing, the value and the remedy. The command line prints it and exits with status 2,
    without a traceback. For what only this program can cause, use ``assert``.
    """


class Interrupted(Exception):
    """The run was asked to stop, and all ranks have left at the same point; its text is the reason."""


INTERRUPTED_STATUS = 75
"""Exit status of an interrupted run (EX_TEMPFAIL of sysexits.h): the same command goes on where it stopped."""


def run_command(name: str, command: Callable[[], None]) -> None:
    """Runs a command-line program; a UserError ends it with one line on standard error and status 2.

    Interrupted does so with status 75.
    """
    try:
        command()
    except UserError as error:
        if _is_first():  # every rank finds the same mistake
            print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        if _is_first():
            print(f"{name}: stopped ({stop}); the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)


def _is_first() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0
