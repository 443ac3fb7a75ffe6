"""Running stages, in this process or by the real command, and comparing what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vggrepro import checkpoint, pipeline
from vggrepro.config import load_stage
from vggrepro.tracking import RunDirectory

CLASSES = ("ant", "bee", "cat")
BATCH = 8


def train_here(file: Path, *changes: str) -> RunDirectory:
    """Trains a stage in this process, as `vggrepro train` does."""
    torch.set_num_threads(1)
    stage, parent = load_stage(file, changes)
    with pipeline.session([stage]) as at:
        pipeline.train_stage(stage, parent, at)
    return RunDirectory(stage.directory)


def command(file: Path, *changes: str, ranks: int = 1) -> list[str]:
    """The command line of `vggrepro train`, under torchrun where there are several ranks."""
    python = [sys.executable, "-m"]
    if ranks > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    arguments = [part for change in changes for part in ("--set", change)]
    return [*python, "vggrepro", "train", "--config", str(file), *arguments]


def environment(**more: str) -> dict[str, str]:
    """One thread, and no launcher's variables of the test's own surroundings."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    return inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def train_command(file: Path, *changes: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs the real command to its end."""
    line = command(file, *changes, ranks=ranks)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def losses(run: RunDirectory) -> list[float]:
    """The loss curve, one value a log line."""
    return [record["loss"] for record in run.records("train")]


def course(run: RunDirectory) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    clock = {"time", "images_per_s", "images_per_s_without_wait", "data_wait", "mfu", "memory_gib", "seconds_left"}
    return [{key: item for key, item in record.items() if key not in clock} for record in run.records()]


def assert_same_state(ours: checkpoint.Checkpoint, theirs: checkpoint.Checkpoint) -> None:
    """Weights, momentum and schedule, bit for bit."""
    assert ours.step == theirs.step
    assert list(ours.weights) == list(theirs.weights)
    for name, tensor in ours.weights.items():
        assert torch.equal(tensor, theirs.weights[name]), name
    assert ours.training.keys() == theirs.training.keys()
    for name, tensor in ours.training.get("momentum", {}).items():
        assert torch.equal(tensor, theirs.training["momentum"][name]), name
    assert ours.training.get("state") == theirs.training.get("state")
