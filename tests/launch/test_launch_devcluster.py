"""slurm/devcluster: what it needs it says in one line, and it comes and goes without a trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_cluster import slurm
from tiny import REPOSITORY

DEVCLUSTER = REPOSITORY / "slurm" / "devcluster"


def call(*arguments: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": path} if path else {})
    command = list(map(str, (DEVCLUSTER, *arguments)))
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A PATH with Python alone."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    return str(tmp_path / "bin")


def test_without_slurm_the_remedy_is_named(bare: str, tmp_path: Path) -> None:
    done = call("up", "--directory", tmp_path / "c", path=f"{bare}")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("install them: apt-get install slurm-wlm munge")
    assert not (tmp_path / "c").exists()


def test_down_and_status_without_a_cluster(tmp_path: Path) -> None:
    assert call("down", "--directory", tmp_path).returncode == 0
    done = call("status", "--directory", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"devcluster: no cluster is up in {tmp_path}; start it with")


@pytest.mark.slurm
def test_it_hands_out_fake_gpus_and_node_names(cluster: Path) -> None:
    again = call("up", "--directory", cluster)
    assert again.returncode == 2
    assert "a cluster is up already" in again.stderr
    shown = call("env", "--directory", cluster).stdout
    assert f"SLURM_CONF={cluster}/etc/slurm.conf" in shown
    resources = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2"]
    printed = slurm("srun", *resources, "bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES")
    assert sorted(printed.splitlines()) == ["n0 0,1", "n1 0,1"]
