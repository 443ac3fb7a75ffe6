"""Submits a configuration's stage graph to SLURM.

python launch/submit.py --config configs/vgg_D.yaml --nodes 4             # what is not finished, in order
python launch/submit.py --config configs/vgg_D.yaml --nodes 4 --dry-run   # what would be submitted
python launch/submit.py --config configs/vgg_D.yaml --local               # the same graph on this machine
python launch/submit.py status --config configs/vgg_D.yaml                # and cancel, logs
"""

import copy
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

try:
    import typer
except ModuleNotFoundError as error:  # the first package that is not Python's own
    print(f"submit.py: {error}; activate the environment first: source .venv/bin/activate", file=sys.stderr)
    sys.exit(2)

from launch import slurm, snapshot
from launch.stages import Stage, newest_logs, stages_of, status_of
from vggrepro.cli.options import ConfigOption, JsonOption, SeedsOption, SetOption, print_json
from vggrepro.config.parsing import override
from vggrepro.config.recipes import Graph, load_graph
from vggrepro.config.strict_yaml import load_yaml
from vggrepro.errors import UserError, run_app
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.preflight.cost import Cheaper
from vggrepro.preflight.images import require_sets
from vggrepro.preflight.machine import Machine
from vggrepro.preflight.plan import plan
from vggrepro.preflight.plan_text import cheaper_lines
from vggrepro.ranks.topology import divisors
from vggrepro.storage.status import is_finished

_ENDING_S = 60
_NO_SLURM = "sbatch is missing, or its controller does not answer"
_WORTH_SAYING_GPU_HOURS = 0.1
OWN_OPTIONS = {"job-name", "comment", "chdir", "output", "error", "signal", "requeue", "dependency", "array"}
"""Options of sbatch that the way jobs are followed and come back depends on."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Verb(typer.core.TyperCommand):
    """A verb that takes the options of the submission, too: one copies that line and puts the verb in."""

    def get_params(self, ctx: Any) -> list[Any]:  # of click, or of Typer's copy of it
        """Its own parameters, and those of a submission, which change nothing here."""
        own = super().get_params(ctx)
        for parameter in ctx.parent.command.params:
            if parameter.name not in {"dry_run", "local", "as_json", *(one.name for one in own)}:
                ignored = copy.copy(parameter)
                ignored.expose_value, ignored.hidden = False, True
                own.append(ignored)
        return own


def sbatch_options(stage: Stage) -> dict[str, str | int]:
    """What is asked of SLURM for one stage, by sbatch's long names: one task a GPU. Raises UserError."""
    config, cluster = stage.config, stage.config.cluster
    if own := OWN_OPTIONS & cluster.sbatch.keys():
        raise UserError(f"cluster.sbatch.{sorted(own)[0]} is set by submit.py itself; remove it")
    minutes = max(1, round(cluster.hours * 60))
    if minutes * 60 <= cluster.warning_s:
        raise UserError(
            f"a time limit of {minutes} min leaves nothing beside cluster.warning_s={cluster.warning_s}; "
            f"raise --time or lower cluster.warning_s"
        )
    directory = stage.directory
    if "%" in str(directory) or "\\" in str(directory):
        raise UserError(f"{directory}: SLURM expands % and \\ in names of logs; choose another run.root")
    asked: dict[str, str | int | None] = {
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
        "mem": cluster.mem,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
    }
    return {key: item for key, item in asked.items() if item is not None} | cluster.sbatch


def check(graph: Graph) -> None:
    """What can be known before anything is submitted. Raises UserError."""
    for name, config in graph.stages.items():
        is_finished(config)
        require_class_scores(architecture_of(config))
        cluster, ranks = config.cluster, config.cluster.nodes * config.cluster.gpus_per_node
        if config.train.batch % ranks:
            raise UserError(
                f"{cluster.nodes} nodes of {cluster.gpus_per_node} GPUs make {ranks} ranks, which do not divide "
                f"train.batch={config.train.batch}; ask for {divisors(config.train.batch)} ranks"
            )
        data = config.data
        if data.index and not data.index.exists():
            raise UserError(f"data.index={data.index} of stage {name} does not exist; make it with `vggrepro index`")
        if data.boxes and not data.boxes.exists():
            raise UserError(f"data.boxes={data.boxes} of stage {name} does not exist; make it with `vggrepro boxes`")
        if data.root and not data.root.startswith("builtin:") and not Path(data.root).exists():
            raise UserError(f"data.root={data.root} of stage {name} does not exist; set it to the images' place")
        require_sets(config)
        if cluster.container and cluster.container.endswith((".sif", ".sqsh")) and not Path(cluster.container).exists():
            raise UserError(f"container {cluster.container} does not exist; build it, or name an image to be pulled")


def check_slurm(stages: list[Stage]) -> None:
    """Whether SLURM would take the jobs; nothing is submitted. Raises UserError with its answer."""
    asked = set()
    for stage in stages:
        named = {"job-name", "comment", "chdir", "output"}
        options = {key: item for key, item in sbatch_options(stage).items() if key not in named}
        arguments = tuple(f"--{key}={item}" if item != "" else f"--{key}" for key, item in options.items())
        if arguments in asked:
            continue
        asked.add(arguments)
        try:
            slurm.ask("sbatch", "--test-only", *arguments, "--wrap=true")
        except slurm.SlurmError as error:
            known = f"; partitions: {', '.join(slurm.partitions())}" if "partition" in str(error) else ""
            raise UserError(f"SLURM does not take stage {stage.name}: {error}{known}") from None


def submit_stages(graph: Graph, stages: list[Stage]) -> list[Stage]:
    """Submits what is left to do, each stage after the one it starts from; returns all stages with their jobs."""
    done: dict[str, Stage] = {}
    at_work: list[str] = []
    for stage in stages:
        if stage.to_submit:
            after = []
            if stage.parent:
                parent = done[stage.parent].job
                assert parent is not None, stage
                after.append(f"afterok:{parent.id}")
            most = stage.config.cluster.array_parallelism
            if most and len(at_work) >= most and f"afterok:{at_work[-most]}" not in after:
                after.append(f"afterany:{at_work[-most]}")
            number = _submit(graph, stage, ",".join(after))
            stage = replace(stage, state="queued", job=slurm.Job(number, "PENDING", ""))  # noqa: PLW2901
        if stage.job:
            at_work.append(stage.job.id)
        done[stage.name] = stage
    return list(done.values())


def _submit(graph: Graph, stage: Stage, dependency: str) -> str:
    """Submits one stage; returns the job's number. Raises UserError."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("submitit is not installed; install it: docs/install.md") from None
    from launch.rank import Stage as Work

    config, directory, options = stage.config, stage.directory, sbatch_options(stage)
    texts = {key: str(item) for key, item in options.items()}
    snapshot.take(directory, graph, stage.name, texts)
    if dependency:  # one that can no longer be fulfilled ends the job: it must not wait for ever
        texts |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    executor = submitit.SlurmExecutor(folder=directory / snapshot.PICKLES, python=snapshot.python(config))
    executor.update_parameters(
        nodes=config.cluster.nodes,
        ntasks_per_node=config.cluster.gpus_per_node,
        signal_delay_s=config.cluster.warning_s,
        stderr_to_stdout=True,
        wckey=None,  # submitit's default is refused where such keys are checked
        setup=snapshot.setup(directory, config),
        srun_args=snapshot.srun_arguments(directory, config),
        additional_parameters={key.replace("-", "_"): item or True for key, item in texts.items()},
    )
    try:
        return executor.submit(Work(str(directory))).job_id
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(f"SLURM does not take stage {stage.name}: {line}; submit again to go on from there") from None


@contextmanager
def _alone(graph: Graph) -> Iterator[None]:
    """Keeps a second submit.py from submitting the same experiment at the same time. Raises UserError."""
    first = next(iter(graph.stages.values()))
    folder = first.run.root / first.run.experiment
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".submit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another submit.py is submitting {folder} right now; wait for it to end") from None
        yield


def _stages_when_settled(graph: Graph) -> list[Stage]:
    """The stages, once no job of theirs is just ending. Raises UserError."""
    until = time.monotonic() + _ENDING_S
    while True:
        try:
            stages = stages_of(graph, slurm.jobs())
        except slurm.SlurmError as error:
            raise UserError(f"SLURM does not say which jobs there are ({error}); try again later") from None
        ending = [stage for stage in stages if stage.state == "ending"]
        if not ending:
            return stages
        if time.monotonic() > until:
            job = ending[0].job
            assert job is not None
            raise UserError(f"job {job.id} of stage {ending[0].name} is still ending; try again in a minute")
        time.sleep(1)


def _for_slurm(graph: Graph) -> Graph:
    """The graph as jobs run it: where GPUs are asked for, a rank without one must not train on its CPU instead."""
    if os.environ.get("VGGREPRO_FAKE_GPUS"):  # slurm/devcluster
        return graph
    stages = {
        name: override(config, ["run.device=cuda"], config.directory) if config.run.device == "auto" else config
        for name, config in graph.stages.items()
    }
    return replace(graph, stages=stages)


def _forget_launchers() -> None:
    """Variables of a job or of torchrun around this process must not reach the jobs it submits."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VGGREPRO_ATTEMPT")
    for name in list(os.environ):
        if name in ranks or (name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"):
            del os.environ[name]


def _hours(text: str) -> float:
    """Hours of a time limit in any of the forms that sbatch takes."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise UserError(f"--time {text}: expected minutes, HH:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return 24 * int(days or 0) + hours + minutes / 60 + seconds / 3600


def _unnamed_data(graph: Graph) -> str | None:
    """What is wrong where a stage does not say where its images are."""
    for name, config in graph.stages.items():
        if config.data.index is None and config.data.root is None:
            return f"data.root of stage {name} is not set; add --set data.root=FOLDER, or data.index"
    return None


@app.callback(invoke_without_command=True)
def submit(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file, or a name in configs/: a stage or a graph.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines for each stage.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs, and so ranks, on each machine.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="Time limit of one job, as sbatch takes it: 1-12:00:00.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features the machines must have.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Machines not to use.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores of each rank.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of each machine: 64G; 0 is all of it.")] = None,
    array_parallelism: Annotated[int | None, typer.Option(help="Most stages at the same time.")] = None,
    setup: Annotated[list[str], typer.Option(help="A shell line that each job runs first; repeatable.")] = [],  # noqa: B006
    container: Annotated[str | None, typer.Option(help="Image the ranks run in: Apptainer's or Pyxis'.")] = None,
    sbatch: Annotated[list[str], typer.Option(help="Any other option of sbatch: NAME=VALUE or NAME; repeatable.")] = [],  # noqa: B006
    site: Annotated[list[Path], typer.Option("--cluster", help="A site's defaults: configs/cluster/*.yaml.")] = [],  # noqa: B006
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the graph and submit nothing.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the graph on this machine, without SLURM.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit the stages of a configuration that are not finished, each after the one it starts from."""
    if verb := context.invoked_subcommand:
        if dry_run or local:
            raise UserError(f"{'--dry-run' if dry_run else '--local'} is for submissions; leave it out with {verb}")
        context.default_map = {verb: {name: item for name, item in context.params.items() if item}}
        return
    if config is None:
        raise UserError("--config is missing; name a file of configs/, or a verb: status, cancel, logs")
    named: dict[str, Any] = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "hours": _hours(time_limit) if time_limit else None,
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "exclude": exclude,
        "cpus_per_task": cpus_per_task,
        "mem": mem,
        "array_parallelism": array_parallelism,
        "setup": setup or None,
        "container": container,
        "sbatch": {key.removeprefix("--"): item for key, _, item in (text.partition("=") for text in sbatch)} or None,
    }
    # JSON is YAML: texts stay texts, whatever they look like
    options = [f"cluster.{key}={json.dumps(item)}" for key, item in named.items() if item is not None]
    graph = load_graph(config, [*_site_defaults(site), *options, *changes], seeds)
    if local:
        from vggrepro.pipeline.graph import reproduce

        reproduce(graph)
        return
    check(graph)
    reachable = slurm.is_reachable()
    if dry_run:
        stages = stages_of(graph, slurm.jobs() if reachable else {})
        to_submit = [stage for stage in stages if stage.to_submit]
        if reachable:
            check_slurm(to_submit)
        _print_graph(graph, stages, as_json)
        if not reachable:
            print(f"submit.py: SLURM was not asked: {_NO_SLURM}", file=sys.stderr)
        if unnamed := _unnamed_data(graph):
            print(f"submit.py: to be set before it is submitted: {unnamed}", file=sys.stderr)
        return
    if not reachable:
        raise UserError(f"SLURM is not here ({_NO_SLURM}); try --local")
    if unnamed := _unnamed_data(graph):
        raise UserError(unnamed)
    graph = _for_slurm(graph)
    _forget_launchers()
    with _alone(graph):
        stages = _stages_when_settled(graph)
        check_slurm([stage for stage in stages if stage.to_submit])
        _print_graph(graph, submit_stages(graph, stages), as_json)


def _site_defaults(files: list[Path]) -> list[str]:
    settings = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster {file} cannot be read ({error}); name another file") from None
        tree = load_yaml(text, f"--cluster {file}")
        if not isinstance(tree, dict) or set(tree) != {"cluster"} or not isinstance(tree["cluster"], dict):
            raise UserError(f"--cluster {file}: expected one section, cluster; put other settings into --config")
        settings += [f"cluster.{key}={json.dumps(item)}" for key, item in tree["cluster"].items()]
    return settings


def _print_graph(graph: Graph, stages: list[Stage], as_json: bool) -> None:
    tables = next(iter(graph.stages.values())).run.root / graph.name / "tables.md"
    shown = next((stage for stage in stages if stage.state != "finished"), stages[0])
    sbatch = {key: item for key, item in sbatch_options(shown).items() if key not in ("job-name", "comment", "output")}
    cost = _cost(graph, stages)
    if as_json:
        reports = [stage.report() for stage in stages]
        print_json({"stages": reports, "sbatch": sbatch, "cost": cost, "tables": str(tables)})
        return
    for stage in stages:
        cluster = stage.config.cluster
        line = f"{stage.name:12} {stage.state:9} {cluster.nodes} x {cluster.gpus_per_node} GPUs"
        line += f"  job {stage.job.id}" if stage.job else ""
        print(line + (f"  after {stage.parent}" if stage.parent else ""))
    print(f"each stage is evaluated in its own job, which then writes {tables}")
    if cost and cost["gpu_hours"] >= _WORTH_SAYING_GPU_HOURS:
        binds: dict[str, list[str]] = {}
        for name, part in cost["binds"].items():
            binds.setdefault(part, []).append(name)
        print(
            f"about {cost['gpu_hours']:,.0f} GPU-hours for what is not trained, if these were {cost['gpu']} "
            f"({cost['rate']}); `vggrepro plan` says more"
        )
        print("what binds: " + "; ".join(f"{part} ({', '.join(names)})" for part, names in binds.items()))
        for line in cheaper_lines([Cheaper(**one) for one in cost["cheaper"]]):
            print(f"cheaper: {line}")
    print("sbatch: " + "  ".join(f"--{key}={item}" if item != "" else f"--{key}" for key, item in sbatch.items()))


def _cost(graph: Graph, stages: list[Stage]) -> dict[str, Any] | None:
    """GPU-hours of the stages that are not trained, by `vggrepro plan` with its assumptions; None without any.

    With what binds each of them, and the settings that would make them cheaper.
    """
    left = {stage.name for stage in stages if stage.state not in ("finished", "trained")}
    cluster = stages[0].config.cluster
    machine = Machine(cluster.nodes, cluster.gpus_per_node)
    if not left or any(stage.config.run.device == "cpu" for stage in stages):
        return None
    to_train = replace(
        graph,
        stages={name: config for name, config in graph.stages.items() if name in left},
        parents={name: parent if parent in left else None for name, parent in graph.parents.items() if name in left},
    )
    made = plan(to_train, machine)
    return {
        "gpu_hours": made.total_gpu_hours,
        "gpu": machine.gpu,
        "rate": made.stages[0].rate_from,
        "binds": {one.name: one.binds for one in made.stages},
        "cheaper": [asdict(one) for one in made.cheaper],
    }


def _known_stages(config: Path, changes: list[str], seeds: str | None) -> list[Stage]:
    """The stages with their jobs, as far as SLURM can be asked."""
    graph = load_graph(config, changes, seeds)
    try:
        return stages_of(graph, slurm.jobs() if slurm.is_reachable() else {})
    except slurm.SlurmError as error:
        print(f"submit.py: SLURM does not answer ({error}); what follows is from the disk", file=sys.stderr)
        return stages_of(graph, {})


@app.command(cls=_Verb)
def status(
    config: ConfigOption,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where each stage stands, and why one does not go on."""
    stages = _known_stages(config, changes, seeds)
    reports = status_of(stages)
    if as_json:
        print_json({"stages": reports})
        return
    for report in reports:
        done = f"step {report['step']:,} of {report['iterations']:,}"
        job = f"  job {report['job']}" if report["job"] else ""
        again = f"  attempt {report['attempts']}" if report["attempts"] > 1 else ""
        print(f"{report['name']:12} {report['state']:13} {done}{job}{again}")
        if report["reason"]:
            print(f"{'':12} {report['reason']}")


@app.command(cls=_Verb)
def cancel(config: ConfigOption, changes: SetOption = [], seeds: SeedsOption = None) -> None:  # noqa: B006
    """Cancel the jobs of a graph; a later submission goes on where they were."""
    jobs = [stage.job for stage in _known_stages(config, changes, seeds) if stage.job]
    if not jobs:
        print("no job of this graph waits or runs")
        return
    try:
        slurm.cancel(job.id for job in reversed(jobs))  # children first, or one might begin
    except slurm.SlurmError as error:
        raise UserError(f"SLURM does not cancel the jobs: {error}") from None
    print(f"cancelled {', '.join(job.id for job in jobs)}")


@app.command(cls=_Verb)
def logs(
    config: ConfigOption,
    stage: Annotated[str | None, typer.Option(help="Name of the stage; default: the one that wrote last.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
) -> None:
    """The newest log of a stage: the job's own, which says how it ended, and that of the rank that wrote last."""
    graph = load_graph(config, changes, seeds)
    if stage is not None and stage not in graph.stages:
        raise UserError(f"--stage {stage} is none of {', '.join(graph.stages)}")
    named = [graph.stages[stage]] if stage else list(graph.stages.values())
    found = [files for one in named if (files := newest_logs(one.directory))]
    if not found:
        raise UserError(f"no log in {', '.join(str(one.directory) for one in named)} yet; see `submit.py status`")
    files = max(found, key=lambda files: max(file.stat().st_mtime for file in files))
    follows = ["--follow=name"] if follow else []
    os.execvp("tail", ["tail", "--verbose", f"--lines={lines}", *follows, *map(str, files)])


if __name__ == "__main__":
    run_app("submit.py", app)
