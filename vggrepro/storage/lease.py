"""Lease of a run directory: only the attempt that took it over last may write.

On a cluster, an attempt may still run when its replacement starts, for example if its node lost the network and was
declared dead. The launcher names each attempt in the environment and takes over the run directory for it; writers then
check the lease. Processes that no launcher started need no lease.
"""

import json
import os
import time
from pathlib import Path

from vggrepro.files import replacing

VARIABLE = "VGGREPRO_ATTEMPT"
"""Environment variable with the name of this process's attempt."""
LOST_STATUS = 77
"""Exit status of an attempt that another attempt has replaced."""

_FILE = "lease.json"


class LeaseLost(Exception):
    """Another attempt has taken over the run directory, so this one must no longer write there."""


def holder(directory: Path) -> str | None:
    """Returns the attempt that took over the directory last, or None."""
    try:
        return json.loads((directory / _FILE).read_bytes())["attempt"]
    except FileNotFoundError:
        return None


def take(directory: Path, attempt: str) -> None:
    """Takes over the directory from any other attempt."""
    with replacing(directory / _FILE) as temporary:
        temporary.write_text(json.dumps({"attempt": attempt, "time": time.time()}) + "\n")


def require(directory: Path) -> None:
    """Raises LeaseLost if another attempt has replaced that of this process."""
    attempt = os.environ.get(VARIABLE)
    if attempt and (other := holder(directory)) not in (attempt, None):
        raise LeaseLost(f"{directory} was taken over by attempt {other}; attempt {attempt} leaves it alone")
