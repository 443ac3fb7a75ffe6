"""The failure matrix: each row ends at the same step with the same weights as the run that nothing happened to.

Minutes each; run by hand: pytest -m slow tests/launch/test_launch_failures.py
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from launch_cluster import ITERATIONS, Experiment, ended, kill, ranks_of, same_run, slurm, wait_for
from programs import free_port, write_script
from tiny import REPOSITORY, set_words

from launch.snapshot import SCRIPT

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def experiment(cluster: Path, images: Path, tmp_path: Path) -> Experiment:
    """Stage A alone."""
    return Experiment.make(tmp_path / "a", images, ["A"])


def outcomes(experiment: Experiment) -> list[str]:
    return [line["outcome"] for line in experiment.ends()]


def reasons(experiment: Experiment) -> str:
    return "; ".join(line["reason"] for line in experiment.ends())


def wait_until_gone(job: str, experiment: Experiment) -> None:
    def gone() -> bool:
        return job not in slurm("squeue", "--noheader", "--me", "--format=%i").split()

    wait_for(gone, f"the end of job {job}", experiment.explain)


def test_time_limit_during_evaluation(experiment: Experiment, undisturbed: Experiment) -> None:
    job = experiment.submit("--set", "cluster.warning_s=60", "--set", "evaluation.batch=1")["A"]["job"]
    final = experiment.directory() / "checkpoints" / "final.pt"
    wait_for(final.exists, "the final net", experiment.explain)
    for process in ranks_of(job).values():
        kill(process, signal.SIGSTOP)
    stored = list((experiment.directory() / "posteriors").glob("[!.]*"))
    assert len(stored) < 3, "it was held too late"
    experiment.limit(job)
    experiment.begin_attempt(2)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    experiment.finish()
    same_run(experiment, undisturbed)
    assert outcomes(experiment)[-2:] == ["goes on", "finished"]
    for file in (experiment.directory() / "posteriors").glob("*.npz"):
        expected = undisturbed.directory() / "posteriors" / file.name
        with np.load(file) as mine, np.load(expected) as theirs:
            assert np.allclose(mine["values"], theirs["values"], atol=1e-6)


SLOW_BOXES = """
import time
from vggrepro.evaluation import localise

def slowly(*given):
    time.sleep(30)
    return boxes_at_places(*given)

boxes_at_places, localise.boxes_at_places = localise.boxes_at_places, slowly
"""
"""Makes an image of the box test take half a minute."""


def test_a_box_test_longer_than_many_time_limits(cluster: Path, images: Path, tmp_path: Path) -> None:
    """It goes on from limit to limit, and more of these than a job may fail without progress."""
    boxed = shutil.copytree(images, tmp_path / "images")
    rows = [f"{file.relative_to(boxed)}\t5\t5\t30\t35" for file in sorted(boxed.rglob("*.JPEG"))]
    (boxed / "boxes.tsv").write_text("\n".join(["file\txmin\tymin\txmax\tymax", *rows]) + "\n")
    short = {"iterations": 20}, {"batch": 2, "multi_Q": [37, 42]}
    experiment = Experiment.make(tmp_path / "a", boxed, ["A"], train=short[0], evaluation=short[1])
    tree = yaml.safe_load(experiment.config.read_text())
    boxes = {"run": {"parent": "A"}, "localisation": {"regression": "PCR"}}
    tree["stages"]["boxes"] = tree["stages"]["A"] | boxes
    experiment.config.write_text(yaml.safe_dump(tree, sort_keys=False))
    site = tmp_path / "site"
    site.mkdir()
    (site / "slow_boxes.py").write_text(SLOW_BOXES)
    # as soon as the package is there: a .pth file of a folder that PYTHONPATH names is not read
    (site / "sitecustomize.py").write_text("import os\nif 'SLURM_PROCID' in os.environ: import slow_boxes\n")
    setup = f"export PYTHONPATH={site}:$PYTHONPATH"
    experiment.submit("--setup", setup, "--time", 3, *set_words("cluster.warning_s=60", "cluster.max_failures=2"))
    experiment.finish("boxes")
    outcomes = [line["outcome"] for line in experiment.ends("boxes")]
    assert outcomes == ["goes on"] * (len(outcomes) - 1) + ["finished"]
    after = sum(line["progress"][1] for line in experiment.ends("boxes"))
    assert after > 3, "two in a row without progress, after the one that has made the final net, end the job"


@pytest.mark.parametrize("partition", ["main", "cancelling"])
def test_preempted(experiment: Experiment, undisturbed: Experiment, partition: str) -> None:
    job = experiment.submit("--partition", partition, "--sbatch", "exclusive")["A"]["job"]
    experiment.hold_at(12, job)
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    experiment.finish()
    same_run(experiment, undisturbed)
    assert outcomes(experiment) == ["goes on", "finished"]
    assert "preempted" in reasons(experiment)


def test_a_machine_dies(experiment: Experiment, undisturbed: Experiment, cluster: Path) -> None:
    job = experiment.submit()["A"]["job"]
    rank = experiment.hold_at(12, job)[1]
    step_daemon = int(Path(f"/proc/{rank}/stat").read_text().rsplit(")", 1)[1].split()[1])
    daemon = int((cluster / "run" / "n1.pid").read_text())
    for process in (daemon, step_daemon, rank):
        kill(process, signal.SIGKILL)
    for process in ranks_of(job).values():
        kill(process, signal.SIGCONT)
    state = lambda: slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()  # noqa: E731
    wait_for(lambda: state() == "PENDING", "the requeue", experiment.explain)
    subprocess.run(["slurmd", "-N", "n1"], check=True)
    experiment.finish()
    same_run(experiment, undisturbed)
    assert experiment.attempts() >= 2, "SLURM may end the second one, too, with what it had still to tell the machine"


def test_two_failures_in_a_row(experiment: Experiment, undisturbed: Experiment) -> None:
    job = experiment.submit()["A"]["job"]
    kill(experiment.hold_at(12, job)[1], signal.SIGKILL)
    experiment.begin_attempt(2)
    wait_for(lambda: len(ranks_of(job)) == 2, "the ranks", experiment.explain)
    kill(ranks_of(job)[0], signal.SIGKILL)
    experiment.finish()
    same_run(experiment, undisturbed)
    assert outcomes(experiment) == ["goes on", "goes on", "finished"]


def test_a_crash_loop_ends_and_what_depends_on_it_does_not_wait(
    cluster: Path, images: Path, tmp_path: Path, undisturbed: Experiment
) -> None:
    experiment = Experiment.make(tmp_path / "a", images)
    jobs = experiment.submit("--setup", "ulimit -u 1 -v 3000000; export MALLOC_ARENA_MAX=1")
    wait_for(lambda: ended(experiment.history()) == "failed", "the end of the crash loop", experiment.explain)
    assert outcomes(experiment) == ["goes on", "goes on", "failed"]
    wait_until_gone(jobs["D"]["job"], experiment)
    status = experiment.status()
    assert status["A"]["state"] == "failed"
    assert "3 times in a row without progress" in status["A"]["reason"]
    assert (status["D"]["state"], status["D"]["attempts"]) == ("cancelled", 0)
    assert "its parent A is failed" in status["D"]["reason"]
    experiment.submit()
    experiment.finish("D")
    same_run(experiment, undisturbed, "A")
    same_run(experiment, undisturbed, "D")


def test_a_mistake_fails_at_once_and_status_says_why(cluster: Path, images: Path, tmp_path: Path) -> None:
    experiment = Experiment.make(tmp_path / "a", images, model={"classes": 4, "crop": 32, "width": 0.0625})
    jobs = experiment.submit()
    wait_until_gone(jobs["A"]["job"], experiment)
    wait_until_gone(jobs["D"]["job"], experiment)
    status = experiment.status()
    assert (status["A"]["state"], status["A"]["attempts"]) == ("failed", 1)
    assert "classes" in status["A"]["reason"]
    assert status["D"]["state"] == "cancelled"


def test_two_graphs_at_once_on_the_same_machines(
    cluster: Path, images: Path, tmp_path: Path, undisturbed: Experiment
) -> None:
    both = [Experiment.make(tmp_path / name, images) for name in ("a", "b")]
    for experiment in both:
        experiment.submit()
    for experiment in both:
        experiment.finish("D")
        for stage in ("A", "D"):
            same_run(experiment, undisturbed, stage)


def _mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = ["server", "--backend-store-uri", f"sqlite:///{folder}/server.db", "--port", str(port), "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, *artifacts],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers, "MLflow's server")
    return server


def test_mlflow_down_for_a_while(cluster: Path, images: Path, tmp_path: Path, undisturbed: Experiment) -> None:
    from mlflow import MlflowClient

    port = free_port()
    tracking = {"mlflow": True, "uri": f"http://127.0.0.1:{port}"}
    experiment = Experiment.make(tmp_path / "a", images, ["A"], tracking=tracking)
    server = _mlflow_server(tmp_path, port)
    try:
        job = experiment.submit()["A"]["job"]
        experiment.hold_at(12, job)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for process in ranks_of(job).values():
            kill(process, signal.SIGCONT)
        experiment.reach(ITERATIONS)
        server = _mlflow_server(tmp_path, port)
        experiment.finish()
        same_run(experiment, undisturbed)
        client = MlflowClient(tracking["uri"])
        found = client.get_experiment_by_name("graph")
        assert found is not None
        (run,) = (each for each in client.search_runs([found.experiment_id]) if "mlflow.parentRunId" in each.data.tags)
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, ITERATIONS + 1))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_full(cluster: Path, images: Path, small_disk: Path, undisturbed: Experiment) -> None:
    experiment = Experiment.make(small_disk / "a", images, ["A"])
    job = experiment.submit()["A"]["job"]
    experiment.hold_at(12, job)
    waste = small_disk / "waste"
    filled = subprocess.run(["dd", "if=/dev/zero", f"of={waste}"], check=False, capture_output=True, text=True)
    assert "No space left" in filled.stderr
    for process in ranks_of(job).values():
        kill(process, signal.SIGCONT)
    wait_until_gone(job, experiment)
    waste.unlink()
    experiment.submit()
    experiment.finish()
    same_run(experiment, undisturbed)


def test_the_script_submitted_by_hand(experiment: Experiment, undisturbed: Experiment) -> None:
    job = experiment.submit()["A"]["job"]
    experiment.hold_at(12, job)
    experiment.call("cancel")
    wait_until_gone(job, experiment)
    by_hand = slurm("sbatch", "--parsable", experiment.directory() / SCRIPT).strip()
    assert experiment.submit()["A"]["job"] == by_hand, "it is known, and not submitted once more"
    experiment.finish()
    same_run(experiment, undisturbed)


def test_two_jobs_of_one_stage_do_not_both_train_it(experiment: Experiment, undisturbed: Experiment) -> None:
    job = experiment.submit()["A"]["job"]
    experiment.hold_at(12, job)
    by_hand = slurm("sbatch", "--parsable", experiment.directory() / SCRIPT).strip()
    wait_until_gone(by_hand, experiment)
    for process in ranks_of(job).values():
        kill(process, signal.SIGCONT)
    experiment.finish()
    same_run(experiment, undisturbed)
    assert experiment.attempts() == 1


@pytest.mark.parametrize("way", ["train.sbatch", "srun"])
def test_without_submit_py(experiment: Experiment, undisturbed: Experiment, way: str) -> None:
    tree = yaml.safe_load(experiment.config.read_text())
    stage = experiment.config.with_name("stage.yaml")
    del tree["stages"]
    tree["run"] |= {"name": "A"}
    stage.write_text(yaml.safe_dump(tree | {"model": tree["model"] | {"net": "A"}}))
    size = ["--nodes=2", "--gpus-per-node=1", "--time=20"]
    bin_folder = Path(sys.executable).parent
    if way == "srun":
        slurm("srun", *size, "--ntasks-per-node=1", bin_folder / "vggrepro", "train", "--config", stage)
    else:
        environment = os.environ | {"VGGREPRO_ENV": str(bin_folder.parent)}
        script = [str(REPOSITORY / "slurm" / "train.sbatch"), "--config", str(stage)]
        log = experiment.config.with_name("train.log")
        command = ["sbatch", "--wait", f"--output={log}", *size, *script]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, log.read_text()
    same_run(experiment, undisturbed)


def test_in_a_container(experiment: Experiment, undisturbed: Experiment, tmp_path: Path) -> None:
    """Apptainer's place is taken by a script that runs the command after the image."""
    fake = tmp_path / "bin" / "apptainer"
    skip = f'while [ "$1" != {tmp_path}/image.sif ]; do shift; done\nshift 2'
    write_script(fake, f'echo "$@" >> {tmp_path}/asked\n{skip}\nexec {sys.executable} "$@"', "/bin/bash")
    (tmp_path / "image.sif").touch()
    experiment.submit("--container", tmp_path / "image.sif", "--setup", f"export PATH={fake.parent}:$PATH")
    experiment.finish()
    same_run(experiment, undisturbed)
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
