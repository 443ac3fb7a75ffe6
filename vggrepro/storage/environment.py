"""Environment of a run: versions, machine, command, and the commit of the code."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

PATIENCE_S = 10.0
"""Maximum time for the response of another program or a server."""


def environment() -> dict[str, str | int | bool | None]:
    """Collects versions, platform, CPUs of this process, command line and commit, which may affect a run's numbers.

    A package that is not installed is None, as are ``git_commit`` and ``git_dirty`` if the code is not a checkout.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **{name: installed(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "dali": installed("nvidia-dali-cuda130") or installed("nvidia-dali-cuda120"),
        **_commit(),
        "command": shlex.join(sys.orig_argv),
    }


def installed(package: str) -> str | None:
    """Returns the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_folders(command: str) -> str:
    """Shortens the absolute paths in a command line to their last part, because folders are private."""
    short = re.sub(r"(?<![\w.~:/])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", command)
    return re.sub(r"^python[\d.]* (?=vggrepro )", "", short)  # the console script as it was typed


def _commit() -> dict[str, str | bool | None]:
    root = Path(__file__).resolve().parents[2]
    if (snapshot := root / "commit.json").exists():  # beside the copy of the code that a job runs
        return json.loads(snapshot.read_bytes())
    commit = changes = None
    if (root / ".git").exists():  # otherwise an installed package would report a checkout around its environment
        git = ("git", "--no-optional-locks", "-C", str(root))
        commit = output_of(*git, "rev-parse", "HEAD")
        changes = output_of(*git, "status", "--porcelain", "--untracked-files=no")  # ignores runs and exports
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def output_of(*command: str) -> str | None:
    """Returns the standard output of a command, or None if it fails or times out."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
