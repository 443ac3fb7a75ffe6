"""Helpers that run stages in this process, in forked processes with faults, or by the command, and compare runs."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from forks import forks, set_up_fork
from programs import free_port, rank_variables

from vggrepro.config.recipes import load_stage
from vggrepro.errors import run_command
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import train_stage
from vggrepro.ranks.watch import Watch
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import final_file

CLASSES = ("ant", "bee", "cat")
StageFile = Callable[..., Path]
"""Type of the fixture `stage_file`."""
BATCH = 8


def write_stage(folder: Path, images: Path, name: str = "A", **sections: dict[str, Any]) -> Path:
    """Writes a stage file for a tiny net; keyword arguments replace or add settings, section by section."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": name, "experiment": "test", "root": str(folder / "runs"), "device": "cpu", "seed": 3},
        "model": {"net": "A", "classes": len(CLASSES), "crop": 32, "width": 0.0625, "init": "kaiming"},
        "data": {"root": str(images), "S": 34, "backend": "torchvision", "workers": 1},
        "train": {"batch": BATCH, "iterations": 12, "log_every": 1, "checkpoint_every": 4, "keep": 100},
        "evaluation": {"single_Q": [34], "multi_Q": [34], "batch": 8},
        "tracking": {"mlflow": False},
    }
    for section, settings in sections.items():
        tree[section] = tree.get(section, {}) | settings
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def train_here(file: Path, *changes: str, force: bool = False, stop_after_s: float | None = None) -> RunDirectory:
    """Trains a stage in this process like `vggrepro train`."""
    torch.set_num_threads(1)
    stage, parent = load_stage(file, changes)
    with open_session([stage], stop_after_s=stop_after_s) as session:
        train_stage(stage, parent, session, force=force)
    return RunDirectory(stage.directory)


@dataclass(frozen=True)
class Fault:
    """Signal that a rank sends itself before it does something for the nth time; None: it hangs."""

    doing: str
    """Argument of `Watch.beat`: "step 8" (seven are done) or "validation"."""
    signal: signal.Signals | None
    count: int = 1
    rank: int = 0


class Ranks:
    """Run on ranks that are separate processes and process groups, until `join`.

    With `parents`, ranks may have child processes, and the end of the tests waits for them.
    """

    def __init__(
        self, file: Path, *changes: str, world: int = 1, fault: Fault | None = None, parents: bool = False
    ) -> None:
        port = free_port()
        self._texts = [file.with_name(f"{file.stem}-{time.monotonic_ns()}-rank{rank}.txt") for rank in range(world)]
        self.processes: list[BaseProcess] = []
        for rank, text in enumerate(self._texts):
            arguments = (file, changes, rank, world, port, fault, text)
            self.processes.append(forks.Process(target=_rank_main, args=arguments, daemon=not parents))
            self.processes[-1].start()

    def join(self, timeout_s: float = 60) -> list[int | None]:
        """Returns the exit statuses: negative signal numbers for killed processes, None for running ones."""
        until = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """Kills the running processes."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()

    def text(self, rank: int = 0) -> str:
        """Returns the output of a rank."""
        return self._texts[rank].read_text(encoding="utf-8") if self._texts[rank].exists() else ""

    def wait_for(self, words: str, rank: int = 0, timeout_s: float = 60) -> None:
        """Waits until the output of a rank contains some text."""
        until = time.monotonic() + timeout_s
        while words not in self.text(rank):
            assert time.monotonic() < until, f"no {words!r} in: {self.text(rank)}"
            time.sleep(0.02)


def _rank_main(
    file: Path, changes: Sequence[str], rank: int, world: int, port: int, fault: Fault | None, text: Path
) -> None:
    torch.set_num_threads(1)
    set_up_fork()
    os.setsid()
    log = os.open(text, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # the fork server's own object may be closed
    sys.stdout = sys.stderr
    if world > 1:
        os.environ.update(rank_variables(rank, world, port))
    if fault and fault.rank == rank:
        _arm(fault)
    run_command("vggrepro", lambda: train_here(file, *changes))


def _arm(fault: Fault) -> None:
    beat, seen = Watch.beat, 0

    def faulty(self: Watch, doing: str) -> bool:
        nonlocal seen
        seen += doing == fault.doing
        if doing == fault.doing and seen == fault.count:
            if fault.signal is None:
                time.sleep(3600)
            os.kill(os.getpid(), fault.signal)
            if fault.signal != signal.SIGSTOP:
                time.sleep(0.2)  # until the thread has heard it, so that the test is the same each time
        return beat(self, doing)

    Watch.beat = faulty  # type: ignore[method-assign]


def run_to_the_end(file: Path, *changes: str, world: int = 1) -> None:
    """Resumes a run, and checks that it finishes."""
    ranks = Ranks(file, *changes, world=world)
    assert ranks.join(120) == [0] * world, ranks.text()


def run_of(file: Path) -> RunDirectory:
    """Returns the run directory of a stage file."""
    return RunDirectory(load_stage(file)[0].directory)


def final(run: RunDirectory) -> checkpoint.Checkpoint:
    """Loads the final checkpoint of a run."""
    return checkpoint.load(final_file(run.path))


def last(run: RunDirectory) -> checkpoint.Checkpoint:
    """Loads the newest checkpoint, with momentum and schedule."""
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    return newest


def losses(run: RunDirectory) -> list[float]:
    """Returns the losses of the log lines."""
    return [record["loss"] for record in run.records("train")]


def course(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the metrics without those that depend on time or memory."""
    clock = {"time", "images_per_s", "images_per_s_without_wait", "data_wait", "mfu", "memory_gib", "seconds_left"}
    return [{key: item for key, item in record.items() if key not in clock} for record in run.records()]


def assert_same_course(ours: RunDirectory, theirs: RunDirectory) -> None:
    """Compares metrics, weights, momentum and schedule bit by bit."""
    assert course(ours) == course(theirs)
    _assert_same_state(final(ours), final(theirs))
    _assert_same_state(last(ours), last(theirs))


def _assert_same_state(ours: checkpoint.Checkpoint, theirs: checkpoint.Checkpoint) -> None:
    assert ours.step == theirs.step
    assert list(ours.weights) == list(theirs.weights)
    for name, tensor in ours.weights.items():
        assert torch.equal(tensor, theirs.weights[name]), name
    assert ours.training.keys() == theirs.training.keys()
    for name, tensor in ours.training.get("momentum", {}).items():
        assert torch.equal(tensor, theirs.training["momentum"][name]), name
    assert ours.training.get("state") == theirs.training.get("state")
