"""Snapshot of a submission in the run directory, with strange names."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from launch_cluster import settings
from programs import fork_program, stream_breaking_code, write_script

from launch import snapshot
from launch.attempt import DONE, history
from launch.rank import Rank
from vggrepro.config.parsing import override
from vggrepro.config.recipes import Graph, load_graph
from vggrepro.errors import UserError

STRANGE = 'it\'s a "place" $HOME `id` \\n'


@pytest.fixture
def graph(tmp_path: Path, images: Path) -> Graph:
    import yaml

    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(settings(images, tmp_path / "runs")))
    return load_graph(tmp_path / "graph.yaml")


def with_cluster(graph: Graph, *changes: str) -> Graph:
    stages = {name: override(config, changes, Path("test")) for name, config in graph.stages.items()}
    return Graph(graph.name, stages, graph.parents)


def take(directory: Path, graph: Graph, name: str, options: snapshot.Options = {}) -> None:  # noqa: B006
    snapshot.write(directory, snapshot.resolved(graph), name, graph.stages[name], options)


def test_the_graph_comes_back_as_it_was(graph: Graph, tmp_path: Path) -> None:
    take(tmp_path / "run", graph, "D")
    again = load_graph(tmp_path / "run" / snapshot.GRAPH)
    assert (tmp_path / "run" / snapshot.STAGE).read_text() == "D\n"
    assert again.parents == graph.parents
    for name, config in graph.stages.items():
        assert again.stages[name].model_dump(exclude={"run"}) == config.model_dump(exclude={"run"})
        assert again.stages[name].directory == config.directory


def test_stage_files_are_put_into_one_graph(tmp_path: Path) -> None:
    recipes = Path(snapshot.__file__).parents[1] / "configs"
    graph = load_graph(recipes / "reproduce.yaml")
    take(tmp_path, graph, "D-384")
    again = load_graph(tmp_path / snapshot.GRAPH)
    assert again.parents == graph.parents
    assert {name: stage.trajectory() for name, stage in again.stages.items()} == {
        name: stage.trajectory() for name, stage in graph.stages.items()
    }


def test_only_the_user_can_write_there(graph: Graph, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        take(tmp_path / "run", graph, "A")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / snapshot.FOLDER).stat().st_mode & 0o777 == 0o700


def test_a_folder_that_leads_elsewhere_is_refused(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / snapshot.FOLDER).symlink_to(tmp_path)
    with pytest.raises(UserError, match="belongs to another user"):
        take(tmp_path / "run", graph, "A")


def test_what_is_pickled_is_a_path() -> None:
    rank = pickle.loads(pickle.dumps(Rank("some/where")))
    assert vars(rank) == {"directory": "some/where"}


@pytest.mark.parametrize(("status", "log"), [(0, "log"), (75, "log"), (75, "/dev/full")])
def test_the_script_runs_in_a_strange_place(graph: Graph, tmp_path: Path, status: int, log: str) -> None:
    """Run by bash with a srun that notes its arguments; settle is told the ranks' status, whatever the log takes."""
    directory = tmp_path / STRANGE / "run"
    changed = with_cluster(graph, "cluster.setup=['export NOTE=\"a b\"']")
    take(directory, changed, "A", {"chdir": str(tmp_path / STRANGE), "exclusive": ""})
    fakes = tmp_path / "bin"
    for name, line in {
        "srun": f'printf "%s\\n" "$NOTE" "$@" > "{tmp_path}/arguments"; touch "$DONE"; exit {status}',
        "scontrol": 'echo "$@" >> "$FAKES/asked"; echo JobState=RUNNING Restarts=0; exit 0',
        "squeue": "true",
    }.items():
        write_script(fakes / name, line, "/bin/bash")
    (fakes / "python").symlink_to(sys.executable)
    environment = os.environ | {"PATH": f"{fakes}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "FAKES": str(fakes)}
    environment["DONE"] = str(directory / DONE)
    script = (directory / snapshot.SCRIPT).read_text()
    assert "#SBATCH --exclusive\n" in script
    # the real one would be ended by SLURM
    code = directory / snapshot.FOLDER / "code" / "launch" / "attempt.py"
    code.write_text(code.read_text().replace("_SETTLED_WITHIN_S = 120", "_SETTLED_WITHIN_S = 0"))
    with Path(tmp_path, log).open("w+") as written:
        command = ["bash", str(directory / snapshot.SCRIPT)]
        done = subprocess.run(command, env=environment, stdout=written, stderr=written, check=False)
    assert done.returncode == status, log == "log" and (tmp_path / log).read_text()
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[0] == "a b"
    assert str(directory) in arguments
    assert f"--output={directory / snapshot.LOGS / '%j_%t.log'}" in arguments
    first, last = history(directory)
    assert (first["event"], first["attempt"]) == ("begins", "7:0")
    assert last["outcome"] == ("goes on" if status else "finished")
    requests = (fakes / "asked").read_text() if status else ""
    assert ("requeue 7" in requests) == bool(status)


def test_a_rank_whose_log_is_full_finishes_its_stage(graph: Graph, tmp_path: Path) -> None:
    short = with_cluster(graph, "train.iterations=2")
    directory = short.stages["A"].directory
    take(directory, short, "A")
    program = tmp_path / "program.py"
    streams = stream_breaking_code("stdout", "stderr", full=True)
    program.write_text(f"{streams}\nfrom launch.rank import Rank\nRank({str(directory)!r})()\n")
    assert fork_program(program).returncode == 0
    assert (directory / DONE).exists()


def test_apptainer_sees_what_a_job_needs(graph: Graph, images: Path, tmp_path: Path) -> None:
    config = with_cluster(graph, "cluster.container=image.sif", "run.device=cuda").stages["A"]
    command = snapshot.python(config)
    assert command.startswith("apptainer exec --nv --bind ")
    assert f"--bind {images}" in command
    assert command.endswith(" image.sif python")
    assert not any("container" in word for word in snapshot.srun_arguments(tmp_path, config))


def test_pyxis_gets_its_image_through_srun(graph: Graph, images: Path, tmp_path: Path) -> None:
    config = with_cluster(graph, "cluster.container=nvcr.io#nvidia/pytorch:26.01-py3").stages["A"]
    arguments = snapshot.srun_arguments(tmp_path, config)
    assert "--container-image=nvcr.io#nvidia/pytorch:26.01-py3" in arguments
    assert f"{images}:{images}" in next(word for word in arguments if word.startswith("--container-mounts="))
    assert snapshot.python(config) == "python"
