"""Jobs of a stage graph: options of sbatch, checks before submission, and the submission."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launch import slurm, snapshot
from launch.rank import Rank
from launch.stages import Stage, stages_of
from vggrepro.config.parsing import override
from vggrepro.config.recipes import Graph
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.preflight.images import require_sets
from vggrepro.ranks.topology import divisors
from vggrepro.storage.status import is_finished

RESERVED_OPTIONS = {"job-name", "comment", "chdir", "output", "error", "signal", "requeue", "dependency", "array"}
"""Options of sbatch that status and requeueing depend on."""
_ENDING_S = 60


def sbatch_options(stage: Stage) -> dict[str, str | int]:
    """Returns the options of sbatch for a stage, by long names, with one task per GPU. Raises UserError."""
    config, cluster = stage.config, stage.config.cluster
    if reserved := RESERVED_OPTIONS & cluster.sbatch.keys():
        raise UserError(f"cluster.sbatch.{sorted(reserved)[0]} is set by submit.py; remove it")
    minutes = max(1, round(cluster.hours * 60))
    if minutes * 60 <= cluster.warning_s:
        raise UserError(
            f"a time limit of {minutes} min must exceed cluster.warning_s={cluster.warning_s}; "
            f"raise --time or lower cluster.warning_s"
        )
    directory = stage.directory
    if "%" in str(directory) or "\\" in str(directory):
        raise UserError(f"{directory}: SLURM expands % and \\ in log names; choose another run.root")
    options: dict[str, str | int | None] = {
        "job-name": f"{config.run.experiment}.{stage.name}",
        "comment": slurm.key_of(directory),
        "chdir": str(Path.cwd()),
        "output": str(directory / snapshot.LOGS / "%j.log"),
        "open-mode": "append",
        "requeue": "",
        "signal": f"USR2@{cluster.warning_s}",
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.gpus_per_node,
        "gpus-per-node": None if config.run.device == "cpu" else cluster.gpus_per_node,
        "time": minutes,
        "cpus-per-task": cluster.cpus_per_task,
        **{key: getattr(cluster, key) for key in ("mem", "partition", "account", "qos", "constraint", "exclude")},
    }
    return {key: item for key, item in options.items() if item is not None} | cluster.sbatch


def check(graph: Graph) -> None:
    """Checks a graph before anything is submitted. Raises UserError."""
    for name, config in graph.stages.items():
        is_finished(config)
        require_class_scores(architecture_of(config))
        cluster, ranks = config.cluster, config.cluster.nodes * config.cluster.gpus_per_node
        if config.train.batch % ranks:
            raise UserError(
                f"{cluster.nodes} nodes with {cluster.gpus_per_node} GPUs make {ranks} ranks, which do not divide "
                f"train.batch={config.train.batch}; request {divisors(config.train.batch)} ranks"
            )
        data = config.data
        root = None if data.root and data.root.startswith("builtin:") else data.root
        for key, place, remedy in (
            ("index", data.index, "make it with `vggrepro index`"),
            ("boxes", data.boxes, "make it with `vggrepro boxes`"),
            ("root", root, "set it to the folder of the images"),
        ):
            if place and not Path(place).exists():
                raise UserError(f"data.{key}={place} of stage {name} does not exist; {remedy}")
        require_sets(config)
        if cluster.container and cluster.container.endswith((".sif", ".sqsh")) and not Path(cluster.container).exists():
            raise UserError(f"container {cluster.container} does not exist; build it, or name an image to pull")


def check_slurm(stages: list[Stage]) -> None:
    """Checks by `sbatch --test-only` that SLURM accepts the jobs. Raises UserError with SLURM's message."""
    tested = set()
    for stage in stages:
        named = {"job-name", "comment", "chdir", "output"}
        arguments = tuple(slurm.option(*pair) for pair in sbatch_options(stage).items() if pair[0] not in named)
        if arguments in tested:
            continue
        tested.add(arguments)
        try:
            slurm.query("sbatch", "--test-only", *arguments, "--wrap=true")
        except slurm.SlurmError as error:
            text = f"SLURM rejected stage {stage.name}: {error}"
            if "partition" in str(error):
                names = {name.strip() for name in slurm.query("sinfo", "--noheader", "--format=%R").splitlines()}
                text += f"; partitions: {', '.join(sorted(names))}"
            raise UserError(text) from None


def submit_graph(graph: Graph) -> list[Stage]:
    """Submits the unfinished stages of a graph once no job is ending; returns all stages. Raises UserError."""
    if not os.environ.get("VGGREPRO_FAKE_GPUS"):  # slurm/devcluster
        # if GPUs are requested, a rank without a GPU must fail instead of training on its CPU
        stages = {
            name: override(config, ["run.device=cuda"], config.directory) if config.run.device == "auto" else config
            for name, config in graph.stages.items()
        }
        graph = replace(graph, stages=stages)
    _forget_launchers()
    with _alone(graph):
        settled = _stages_when_settled(graph)
        check_slurm([stage for stage in settled if stage.to_submit])
        return submit_stages(graph, settled)


def submit_stages(graph: Graph, stages: list[Stage]) -> list[Stage]:
    """Submits the unfinished stages, each after its parent; returns all stages with their jobs."""
    done: dict[str, Stage] = {}
    active: list[str] = []
    text = snapshot.resolved(graph)
    for stage in stages:
        if stage.to_submit:
            after = []
            if stage.parent:
                parent = done[stage.parent].job
                assert parent is not None, stage
                after.append(f"afterok:{parent.id}")
            most = stage.config.cluster.array_parallelism
            if most and len(active) >= most and f"afterok:{active[-most]}" not in after:
                after.append(f"afterany:{active[-most]}")
            number = _submit(text, stage, ",".join(after))
            stage = replace(stage, state="queued", job=slurm.Job(number, "PENDING", ""))  # noqa: PLW2901
        if stage.job:
            active.append(stage.job.id)
        done[stage.name] = stage
    return list(done.values())


def _submit(graph: str, stage: Stage, dependency: str) -> str:
    """Submits a stage; returns the job's number. Raises UserError."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("submitit is not installed; install it: docs/install.md") from None

    config, directory = stage.config, stage.directory
    options = {key: str(item) for key, item in sbatch_options(stage).items()}
    snapshot.write(directory, graph, stage.name, config, options)
    if dependency:  # SLURM must cancel a job whose dependency can no longer be satisfied
        options |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    executor = submitit.SlurmExecutor(folder=directory / snapshot.PICKLES, python=snapshot.python(config))
    executor.update_parameters(
        nodes=config.cluster.nodes,
        ntasks_per_node=config.cluster.gpus_per_node,
        signal_delay_s=config.cluster.warning_s,
        stderr_to_stdout=True,
        wckey=None,  # sites that check such keys reject submitit's default
        setup=snapshot.setup(directory, config),
        srun_args=snapshot.srun_arguments(directory, config),
        additional_parameters={key.replace("-", "_"): item or True for key, item in options.items()},
    )
    try:
        return executor.submit(Rank(str(directory))).job_id
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(f"SLURM rejected stage {stage.name}: {line}; submit again to continue from there") from None


@contextmanager
def _alone(graph: Graph) -> Iterator[None]:
    """Locks an experiment against a second submit.py. Raises UserError."""
    first = next(iter(graph.stages.values()))
    folder = first.run.root / first.run.experiment
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".submit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another submit.py is submitting {folder}; wait until it ends") from None
        yield


def _stages_when_settled(graph: Graph) -> list[Stage]:
    """Waits until no job of the graph is ending; returns the stages. Raises UserError."""
    until = time.monotonic() + _ENDING_S
    while True:
        try:
            stages = stages_of(graph, slurm.jobs())
        except slurm.SlurmError as error:
            raise UserError(f"SLURM does not list the jobs ({error}); try again later") from None
        ending = next((stage for stage in stages if stage.state == "ending"), None)
        if ending is None:
            return stages
        if time.monotonic() > until:
            assert ending.job is not None
            raise UserError(f"job {ending.job.id} of stage {ending.name} is still ending; try again in a minute")
        time.sleep(1)


def _forget_launchers() -> None:
    """Removes variables of a surrounding job or torchrun, which must not reach the submitted jobs."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VGGREPRO_ATTEMPT")
    for name in list(os.environ):
        if name in ranks or (name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"):
            del os.environ[name]
