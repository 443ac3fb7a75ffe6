"""Verbs for before anything is spent."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vggrepro.cli.options import ConfigOption, JsonOption, SeedsOption, SetOption, show


def plan(
    config: ConfigOption,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines for each stage; default: cluster.nodes.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Default: cluster.gpus_per_node.")] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU: H100, H100 PCIe, H200, A100, V100.")] = "H100",
    measured: Annotated[
        list[str], typer.Option(help="NET=IMAGES_PER_S of one GPU in training, measured; repeatable.")
    ] = [],  # noqa: B006
    mfu: Annotated[float | None, typer.Option(help="Share of the GPU's peak that a step reaches; assumed.")] = None,
    network: Annotated[
        float | None, typer.Option(min=0.001, help="Between nodes, GB/s each way and node; assumed.")
    ] = None,
    decode_rate: Annotated[
        float | None,
        typer.Option(help="Training images/s that one core decodes, by `vggrepro bench loader`; default: ours."),
    ] = None,
    read: Annotated[
        float | None, typer.Option(help="What the file system gives all nodes together, MB/s; default: no limit.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU-hour.")] = None,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a configuration will cost: GPU-hours, wall time, traffic, disk, money, with the assumptions.

    And what binds each stage, and the one or two settings that would save most.
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
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also check what this one needs.")] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """What on this machine or cluster will not work, and the remedy. Status 1 where something fails."""
    from vggrepro.config.recipes import load_graph
    from vggrepro.preflight.doctor import examine, render

    graph = load_graph(config, changes) if config else None
    root = next(iter(graph.stages.values())).run.root if graph else Path("runs")
    checks = examine(graph, root)
    show({"checks": [asdict(check) for check in checks]}, [render(checks)], as_json)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
