import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from launch_cluster import SUBMIT
from programs import run_program
from tiny import CONFIGS, REPOSITORY, set_words
from typer.testing import CliRunner

import launch.jobs
from launch import slurm
from launch.jobs import submit_stages
from launch.stages import Stage, stages_of, status_of
from launch.submit import _hours, app
from vggrepro.config.recipes import Graph, load_graph
from vggrepro.errors import UserError


@dataclass(frozen=True)
class Done:
    """Output of a command."""

    stdout: str
    mistake: str
    """Text of the UserError it ended with."""


def submit(*arguments: object) -> Done:
    """submit.py in this process."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, UserError):
        raise result.exception
    return Done(result.stdout, str(result.exception or ""))


def call(*arguments: object, cwd: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """submit.py as a process of its own, on a machine without SLURM unless PATH says otherwise."""
    return run_program(SUBMIT, *arguments, cwd=cwd, **({"PATH": str(Path(sys.executable).parent)} | changed))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that submit.py is called from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "is_reachable", lambda: False)
    return tmp_path


def test_dry_run_prints_the_graph_of_descent(tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--dry-run", "--json")
    assert not done.mistake
    report = json.loads(done.stdout)
    assert [(s["name"], s["depends_on"], s["state"]) for s in report["stages"]] == [
        ("A-256", [], "ready"),
        ("D-256", ["A-256"], "waiting"),
    ]
    assert all((s["nodes"], s["gpus_per_node"]) == (4, 8) for s in report["stages"])
    assert report["sbatch"]["nodes"] == 4
    assert report["cost"]["binds"] == {"A-256": "GPU", "D-256": "GPU"}
    (cheaper,) = report["cost"]["cheaper"]
    assert cheaper["settings"] == ["train.precision=bf16"]
    assert cheaper["departures"] == ["train.precision: bf16 instead of fp32"]
    assert cheaper["gpu_hours"] + cheaper["saved_gpu_hours"] == pytest.approx(report["cost"]["gpu_hours"])
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing behind"


def test_dry_run_for_people() -> None:
    done = submit("-c", CONFIGS / "reproduce.yaml", "--nodes", 2, "--partition", "gpu", "--dry-run")
    assert not done.mistake
    lines = done.stdout.splitlines()
    assert len(lines) == 17
    assert any(line.startswith("bottleneck: GPU (A-256, ") for line in lines)
    assert any(line.startswith("cheaper: --set train.precision=bf16: saves") for line in lines)
    assert "after D-384" in next(line for line in lines if line.startswith("D-jitter"))
    assert "--partition=gpu" in lines[-1]


def test_the_documentation_shows_what_a_dry_run_prints() -> None:
    page = (REPOSITORY / "docs" / "slurm.md").read_text()
    shown = page.split("--nodes 4 --dry-run\n\n", 1)[1].split("\n\n", 1)[0].splitlines()
    assert len(shown) == 6
    printed = submit("-c", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--dry-run").stdout.splitlines()
    assert [line.strip() for line in shown] == printed[:-1], "all but sbatch's line, which names the folder"


def test_seeds_are_submitted_as_separate_graphs() -> None:
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--seeds", "0,1", "--dry-run", "--json")
    assert [(s["name"], s["depends_on"]) for s in json.loads(done.stdout)["stages"]] == [
        ("A-256", []),
        ("D-256", ["A-256"]),
        ("A-256-seed1", []),
        ("D-256-seed1", ["A-256-seed1"]),
    ]
    status = submit("status", "-c", CONFIGS / "vgg_D.yaml", "--seeds", "0,1", "--json")
    assert [s["name"] for s in json.loads(status.stdout)["stages"]][2:] == ["A-256-seed1", "D-256-seed1"]


def test_finished_stages_are_known(tmp_path: Path) -> None:
    (config,) = load_graph(CONFIGS / "vgg_A.yaml", [f"run.root={tmp_path}"]).stages.values()
    (config.directory / "checkpoints").mkdir(parents=True)
    (config.directory / "config.yaml").write_text(config.to_yaml())
    (config.directory / "checkpoints" / "final.pt").touch()
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--set", f"run.root={tmp_path}", "--dry-run", "--json")
    report = json.loads(done.stdout)
    assert [(s["state"], s["depends_on"]) for s in report["stages"]] == [
        ("trained", []),  # to be evaluated
        ("ready", []),
    ]
    assert list(report["cost"]["binds"]) == ["D-256"]  # what is trained costs nothing, and saves nothing


def test_every_option_reaches_sbatch(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("cluster: {partition: slow, account: site, sbatch: {exclusive: ''}, hours: 5}")
    done = submit(
        "--config", CONFIGS / "vgg_A.yaml", "--dry-run", "--json", "--cluster", site, "--partition", "fast",
        "--time", "1-12:30:00", "--qos", "high", "--constraint", "a100|h100", "--exclude", "n[1-2]",
        "--cpus-per-task", 12, "--mem", "0", "--sbatch", "reservation=week 1", "--sbatch", "--contiguous",
            )  # fmt: skip
    assert not done.mistake
    submitted = json.loads(done.stdout)["sbatch"]
    expected = {
        "partition": "fast",
        "account": "site",
        "time": 36 * 60 + 30,
        "qos": "high",
        "constraint": "a100|h100",
        "exclude": "n[1-2]",
        "cpus-per-task": 12,
        "mem": "0",
        "reservation": "week 1",
        "contiguous": "",
        "nodes": 1,
        "ntasks-per-node": 8,
        "gpus-per-node": 8,
        "signal": "USR2@180",
        "requeue": "",
        "chdir": str(tmp_path),
    }
    assert {key: submitted.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "hours"),
    [("90", 1.5), ("90:30", 1.5 + 30 / 3600), ("12:00:00", 12), ("2-0", 48), ("1-12:30", 36.5), ("1-00:00:36", 24.01)],
)
def test_time_limits_as_sbatch_takes_them(text: str, hours: float) -> None:
    assert _hours(text) == pytest.approx(hours)


def test_no_gpus_are_requested_on_the_cpu() -> None:
    size = ["--set", "run.device=cpu", "--gpus-per-node", 2]
    submitted = json.loads(submit("-c", CONFIGS / "vgg_A.yaml", "--dry-run", "--json", *size).stdout)["sbatch"]
    assert "gpus-per-node" not in submitted
    assert submitted["ntasks-per-node"] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes", "3"], "3 nodes with 8 GPUs make 24 ranks, which do not divide train.batch=256; request"),
        (["--set", "train.bach=3"], "unknown key train.bach; did you mean batch?"),
        (["--nodes", "0"], "cluster.nodes=0 is not allowed"),
        (["--time", "soon"], "--time soon: expected minutes, HH:MM:SS or D-HH:MM:SS"),
        (["--time", "2"], "a time limit of 2 min must exceed cluster.warning_s=180"),
        (["--sbatch", "comment=x"], "cluster.sbatch.comment is set by submit.py"),
        (["--set", "data.index=none.parquet"], "data.index=none.parquet of stage A-256 does not exist"),
        (["--set", "data.boxes=none.npz"], "data.boxes=none.npz of stage A-256 does not exist"),
        (["--set", "data.root=nowhere"], "data.root=nowhere of stage A-256 does not exist"),
        (["--container", "none.sif"], "container none.sif does not exist"),
        (["--cluster", "none.yaml"], "--cluster none.yaml cannot be read"),
        (["--set", "run.root=100%"], "SLURM expands % and"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "vgg_D.yaml", *arguments, "--dry-run")
    assert expected in done.mistake
    assert len(done.mistake.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = call("-c", CONFIGS / "vgg_D.yaml", "--nodes", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("submit.py: 3 nodes with 8 GPUs make 24 ranks")
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_needs_neither_slurm_nor_anything_heavy(tmp_path: Path) -> None:
    words = ["-c", CONFIGS / "vgg_D.yaml", "--dry-run"]
    done = run_program("-X", "importtime", SUBMIT, *words, check=True, cwd=tmp_path, PATH="")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "A-256" in done.stdout
    assert not {"torch", "mlflow", "submitit", "matplotlib", "scipy", "numpy", "PIL.Image"} & imported


def dependencies(monkeypatch: pytest.MonkeyPatch, *changes: str, jobs: dict[str, str] | None = None) -> dict[str, str]:
    """Returns the dependencies of each stage of reproduce.yaml; new jobs are numbered from 101."""
    submitted: dict[str, str] = {}
    texts: list[str] = []

    def resolved(graph: Graph) -> str:
        texts.append(graph.name)
        return graph.name

    def fake(graph: str, stage: Stage, dependency: str) -> str:
        submitted[stage.name] = dependency
        return str(100 + len(submitted))

    monkeypatch.setattr(launch.jobs, "_submit", fake)
    monkeypatch.setattr(launch.jobs.snapshot, "resolved", resolved)
    graph = load_graph(CONFIGS / "reproduce.yaml", changes)
    queue = {
        slurm.key_of(graph.stages[name].directory): slurm.Job(number, "RUNNING", "n1")
        for name, number in (jobs or {}).items()
    }
    submit_stages(graph, stages_of(graph, queue))
    assert len(texts) == 1, "the graph is written out once, and not for each of its stages"
    return submitted


def test_stages_follow_those_they_start_from(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = dependencies(monkeypatch)
    assert len(submitted) == 12
    assert (submitted["A-256"], submitted["A-LRN-256"], submitted["B-256"]) == ("", "", "afterok:101")
    number = {name: str(101 + n) for n, name in enumerate(submitted)}
    assert submitted["D-384"] == f"afterok:{number['D-256']}"
    assert submitted["D-jitter"] == f"afterok:{number['D-384']}"


def test_stages_that_have_a_job_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = dependencies(monkeypatch, jobs={"A-256": "7", "D-256": "8"})
    assert "A-256" not in submitted
    assert "D-256" not in submitted
    assert (submitted["B-256"], submitted["D-384"]) == ("afterok:7", "afterok:8")


def test_the_number_of_parallel_stages_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = dependencies(monkeypatch, "cluster.array_parallelism=2")
    names = list(submitted)
    for n, name in enumerate(names):
        before = str(101 + n - 2)
        assert n < 2 or f":{before}" in submitted[name], "each waits for the one two places before it"
    assert submitted["C-256"] == "afterok:101,afterany:102"


def test_another_configurations_directory_is_refused(tmp_path: Path) -> None:
    (config,) = load_graph(CONFIGS / "vgg_A.yaml", [f"run.root={tmp_path}", "train.momentum=0.8"]).stages.values()
    config.directory.mkdir(parents=True)
    (config.directory / "config.yaml").write_text(config.to_yaml())
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--set", f"run.root={tmp_path}")
    assert "belongs to another configuration (train.momentum was 0.8, is 0.9)" in done.mistake


def test_without_slurm_and_without_local(tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "vgg_A.yaml")
    assert done.mistake.startswith("SLURM is not available")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_required() -> None:
    done = submit("--nodes", 2)
    assert "--config is missing" in done.mistake


def test_status_and_logs_from_the_disk(tmp_path: Path) -> None:
    where = ["--config", CONFIGS / "vgg_D.yaml", "--set", f"run.root={tmp_path}"]
    done = submit("status", *where, "--json")
    assert [stage["state"] for stage in json.loads(done.stdout)["stages"]] == ["not submitted", "not submitted"]
    (a, d) = load_graph(CONFIGS / "vgg_D.yaml", [f"run.root={tmp_path}"]).stages.values()
    for config in (a, d):
        (config.directory / "submission").mkdir(parents=True)
        (config.directory / "submission" / "stage").write_text(config.name)
    reason = "failed 3 times in a row without progress: rank 7 on n3: OSError: gone"
    attempts = [
        {"event": "begins", "attempt": "12:0", "progress": [2000, 0, 0]},
        {"event": "ends", "attempt": "12:0", "progress": [2000, 0, 0], "outcome": "failed", "reason": reason},
    ]
    (a.directory / "attempts.jsonl").write_text("\n".join(json.dumps(line) for line in attempts))
    (a.directory / "logs").mkdir()
    (a.directory / "logs" / "12_0.log").write_text("one\ntwo\n")
    stages = json.loads(submit("status", *where, "--json").stdout)["stages"]
    assert (stages[0]["state"], stages[0]["reason"]) == ("failed", reason)
    assert (stages[1]["state"], stages[1]["reason"]) == ("cancelled", "its parent A-256 is failed; submit again")
    assert "one\ntwo\n" in call("logs", *where, "-n", 2, cwd=tmp_path, PATH=os.environ["PATH"]).stdout
    (a.directory / "logs" / "12.log").write_text("vggrepro: failed\n")
    both = call("logs", *where, "-n", 2, cwd=tmp_path, PATH=os.environ["PATH"]).stdout
    assert both.index("vggrepro: failed\n") < both.index("one\ntwo\n"), "the job's own, and a rank's"
    assert "no log in" in submit("logs", *where, "--stage", "D-256").mistake


def test_a_finished_stage_with_new_tests_is_not_reported_as_cancelled(tmp_path: Path) -> None:
    (config,) = load_graph(CONFIGS / "vgg_A.yaml", [f"run.root={tmp_path}"]).stages.values()
    (config.directory / "submission").mkdir(parents=True)
    (config.directory / "submission" / "stage").write_text(config.name)
    last = {"event": "ends", "attempt": "12:0", "progress": [2000, 1, 0], "outcome": "finished", "reason": ""}
    (config.directory / "attempts.jsonl").write_text(json.dumps(last) + "\n")
    (report,) = status_of([Stage(config.name, config, "trained", None)])
    assert (report["state"], report["reason"]) == ("trained", "its tests have changed since; submit again to run them")


def test_a_line_of_a_submission_can_be_copied_and_a_verb_put_in(tmp_path: Path) -> None:
    site = CONFIGS / "cluster" / "devcluster.yaml"
    line = ["-c", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--time", "3:00", "--sbatch", "exclusive", "--cluster", site]
    line += ["--set", f"run.root={tmp_path}", "--set", "run.experiment=mine", "--seeds", "0,1"]
    for arguments in (["status", *line, "--json"], [*line, "status", "--json"], [*line, "--json", "status"]):
        done = submit(*arguments)
        assert [stage["name"] for stage in json.loads(done.stdout)["stages"]][1:3] == ["D-256", "A-256-seed1"]
    for arguments in (["logs", *line, "-n", 2], [*line, "logs", "-n", 2]):
        assert f"no log in {tmp_path / 'mine' / 'A-256'}, " in submit(*arguments).mistake
    assert submit("cancel", *line).stdout == "no job of this graph is pending or running\n"
    assert "--dry-run is not an option of cancel; remove it" in submit(*line, "--dry-run", "cancel").mistake
    assert call("cancel", *line, "--dry-run", cwd=tmp_path).returncode == 2, "it must not cancel"
    assert "--nodes" not in submit("status", "--help").stdout, "a verb shows its own"


def test_a_submission_requires_images(tmp_path: Path) -> None:
    where = ["--config", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--set", f"run.root={tmp_path}"]
    dry = call(*where, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0
    assert "submit.py: SLURM was not queried: sbatch is missing" in dry.stderr
    missing = "data.root of stage A-256 is not set; add --set data.root=FOLDER"
    assert f"required before submission: {missing}" in dry.stderr


def test_a_submission_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "is_reachable", lambda: True)
    where = ["--config", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--set", f"run.root={tmp_path / 'runs'}"]
    assert "data.root of stage A-256 is not set; add --set data.root=FOLDER" in submit(*where).mistake
    assert not (tmp_path / "runs").exists()


def test_without_its_environment_it_says_which_command_is_missing(tmp_path: Path) -> None:
    done = run_program("-S", SUBMIT, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "activate the environment first: source .venv/bin/activate" in done.stderr


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--partition", "gpu"], "nvalid partition name specified; partitions: cancelling, high, main"),
        (["--nodes", "4"], "SLURM rejected stage A-256"),
        (["--gpus-per-node", "8"], "SLURM rejected stage A-256"),
        (["--sbatch", "nonsense=1"], "SLURM rejected stage A-256"),
    ],
)
def test_slurm_is_queried_before_a_submission(
    cluster: Path, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ["--nodes", "2", "--gpus-per-node", "2"]
    monkeypatch.setattr(slurm, "is_reachable", lambda: True)
    done = submit("-c", CONFIGS / "vgg_D.yaml", *size, "--set", "data.root=builtin:digits", *arguments)
    assert expected in done.mistake
    assert len(done.mistake.splitlines()) == 1
    assert not (tmp_path / "runs" / "paper" / "A-256").exists()


def test_local_runs_the_graph_here(settings: list[str], tmp_path: Path, blank_figures: dict[str, str]) -> None:
    done = call("-c", CONFIGS / "vgg_D.yaml", "--local", *set_words(*settings), cwd=tmp_path, **blank_figures)
    assert done.returncode == 0, done.stderr
    assert "| D | 37 | 37 |" in done.stdout
