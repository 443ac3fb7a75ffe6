"""State of each stage of a graph, from the disk and SLURM's queue."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch import slurm
from launch.attempt import history, progress_of
from launch.snapshot import LOGS, STAGE
from vggrepro.config.recipes import Graph
from vggrepro.config.settings import Config
from vggrepro.storage.status import is_finished

State = Literal["finished", "trained", "running", "queued", "ending", "ready", "waiting"]
"""finished: trained and evaluated; trained: not evaluated; ready: can be submitted; waiting: for its parent."""


@dataclass(frozen=True)
class Stage:
    """A stage of a graph."""

    name: str
    config: Config
    state: State
    parent: str | None
    """The stage it starts from, if that is not trained yet."""
    job: slurm.Job | None = None

    @property
    def directory(self) -> Path:
        """Run directory."""
        return self.config.directory.absolute()

    @property
    def to_submit(self) -> bool:
        """Whether work is left and no job does it."""
        return self.state in ("trained", "ready", "waiting")

    def report(self) -> dict[str, Any]:
        """Returns the fields that are printed before and after submission."""
        cluster = self.config.cluster
        return {
            "name": self.name,
            "depends_on": [self.parent] if self.parent else [],
            "nodes": cluster.nodes,
            "gpus_per_node": cluster.gpus_per_node,
            "state": self.state,
            "job": self.job.id if self.job else None,
            "directory": str(self.config.directory),
        }


def stages_of(graph: Graph, jobs: Mapping[str, slurm.Job]) -> list[Stage]:
    """Returns the stages, parents first; `jobs` is SLURM's queue. Raises UserError for another stage's directory."""
    trained = {name: is_finished(config) for name, config in graph.stages.items()}
    stages = []
    for name, config in graph.stages.items():
        parent = graph.parents[name]
        waits_for = parent if parent and not trained[parent] else None
        job = jobs.get(slurm.key_of(config.directory))
        state: State
        if job:
            state = {"RUNNING": "running", "COMPLETING": "ending"}.get(job.state, "queued")  # type: ignore[assignment]
        elif trained[name]:
            from vggrepro.pipeline.done import is_evaluated  # imports numpy, which nothing else here needs

            state = "finished" if is_evaluated(config, graph.parent_of(name)) else "trained"
        else:
            state = "waiting" if waits_for else "ready"
        stages.append(Stage(name, config, state, waits_for, job))
    return stages


def status_of(stages: list[Stage]) -> list[dict[str, Any]]:
    """Returns the report of `status` for each stage: state, reason, step, job, attempts, log."""
    reports: dict[str, dict[str, Any]] = {}
    for stage in stages:
        past, iterations = history(stage.directory), stage.config.train.iterations
        state, reason = _state_and_reason(stage, past, reports.get(stage.parent or ""))
        reports[stage.name] = {
            "name": stage.name,
            "state": state,
            "reason": reason,
            "job": stage.job.id if stage.job else None,
            "step": iterations if is_finished(stage.config) else progress_of(stage.directory)[0],
            "iterations": iterations,
            "attempts": sum(line["event"] == "begins" for line in past),
            "log": str(logs[-1]) if (logs := newest_logs(stage.directory)) else None,
            "directory": str(stage.config.directory),
        }
    return list(reports.values())


def _state_and_reason(stage: Stage, past: list[dict[str, Any]], parent: Mapping[str, Any] | None) -> tuple[str, str]:
    last = past[-1] if past else {}
    outcome = last.get("outcome")  # None while an attempt runs
    if stage.state == "finished":
        return "finished", ""
    if stage.job:
        back = stage.state == "queued" and outcome == "goes on" and last["reason"]
        return stage.state, stage.job.where.strip("()") + (f"; requeued: {back}" if back else "")
    if outcome == "failed":
        return outcome, last["reason"]
    if outcome == "cancelled":
        return outcome, "submit again to resume"
    if stage.state == "trained" and outcome == "finished":
        return stage.state, "its tests have changed since; submit again to run them"
    if outcome == "goes on":
        return "gone", f"the job has left SLURM's queue after: {last['reason']}; submit again to resume"
    if last.get("event") == "begins":
        return "lost", "the job ended without a report: its node failed, or it was killed; submit again"
    if not (stage.directory / STAGE).exists():
        return "not submitted", ""
    if parent and parent["state"] not in ("running", "queued", "ending"):
        return "cancelled", f"its parent {parent['name']} is {parent['state']}; submit again"
    return "cancelled", "before it started; submit again"


def newest_logs(directory: Path) -> list[Path]:
    """Returns the logs of the job that wrote last: JOB.log, and JOB_RANK.log of the rank that wrote last."""
    files = sorted((directory / LOGS).glob("*.log"), key=lambda file: file.stat().st_mtime)
    if not files:
        return []
    job = re.split(r"[_.]", files[-1].name)[0]
    ranks = [file for file in files if file.name.startswith(f"{job}_")]
    return [file for file in files if file.name == f"{job}.log"] + ranks[-1:]
