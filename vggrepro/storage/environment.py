"""What made a run: versions, machine, command, the code's commit."""

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
"""How long another program, or a server, may take to answer."""


def environment() -> dict[str, str | int | bool | None]:
    """What a run's numbers may depend on: versions, platform, CPUs of this process, command line, the code's commit.

    A package that is not installed is None; so are ``git_commit`` and ``git_dirty`` where the code is no checkout.
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
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_folders(command: str) -> str:
    """A command line whose absolute paths are cut to their last part: where they lay is nobody's business."""
    short = re.sub(r"(?<![\w.~:/])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", command)
    return re.sub(r"^python[\d.]* (?=vggrepro )", "", short)  # the console script, as it was typed


def _commit() -> dict[str, str | bool | None]:
    root = Path(__file__).resolve().parents[2]
    if (note := root / "commit.json").exists():  # beside the copy of the code that a job runs
        return json.loads(note.read_bytes())
    commit = changes = None
    if (root / ".git").exists():  # else an installed package would report the checkout around its environment
        git = ("git", "--no-optional-locks", "-C", str(root))
        commit = output_of(*git, "rev-parse", "HEAD")
        changes = output_of(*git, "status", "--porcelain", "--untracked-files=no")  # runs and exports may lie there
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def output_of(*command: str) -> str | None:
    """What a command prints; None where it fails or does not answer in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
