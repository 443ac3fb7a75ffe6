"""Verbs to run before you spend GPU hours."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vggrepro.cli.options import ConfigOption, JsonOption, SeedsOption, SetOption, show


def plan(
    config: ConfigOption,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes per stage; default: cluster.nodes.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs per node; default: cluster.gpus_per_node.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU: H100, H100 PCIe, H200, A100, V100.")] = "H100",
    measured: Annotated[
        list[str], typer.Option(help="NET=IMAGES_PER_S: measured training speed of one GPU; repeatable.")
    ] = [],  # noqa: B006
    mfu: Annotated[
        float | None, typer.Option(help="Model FLOP utilisation of a step, (0, 1]; default: assumed.")
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(min=0.001, help="Bandwidth between nodes, GB/s per direction and node; default: assumed."),
    ] = None,
    decode_rate: Annotated[
        float | None,
        typer.Option(help="Training images/s decoded per core, from `vggrepro bench loader`; default: ours."),
    ] = None,
    read: Annotated[
        float | None,
        typer.Option(help="Bandwidth of the file system for all nodes together, MB/s; default: unlimited."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price per GPU-hour.")] = None,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the cost of a configuration: GPU-hours, wall time, traffic, disk, money, with the assumptions.

    Names the bottleneck of each stage, and the one or two settings that would save most.
    """
    from vggrepro.config.recipes import load_graph
    from vggrepro.preflight.machine import ASSUMED_MFU, DECODE_PER_CORE, NODE_GB_PER_S, Machine, measured_rates
    from vggrepro.preflight.plan import plan as make_plan
    from vggrepro.preflight.plan_text import render

    graph = load_graph(config, changes, seeds)
    cluster = next(iter(graph.stages.values())).cluster
    machine = Machine(
        nodes=nodes or cluster.nodes,
        gpus_per_node=gpus_per_node or cluster.gpus_per_node,
        gpu=gpu,
        mfu=ASSUMED_MFU if mfu is None else mfu,
        measured=measured_rates(measured),
        node_gb_per_s=NODE_GB_PER_S if network is None else network,
        price=price,
        decode_per_core=DECODE_PER_CORE if decode_rate is None else decode_rate,
        read_mb_per_s=read,
    )
    made = make_plan(graph, machine)
    show(asdict(made), [render(made, machine)], as_json)


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Also check the needs of this configuration.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """List what will not work on this machine or cluster, with the remedy. Exits with status 1 if a check fails."""
    from vggrepro.config.recipes import load_graph
    from vggrepro.preflight.doctor import examine, render

    graph = load_graph(config, changes) if config else None
    root = next(iter(graph.stages.values())).run.root if graph else Path("runs")
    checks = examine(graph, root)
    show({"checks": [asdict(check) for check in checks]}, [render(checks)], as_json)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
