"""Who may write to a run directory: the attempt that took it over last.

On a cluster an attempt can outlive its replacement being started: its machine lost the network, was declared dead, and
came back. The launcher names each attempt in the environment and takes the run directory over for it; whatever writes
there asks whether it still may. A process that no launcher named holds no lease and is not asked for one.
"""

import json
import os
import time
from pathlib import Path

from vggrepro.files import replacing

VARIABLE = "VGGREPRO_ATTEMPT"
"""Environment variable with the name of the attempt that this process belongs to."""
LOST_STATUS = 77
"""Exit status of an attempt that another one has replaced."""

_FILE = "lease.json"


class LeaseLost(Exception):
    """Another attempt has taken the run directory over; this one must not write there any more."""


def holder(directory: Path) -> str | None:
    """The attempt that took the directory over last, or None."""
    try:
        return json.loads((directory / _FILE).read_bytes())["attempt"]
    except FileNotFoundError:
        return None


def take(directory: Path, attempt: str) -> None:
    """Takes the directory over, whoever has it."""
    with replacing(directory / _FILE) as temporary:
        temporary.write_text(json.dumps({"attempt": attempt, "time": time.time()}) + "\n")


def require(directory: Path) -> None:
    """Raises LeaseLost when this process belongs to an attempt that another one has replaced."""
    mine = os.environ.get(VARIABLE)
    if mine and (other := holder(directory)) not in (mine, None):
        raise LeaseLost(f"{directory} was taken over by attempt {other}; attempt {mine} leaves it alone")
