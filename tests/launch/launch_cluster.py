"""Experiments on the development cluster: submitted, disturbed, waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import REPOSITORY

from launch.attempt import history
from vggrepro.config.recipes import load_graph
from vggrepro.config.settings import Config
from vggrepro.storage.checkpoint import load
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import final_file

SUBMIT = REPOSITORY / "launch" / "submit.py"
PATIENCE_S = 900
POLL_S = 0.05
ITERATIONS = 120


def settings(images: Path, root: Path) -> dict[str, Any]:
    """A graph A -> D of tiny nets; long enough to be disturbed, short enough to be repeated."""
    return {
        "run": {"experiment": "graph", "root": str(root)},
        "model": {"classes": 3, "crop": 32, "width": 0.0625, "init": "glorot_uniform"},
        "data": {"root": str(images), "S": 37},
        "train": {
            "batch": 8,
            "iterations": ITERATIONS,
            "learning_rate": 0.001,
            "log_every": 1,
            "checkpoint_every": 10,
            "validate_every": 20,
        },
        "evaluation": {"batch": 8},
        "tracking": {"mlflow": False},
        "cluster": {"nodes": 2, "gpus_per_node": 1, "hours": 0.5},
        "stages": {"A": {"model": {"net": "A"}}, "D": {"model": {"net": "D"}, "run": {"parent": "A"}}},
    }


@dataclass(frozen=True)
class Experiment:
    """A configuration in a folder of its own, and the commands on it."""

    config: Path

    @classmethod
    def make(
        cls, folder: Path, images: Path, stages: Iterable[str] = ("A", "D"), **sections: dict[str, Any]
    ) -> Experiment:
        """Writes the configuration of some stages; `sections` override settings of all of them."""
        folder.mkdir(parents=True, exist_ok=True)
        tree = settings(images, folder / "runs")
        tree["stages"] = {name: tree["stages"][name] for name in stages}
        for name, section in sections.items():
            tree[name] = tree.get(name, {}) | section
        (folder / "graph.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return cls(folder / "graph.yaml")

    def call(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """submit.py with the configuration."""
        words = [str(word) for word in arguments]
        verb = [words.pop(0)] if words and not words[0].startswith("-") else []
        command = [sys.executable, str(SUBMIT), *verb, "--config", str(self.config), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.config.parent)

    def submit(self, *arguments: object) -> dict[str, dict[str, Any]]:
        """Submits; what is reported of each stage."""
        done = self.call(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}

    def status(self) -> dict[str, dict[str, Any]]:
        """Returns the report of `status` per stage."""
        done = self.call("status", "--json")
        assert done.returncode == 0, done.stderr
        return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}

    def config_of(self, stage: str) -> Config:
        """The configuration of a stage."""
        return load_graph(self.config).stages[stage]

    def directory(self, stage: str = "A") -> Path:
        """The run directory of a stage."""
        return _directory(self.config, stage)

    def steps(self, stage: str = "A") -> list[int]:
        """Steps of the training records, in the order of writing."""
        return [record["step"] for record in RunDirectory(self.directory(stage)).records("train")]

    def losses(self, stage: str = "A") -> list[tuple[int, float]]:
        """Returns (step, loss) of the training records."""
        return [(record["step"], record["loss"]) for record in RunDirectory(self.directory(stage)).records("train")]

    def weights(self, stage: str = "A") -> dict[str, torch.Tensor]:
        """The final net."""
        return load(final_file(self.directory(stage))).weights

    def history(self, stage: str = "A") -> list[dict[str, Any]]:
        """Returns the attempts."""
        return history(self.directory(stage))

    def ends(self, stage: str = "A") -> list[dict[str, Any]]:
        """Returns the outcomes of the attempts."""
        return [line for line in self.history(stage) if line["event"] == "ends"]

    def attempts(self, stage: str = "A") -> int:
        """Returns the number of attempts."""
        return sum(line["event"] == "begins" for line in self.history(stage))

    def begin_attempt(self, number: int, stage: str = "A") -> None:
        """Waits until so many attempts have begun."""
        wait_for(lambda: self.attempts(stage) >= number, f"attempt {number} of {stage}", self.explain)

    def reach(self, step: int, stage: str = "A") -> None:
        """Waits until a step is logged."""
        wait_for(lambda: max(self.steps(stage), default=0) >= step, f"step {step} of {stage}", self.explain)

    def hold_at(self, step: int, job: str, stage: str = "A") -> dict[int, int]:
        """Stops the ranks of the present attempt after a step, as if it took for ever; their process numbers by rank.

        SLURM wakes them when it has something to say: it sends SIGCONT before any other signal.
        """
        world = self.config_of(stage).cluster.nodes * self.config_of(stage).cluster.gpus_per_node
        self.reach(step, stage)
        wait_for(lambda: len(ranks_of(job)) == world, f"the ranks of job {job}", self.explain)
        ranks = ranks_of(job)
        for process in ranks.values():
            kill(process, signal.SIGSTOP)
        assert max(self.steps(stage)) < ITERATIONS, "it was held too late"
        return ranks

    def limit(self, job: str) -> None:
        """Brings the time limit of a running job so near that SLURM soon warns it: it looks every half minute."""
        begun = next(line["time"] for line in reversed(self.history()) if line["event"] == "begins")
        slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={int((time.time() - begun) / 60) + 2}")

    def finish(self, stage: str = "A") -> None:
        """Waits until a stage is trained and evaluated, and its job has ended."""
        over = ("finished", "failed")
        wait_for(lambda: ended(self.history(stage)) in over, f"the end of {stage}", self.explain)
        assert ended(self.history(stage)) == "finished", self.explain()

    def explain(self) -> str:
        """Returns the message of a failed wait."""
        logs = sorted(self.config.parent.rglob("logs/*.log"))
        shown = [f"== {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]) for log in logs]
        return "\n".join([self.call("status").stdout, *shown])


@cache  # conditions that are polled read it
def _directory(config: Path, stage: str) -> Path:
    return load_graph(config).stages[stage].directory


def same_run(first: Experiment, second: Experiment, stage: str = "A") -> None:
    """The same weights bitwise, each step once, the same losses."""
    weights, expected = first.weights(stage), second.weights(stage)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert first.steps(stage) == list(range(1, ITERATIONS + 1))
    assert first.losses(stage) == second.losses(stage)


def ended(past: list[dict[str, Any]]) -> str | None:
    """Returns the outcome of the latest attempt; None while it runs."""
    return past[-1]["outcome"] if past and past[-1]["event"] == "ends" else None


def wait_for(condition: Callable[[], bool], what: str, explain: Callable[[], str] = str) -> None:
    """Waits until it is true."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited {PATIENCE_S} s for {what}\n{explain()}"
        time.sleep(POLL_S)


def ranks_of(job: str) -> dict[int, int]:
    """Process numbers of a job's ranks, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("environ").read_bytes().split(b"\0")
            command = process.joinpath("cmdline").read_bytes()
        except OSError:
            continue
        environment = dict(word.decode(errors="replace").partition("=")[::2] for word in words)
        is_rank = b"submitit.core._submit" in command or b"launch.rank" in command
        ours = environment.get("SLURM_CONF") == os.environ["SLURM_CONF"] and environment.get("SLURM_JOB_ID") == job
        if is_rank and ours and "SLURM_STEP_NUM_TASKS" in environment:
            found[int(environment["SLURM_PROCID"])] = int(process.name)
    return found


def kill(process: int, number: signal.Signals) -> None:
    """A signal to one process."""
    os.kill(process, number)


def slurm(*command: object) -> str:
    """The answer of one of SLURM's programs."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
