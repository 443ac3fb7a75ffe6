"""Submits the stage graph of a configuration to SLURM.

python launch/submit.py --config configs/vgg_D.yaml --nodes 4             # the unfinished stages, in order
python launch/submit.py --config configs/vgg_D.yaml --nodes 4 --dry-run   # print them only
python launch/submit.py --config configs/vgg_D.yaml --local               # the same graph on this machine
python launch/submit.py status --config configs/vgg_D.yaml                # and cancel, logs
"""

import copy
import json
import os
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout takes precedence over an installation

try:
    import typer
except ModuleNotFoundError as error:  # the first third-party import
    print(f"submit.py: {error}; activate the environment first: source .venv/bin/activate", file=sys.stderr)
    sys.exit(2)

from launch import slurm
from launch.jobs import check, check_slurm, sbatch_options, submit_graph
from launch.stages import Stage, newest_logs, stages_of, status_of
from vggrepro.cli.options import ConfigOption, JsonOption, SeedsOption, SetOption, print_json
from vggrepro.config.cluster import Cluster
from vggrepro.config.recipes import Graph, load_graph
from vggrepro.config.strict_yaml import load_yaml
from vggrepro.errors import UserError, run_app
from vggrepro.preflight.cost import Plan
from vggrepro.preflight.machine import Machine
from vggrepro.preflight.plan import plan
from vggrepro.preflight.plan_text import cheaper_lines

_NO_SLURM = "sbatch is missing, or its controller does not answer"
_LEAST_SHOWN_GPU_HOURS = 0.1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Verb(typer.core.TyperCommand):
    """A verb that also accepts the options of a submission, so that a verb can be put into that command line."""

    def get_params(self, ctx: Any) -> list[Any]:  # types of click, or of Typer's copy of it
        """Returns the verb's parameters and those of a submission, which have no effect here."""
        parameters = super().get_params(ctx)
        for parameter in ctx.parent.command.params:
            if parameter.name not in {"dry_run", "local", "as_json", *(known.name for known in parameters)}:
                ignored = copy.copy(parameter)
                ignored.expose_value, ignored.hidden = False, True
                parameters.append(ignored)
        return parameters


@app.callback(invoke_without_command=True)
def submit(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file, or a name in configs/, of a stage or a graph.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes per stage.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs, and so ranks, per node.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="Time limit per job in sbatch's format, e.g. 1-12:00:00.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Required node features.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Nodes to exclude.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="CPU cores per rank.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory per node, e.g. 64G; 0 is all of it.")] = None,
    array_parallelism: Annotated[int | None, typer.Option(help="Maximum number of stages at the same time.")] = None,
    setup: Annotated[list[str], typer.Option(help="Shell line that each job runs first; repeatable.")] = [],  # noqa: B006
    container: Annotated[str | None, typer.Option(help="Container image for the ranks, of Apptainer or Pyxis.")] = None,
    sbatch: Annotated[list[str], typer.Option(help="Other option of sbatch, NAME=VALUE or NAME; repeatable.")] = [],  # noqa: B006
    site: Annotated[list[Path], typer.Option("--cluster", help="Defaults of a site: configs/cluster/*.yaml.")] = [],  # noqa: B006
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the graph without submitting it.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the graph on this machine, without SLURM.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit the unfinished stages of a configuration, each after its parent."""
    if verb := context.invoked_subcommand:
        if dry_run or local:
            raise UserError(f"{'--dry-run' if dry_run else '--local'} is not an option of {verb}; remove it")
        context.default_map = {verb: {name: item for name, item in context.params.items() if item}}
        return
    if config is None:
        raise UserError("--config is missing; name a file of configs/, or a verb: status, cancel, logs")
    graph = load_graph(config, [*_site_defaults(site), *_cluster_settings(context.params), *changes], seeds)
    if local:
        from vggrepro.pipeline.graph import reproduce

        reproduce(graph)
        return
    check(graph)
    reachable = slurm.is_reachable()
    unnamed = [
        f"data.root of stage {name} is not set; add --set data.root=FOLDER, or data.index"
        for name, stage in graph.stages.items()
        if stage.data.index is None and stage.data.root is None
    ]
    if dry_run:
        stages = stages_of(graph, slurm.jobs() if reachable else {})
        if reachable:
            check_slurm([stage for stage in stages if stage.to_submit])
        _print_graph(graph, stages, as_json)
        if not reachable:
            print(f"submit.py: SLURM was not queried: {_NO_SLURM}", file=sys.stderr)
        if unnamed:
            print(f"submit.py: required before submission: {unnamed[0]}", file=sys.stderr)
        return
    if not reachable:
        raise UserError(f"SLURM is not available ({_NO_SLURM}); try --local")
    if unnamed:
        raise UserError(unnamed[0])
    _print_graph(graph, submit_graph(graph), as_json)


def _cluster_settings(options: dict[str, Any]) -> list[str]:
    """Translates the options that name cluster settings, and `--time`, to `section.key=value`. Raises UserError."""
    named = {key: item for key, item in options.items() if key in Cluster.model_fields and item not in (None, [], ())}
    if options["time_limit"]:
        named["hours"] = _hours(options["time_limit"])
    if "sbatch" in named:
        pairs = (text.partition("=") for text in named["sbatch"])
        named["sbatch"] = {key.removeprefix("--"): item for key, _, item in pairs}
    # JSON is YAML, and its quotes keep strings that look like numbers
    return [f"cluster.{key}={json.dumps(item)}" for key, item in named.items()]


def _hours(text: str) -> float:
    """Parses a time limit in any format of sbatch into hours."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise UserError(f"--time {text}: expected minutes, HH:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return 24 * int(days or 0) + hours + minutes / 60 + seconds / 3600


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
    cluster = stages[0].config.cluster
    machine = Machine(cluster.nodes, cluster.gpus_per_node)
    cost = _cost(graph, stages, machine)
    binds = {stage.name: stage.binds for stage in cost.stages} if cost else {}
    if as_json:
        priced = cost and {
            "gpu_hours": cost.total_gpu_hours,
            "gpu": machine.gpu,
            "rate": cost.stages[0].rate_from,
            "binds": binds,
            "cheaper": [asdict(change) for change in cost.cheaper],
        }
        reports = [stage.report() for stage in stages]
        print_json({"stages": reports, "sbatch": sbatch, "cost": priced, "tables": str(tables)})
        return
    for stage in stages:
        cluster = stage.config.cluster
        line = f"{stage.name:12} {stage.state:9} {cluster.nodes} x {cluster.gpus_per_node} GPUs"
        line += f"  job {stage.job.id}" if stage.job else ""
        print(line + (f"  after {stage.parent}" if stage.parent else ""))
    print(f"each job also evaluates its stage and updates {tables}")
    if cost and cost.total_gpu_hours >= _LEAST_SHOWN_GPU_HOURS:
        parts = {part: ", ".join(name for name in binds if binds[name] == part) for part in binds.values()}
        print(
            f"about {cost.total_gpu_hours:,.0f} GPU-hours for the untrained stages on {machine.gpu} "
            f"({cost.stages[0].rate_from}); `vggrepro plan` has the details"
        )
        print("bottleneck: " + "; ".join(f"{part} ({names})" for part, names in parts.items()))
        for line in cheaper_lines(cost.cheaper):
            print(f"cheaper: {line}")
    print("sbatch: " + "  ".join(map(slurm.option, sbatch, sbatch.values())))


def _cost(graph: Graph, stages: list[Stage], machine: Machine) -> Plan | None:
    """Plans the untrained stages with the assumptions of `vggrepro plan`; None without any."""
    left = {stage.name for stage in stages if stage.state not in ("finished", "trained")}
    if not left or any(stage.config.run.device == "cpu" for stage in stages):
        return None
    to_train = replace(
        graph,
        stages={name: config for name, config in graph.stages.items() if name in left},
        parents={name: parent if parent in left else None for name, parent in graph.parents.items() if name in left},
    )
    return plan(to_train, machine)


def _known_stages(config: Path, changes: list[str], seeds: str | None) -> list[Stage]:
    """Returns the stages, with their jobs if SLURM answers."""
    graph = load_graph(config, changes, seeds)
    try:
        return stages_of(graph, slurm.jobs() if slurm.is_reachable() else {})
    except slurm.SlurmError as error:
        print(f"submit.py: SLURM does not answer ({error}); the states are from the disk", file=sys.stderr)
        return stages_of(graph, {})


@app.command(cls=_Verb)
def status(
    config: ConfigOption,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the state of each stage, and why a stage is not progressing."""
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
    """Cancel the jobs of a graph; a later submission resumes them."""
    jobs = [stage.job for stage in _known_stages(config, changes, seeds) if stage.job]
    if not jobs:
        print("no job of this graph is pending or running")
        return
    try:
        slurm.query("scancel", *(job.id for job in reversed(jobs)))  # children first, or one might begin
    except slurm.SlurmError as error:
        raise UserError(f"SLURM refused to cancel the jobs: {error}") from None
    print(f"cancelled {', '.join(job.id for job in jobs)}")


@app.command(cls=_Verb)
def logs(
    config: ConfigOption,
    stage: Annotated[str | None, typer.Option(help="Name of the stage; default: the stage that wrote last.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Number of lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log as it grows.")] = False,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
) -> None:
    """Print the newest log of a stage: the job's, with its outcome, and that of the rank that wrote last."""
    graph = load_graph(config, changes, seeds)
    if stage is not None and stage not in graph.stages:
        raise UserError(f"--stage {stage} is not in the graph; choose from {', '.join(graph.stages)}")
    named = [graph.stages[stage]] if stage else list(graph.stages.values())
    found = [files for config in named if (files := newest_logs(config.directory))]
    if not found:
        raise UserError(f"no log in {', '.join(str(config.directory) for config in named)} yet; see `submit.py status`")
    files = max(found, key=lambda files: max(file.stat().st_mtime for file in files))
    follows = ["--follow=name"] if follow else []
    os.execvp("tail", ["tail", "--verbose", f"--lines={lines}", *follows, *map(str, files)])


if __name__ == "__main__":
    run_app("submit.py", app)
