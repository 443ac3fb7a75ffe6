"""Graphs on a real SLURM: what happens to a job must not show in the net it leaves behind."""

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from launch_cluster import ITERATIONS, Experiment, ended, kill, same_run, slurm, wait_for

from launch.snapshot import PICKLES

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def graph(
    cluster: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, dict[str, dict[str, Any]]]:
    """The whole graph from one call, submitted twice, in a place whose name needs quoting; it is not waited for."""
    place = tmp_path_factory.mktemp("graph") / 'it\'s a "place" $HOME'
    experiment = Experiment.make(place, images, run={"why": {"model": 'it\'s "small"'}})
    stages = experiment.submit()
    assert stages["D"]["depends_on"] == ["A"]
    again = experiment.submit()
    assert {name: stage["job"] for name, stage in again.items()} == {name: stages[name]["job"] for name in stages}
    return experiment, stages


def disturb(experiment: Experiment) -> Experiment:
    """Requeued by hand, then a rank killed, then cancelled and submitted again: each in the middle of training."""
    job = experiment.submit()["A"]["job"]
    experiment.hold_at(12, job)
    slurm("scontrol", "requeue", job)
    experiment.begin_attempt(2)
    kill(experiment.hold_at(40, job)[1], signal.SIGKILL)
    experiment.begin_attempt(3)
    experiment.hold_at(70, job)
    assert experiment.call("cancel").returncode == 0
    wait_for(lambda: ended(experiment.history()) == "cancelled", "the cancellation", experiment.explain)
    wait_for(lambda: experiment.status()["A"]["job"] is None, "the cancelled job's end", experiment.explain)
    assert experiment.status()["A"]["state"] == "cancelled", "a cancelled job stays cancelled"
    experiment.submit()
    experiment.finish()
    return experiment


def time_out(experiment: Experiment) -> Experiment:
    """Comes near its time limit in the middle of training."""
    job = experiment.submit("--set", "cluster.warning_s=60")["A"]["job"]
    experiment.hold_at(12, job)
    experiment.limit(job)
    experiment.begin_attempt(2)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    experiment.finish()
    return experiment


@pytest.fixture(scope="module")
def disturbed(
    cluster: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Experiment]]]:
    """Two experiments at once on the same two nodes, beside the graph."""
    folder = tmp_path_factory.mktemp("disturbed")
    first = Experiment.make(folder / "a", images, ["A"], run={"experiment": "hard-life"}, tracking={"mlflow": True})
    second = Experiment.make(folder / "b", images, ["A"], run={"experiment": "time-limit"})
    with ThreadPoolExecutor(2) as pool:
        yield {"disturbed": pool.submit(disturb, first), "timed out": pool.submit(time_out, second)}


def test_a_graph_on_two_nodes_equals_torchrun(
    disturbed: object, graph: tuple[Experiment, dict[str, dict[str, Any]]], undisturbed: Experiment
) -> None:
    experiment, stages = graph
    experiment.finish("D")
    for stage in stages:
        same_run(experiment, undisturbed, stage)
        assert experiment.attempts(stage) == 1
    ours, theirs = (case.config.parent / "runs" / "graph" / "tables.md" for case in (experiment, undisturbed))
    rows = [
        [line for line in file.read_text().splitlines() if line.startswith("| D | 37 |")] for file in (ours, theirs)
    ]
    assert rows[0] == rows[1] != []


def test_a_finished_graph_is_not_submitted_again(graph: tuple[Experiment, dict[str, dict[str, Any]]]) -> None:
    experiment, _ = graph
    assert {stage["state"] for stage in experiment.submit().values()} == {"finished"}
    assert {stage["state"] for stage in experiment.status().values()} == {"finished"}
    assert slurm("squeue", "--noheader", "--name=graph.A,graph.D") == ""


def test_pickles_are_the_users_alone(graph: tuple[Experiment, dict[str, dict[str, Any]]]) -> None:
    experiment, stages = graph
    folder = experiment.directory("A") / PICKLES
    assert (folder / f"{stages['A']['job']}_submitted.pkl").exists()
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_time_limit(disturbed: dict[str, Future[Experiment]], undisturbed: Experiment) -> None:
    experiment = disturbed["timed out"].result()
    same_run(experiment, undisturbed)
    ends = experiment.ends()
    assert any(line["outcome"] == "goes on" and "stopped by a signal" in line["reason"] for line in ends)
    assert ends[-1]["outcome"] == "finished"


def test_requeued_then_a_rank_killed_then_cancelled(
    disturbed: dict[str, Future[Experiment]], undisturbed: Experiment
) -> None:
    experiment = disturbed["disturbed"].result()
    same_run(experiment, undisturbed)
    ends = experiment.ends()
    assert [line["outcome"] for line in ends] == ["goes on", "goes on", "cancelled", "finished"]
    assert "requeued" in ends[0]["reason"]
    assert "SIGKILL" in ends[1]["reason"]
    begun = [line["progress"][0] for line in experiment.history() if line["event"] == "begins"]
    assert begun == sorted(begun)
    assert begun[1] >= 10


def test_all_attempts_are_a_single_mlflow_run(disturbed: dict[str, Future[Experiment]]) -> None:
    from mlflow import MlflowClient

    experiment = disturbed["disturbed"].result()
    client = MlflowClient(f"sqlite:///{experiment.config.parent / 'runs' / 'mlruns.db'}")
    found = client.get_experiment_by_name("hard-life")
    assert found is not None
    (run,) = (each for each in client.search_runs([found.experiment_id]) if "mlflow.parentRunId" in each.data.tags)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, ITERATIONS + 1))
