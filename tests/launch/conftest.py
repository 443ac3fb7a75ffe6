"""The development cluster, once for all tests that need SLURM."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_cluster import Experiment
from programs import run_program
from tiny import REPOSITORY

DEVCLUSTER = REPOSITORY / "slurm" / "devcluster"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, blank_figures: dict[str, str]) -> Iterator[Path]:
    """Starts a SLURM of 2 nodes with 4 fake GPUs each, which sbatch and submit.py use meanwhile; returns its folder."""
    missing = not shutil.which("slurmctld") or os.geteuid() != 0
    if missing and os.environ.get("CI") != "true":
        pytest.skip("needs root and: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("cluster")
    place = ["--directory", str(folder)]
    up = [str(DEVCLUSTER), "up", "--nodes", "2", "--gpus-per-node", "4", *place]
    done = subprocess.run(up, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "VGGREPRO_FAKE_GPUS": "1", "OMP_NUM_THREADS": "1"}
    changed |= blank_figures
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield folder
    finally:
        subprocess.run([str(DEVCLUSTER), "down", *place], check=True)
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


@pytest.fixture(scope="session")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory, blank_figures: dict[str, str]) -> Experiment:
    """Graph A -> D, trained by torchrun on this machine with as many ranks as the jobs have."""
    experiment = Experiment.make(tmp_path_factory.mktemp("undisturbed"), images)
    done = run_program("-m", "vggrepro", "reproduce", "--config", experiment.config, ranks=2, **blank_figures)
    assert done.returncode == 0, done.stderr
    return experiment
