"""One line of what `vggrepro doctor` finds."""

import subprocess
from dataclasses import dataclass
from typing import Literal

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def output_of(command: list[str]) -> str | None:
    """What a command prints; None where it fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
