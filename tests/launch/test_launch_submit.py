import json
import subprocess
import sys
from pathlib import Path

import pytest
from launch_cluster import REPOSITORY

from vggrepro.config import load_graph


def submit(*arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "launch" / "submit.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd)


CONFIGS = REPOSITORY / "configs"


def test_dry_run_prints_the_graph_of_descent(tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--nodes", 4, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(s["name"], s["depends_on"], s["state"]) for s in report["stages"]] == [
        ("A-256", [], "ready"),
        ("D-256", ["A-256"], "waiting"),
    ]
    assert all((s["nodes"], s["gpus_per_node"]) == (4, 8) for s in report["stages"])
    assert report["sbatch"]["nodes"] == 4
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing behind"


def test_dry_run_for_people(tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "reproduce.yaml", "--nodes", 2, "--partition", "gpu", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 13
    assert "after D-384" in next(line for line in lines if line.startswith("D-jitter"))
    assert "--partition=gpu" in lines[-1]


def test_finished_stages_are_known(tmp_path: Path) -> None:
    (config,) = load_graph(CONFIGS / "vgg_A.yaml", [f"run.root={tmp_path}"]).stages.values()
    (config.directory / "checkpoints").mkdir(parents=True)
    (config.directory / "config.yaml").write_text(config.to_yaml())
    (config.directory / "checkpoints" / "final.pt").touch()
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--set", f"run.root={tmp_path}", "--dry-run", "--json")
    assert [(s["state"], s["depends_on"]) for s in json.loads(done.stdout)["stages"]] == [
        ("finished", []),
        ("ready", []),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes", "3"], "3 nodes of 8 GPUs make 24 ranks, which do not divide train.batch=256; ask for"),
        (["--set", "train.bach=3"], "unknown key train.bach; did you mean batch?"),
        (["--nodes", "0"], "cluster.nodes=0 is not allowed"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = submit("-c", CONFIGS / "vgg_D.yaml", *arguments, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_local_runs_the_graph_here(settings: list[str], tmp_path: Path) -> None:
    changes = [word for setting in settings for word in ("--set", setting)]
    done = submit("-c", CONFIGS / "vgg_D.yaml", "--local", *changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| D | 37 | 37 |" in done.stdout
