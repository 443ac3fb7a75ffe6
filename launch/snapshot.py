"""Snapshot that a submission writes into a stage's run directory: code, resolved configuration, batch script.

    submission/graph.yaml       every stage of the graph, resolved
               stage            the name of this stage
               code/            vggrepro and launch at submission, and the commit
               submit.sbatch    the job without submitit: `sbatch submit.sbatch` resumes from the newest checkpoint
               submitit/        submitit's pickles
    logs/                       JOB.log of the job, JOB_RANK.log of each rank

The folder `submission` is accessible to its user only: unpickling another user's file would run that user's code.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from launch.slurm import option
from vggrepro.config.recipes import Graph
from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.storage.environment import environment

FOLDER = Path("submission")
GRAPH = FOLDER / "graph.yaml"
STAGE = FOLDER / "stage"
SCRIPT = FOLDER / "submit.sbatch"
PICKLES = FOLDER / "submitit"
LOGS = Path("logs")

Options = Mapping[str, str]
"""Options of sbatch by their long names; an empty text for those without a value."""

_ROOT = Path(__file__).resolve().parents[1]


def resolved(graph: Graph) -> str:
    """Returns all stages of a graph as YAML. Call it once per graph: it is slow."""
    stages = {}
    for name, config in graph.stages.items():
        tree = config.model_dump(mode="json")
        stages[name] = tree | {"run": tree["run"] | {"name": name, "parent": graph.parents[name]}}
    return yaml.safe_dump({"stages": stages}, sort_keys=False, allow_unicode=True)


def write(directory: Path, graph: str, name: str, config: Config, options: Options) -> None:
    """Writes the snapshot of a stage of a `resolved` graph, replacing an earlier one.

    Raises UserError if the folder belongs to another user.
    """
    final = directory / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    (directory / LOGS).mkdir(exist_ok=True)
    if final.exists() and (final.is_symlink() or final.stat().st_uid != os.geteuid()):
        raise UserError(f"{final} belongs to another user, whose code a job must not run; use another run.experiment")
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(mode=0o700)
    (directory / PICKLES).mkdir()
    for package in ("vggrepro", "launch"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(_ROOT / package, final / "code" / package, ignore=unwanted)
    origin = environment()
    commit = {key: origin[key] for key in ("git_commit", "git_dirty")}
    (final / "code" / "commit.json").write_text(json.dumps(commit) + "\n")
    (directory / GRAPH).write_text(graph)
    (directory / STAGE).write_text(name + "\n")
    script = directory / SCRIPT
    script.write_text(_batch_script(directory, config, options))
    script.chmod(0o700)


def _batch_script(directory: Path, config: Config, options: Options) -> str:
    """Returns the job as a script for sbatch."""
    quoted = {key: value and shlex.quote(value) for key, value in options.items()}
    directives = [f"#SBATCH {option(key, value)}" for key, value in quoted.items()]
    srun = shlex.join(["srun", "--unbuffered", *srun_arguments(directory, config)])
    command = f"{srun} {python(config)} -u -m launch.rank {shlex.quote(str(directory))}"
    return "\n".join(["#!/bin/bash", *directives, "", *setup(directory, config), "", command, ""])


def setup(directory: Path, config: Config) -> list[str]:
    """Returns the lines of a job's script that precede the start of its ranks."""
    interpreter = shlex.quote(sys.executable)
    quoted = shlex.quote(str(directory))
    code = shlex.quote(str(directory / FOLDER / "code"))
    return [
        "# the snapshot's code, not that of the folder from which the job was submitted",
        f"export PYTHONSAFEPATH=1 PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
        'export VGGREPRO_ATTEMPT="$SLURM_JOB_ID:${SLURM_RESTART_COUNT:-0}"',
        f"export VGGREPRO_MAX_FAILURES={config.cluster.max_failures}",
        f"settle() {{ {interpreter} -m launch.attempt settle {quoted} $?; exit $?; }}",
        "trap settle EXIT",
        "# the shell survives the signals that end its ranks: settle queries SLURM for their cause",
        "trap : TERM USR2",
        *config.cluster.setup,
        f"{interpreter} -m launch.attempt begin {quoted} || exit $?",
    ]


def srun_arguments(directory: Path, config: Config) -> list[str]:
    """Returns the options of srun: a failed rank ends the others; each rank has its log."""
    logs = str(directory / LOGS / "%j_%t.log")
    arguments = ["--kill-on-bad-exit=1", "--open-mode=append", f"--output={logs}", f"--error={logs}"]
    if config.cluster.cpus_per_task:  # since 22.05 srun does not inherit it from sbatch
        arguments.append(f"--cpus-per-task={config.cluster.cpus_per_task}")
    image = config.cluster.container
    if image and not _is_apptainer(image):
        mounts = ",".join(f"{place}:{place}" for place in _places(config))
        arguments += [f"--container-image={image}", f"--container-mounts={mounts}"]
        arguments.append(f"--container-workdir={Path.cwd()}")
    return arguments


def python(config: Config) -> str:
    """Returns the ranks' Python as a shell command: the current interpreter, or the container's."""
    image = config.cluster.container
    if not image:
        return shlex.quote(sys.executable)
    if not _is_apptainer(image):
        return "python"
    binds = [word for place in _places(config) for word in ("--bind", place)]
    gpu = [] if config.run.device == "cpu" else ["--nv"]
    return shlex.join(["apptainer", "exec", *gpu, *binds, image, "python"])


def _is_apptainer(image: str) -> bool:
    return image.endswith(".sif") or "://" in image or Path(image).is_dir()


def _places(config: Config) -> list[str]:
    """Returns the folders that a job needs inside a container."""
    named = [Path.cwd(), config.run.root, config.data.index, config.data.boxes, *config.transfer.sets.values()]
    if config.data.root and not config.data.root.startswith("builtin:"):
        named.append(Path(config.data.root))
    places = sorted({str(path.absolute()) for path in named if path is not None and path.exists()})
    for place in places:
        if set(place) & set(":,"):
            raise UserError(
                f"{place} cannot be mounted in a container: its name contains a colon or a comma; rename it"
            )
    return places
