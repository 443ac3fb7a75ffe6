"""Submits a configuration's stage graph.

    python launch/submit.py --config configs/vgg_D.yaml --nodes 4 --dry-run   # what would be submitted, in which order
    python launch/submit.py --config configs/vgg_D.yaml --local               # the same graph on this machine

Submission to SLURM itself comes with the requeue protocol; until then `slurm/train.sbatch` submits one stage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vggrepro.config import Config, Graph, load_graph
from vggrepro.errors import UserError, run_command
from vggrepro.stages import is_finished


def stage_graph(graph: Graph) -> list[dict[str, Any]]:
    """The stages in order, parents first: name, depends_on, nodes, gpus_per_node, state (finished, waiting or ready).

    Raises UserError: ranks that do not divide the batch, a run directory of another configuration.
    """
    finished = {name: is_finished(config) for name, config in graph.stages.items()}
    stages = []
    for name, config in graph.stages.items():
        cluster, ranks = config.cluster, config.cluster.nodes * config.cluster.gpus_per_node
        if config.train.batch % ranks:
            raise UserError(
                f"{cluster.nodes} nodes of {cluster.gpus_per_node} GPUs make {ranks} ranks, which do not divide "
                f"train.batch={config.train.batch}; ask for {_nearest_divisor(config.train.batch, ranks)} ranks"
            )
        parent = graph.parents[name]
        waiting = parent is not None and not finished[parent]
        stages.append(
            {
                "name": name,
                "depends_on": [parent] if waiting else [],
                "nodes": cluster.nodes,
                "gpus_per_node": cluster.gpus_per_node,
                "state": "finished" if finished[name] else "waiting" if waiting else "ready",
                "directory": str(config.directory),
            }
        )
    return stages


def sbatch_parameters(config: Config) -> dict[str, Any]:
    """What is asked of SLURM for one stage: one task a GPU."""
    cluster = config.cluster
    asked = {
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.gpus_per_node,
        "gpus_per_node": cluster.gpus_per_node,
        "time_min": round(cluster.hours * 60),
        "partition": cluster.partition,
        "account": cluster.account,
    }
    return {key: item for key, item in asked.items() if item is not None}


def _nearest_divisor(batch: int, ranks: int) -> int:
    return min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - ranks))


def submit(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file: a stage, or a graph of stages.")],
    nodes: Annotated[int | None, typer.Option(help="Machines for each stage.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs, and so ranks, on each machine.")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    hours: Annotated[float | None, typer.Option(help="Time limit of one job.")] = None,
    changes: Annotated[list[str], typer.Option("--set", "-s", help="Override a setting: section.key=value.")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the graph and submit nothing.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the graph on this machine, without SLURM.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")] = False,
) -> None:
    """Submit the stages of a configuration that are not finished, each after the one it starts from."""
    cluster = {"nodes": nodes, "gpus_per_node": gpus_per_node, "partition": partition, "account": account}
    options = [f"cluster.{key}={item}" for key, item in (cluster | {"hours": hours}).items() if item is not None]
    graph = load_graph(config, [*options, *changes])
    if local:
        from vggrepro.pipeline import reproduce

        reproduce(graph)
        return
    stages = stage_graph(graph)
    sbatch = sbatch_parameters(next(iter(graph.stages.values())))
    if not dry_run:
        raise UserError(
            "submission to SLURM is not built yet; use --dry-run to see the graph, --local to run it here, "
            "or `sbatch slurm/train.sbatch` for one stage"
        )
    if as_json:
        print(json.dumps({"stages": stages, "sbatch": sbatch}, indent=2))
        return
    for stage in stages:
        after = f"  after {', '.join(stage['depends_on'])}" if stage["depends_on"] else ""
        print(f"{stage['name']:12} {stage['state']:9} {stage['nodes']} x {stage['gpus_per_node']} GPUs{after}")
    print("sbatch: " + "  ".join(f"--{key.replace('_', '-')}={item}" for key, item in sbatch.items()))


if __name__ == "__main__":
    run_command("submit.py", lambda: typer.run(submit))
