"""One line of what `vggrepro doctor` finds."""

import subprocess
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def version_numbers(version: str) -> tuple[int, ...]:
    """2.10.1+cu128 as (2, 10, 1)."""
    parts = version.partition("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def output_of(command: list[str]) -> str | None:
    """What a command prints; None where it fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
