"""The one exception for what a user can cause, and how a command ends on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in a setting, a file or a command.

    Its text is one line: the thing, the value and the remedy. The command line prints it and exits with status 2,
    without a traceback. For what only this program can cause, use ``assert``.
    """


def run_command(name: str, command: Callable[[], None]) -> None:
    """Runs a command-line program; a UserError ends it with one line on standard error and status 2."""
    try:
        command()
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:  # every rank finds the same mistake
            print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
