"""What a plan assumes, in words: each is printed with what follows from it."""

from __future__ import annotations

from collections.abc import Mapping

from vggrepro.config.recipes import Graph
from vggrepro.models.table1 import architecture_of
from vggrepro.preflight.machine import DECODE_PER_CORE, LINK_GB_PER_S, LONG_SIDE, ImageSet, Machine, decoding_cores


def assumptions_of(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet]) -> tuple[str, ...]:
    from vggrepro.training.throughput import comm_of

    nets = {config.model.net for config in graph.stages.values()}
    if machine.measured:
        given = ", ".join(f"{net}: {rate:g} images/s" for net, rate in machine.measured.items())
        rate = f"training speed as given ({given}, one GPU"
        rate += "); other nets in proportion to their FLOPs" if nets - machine.measured.keys() else ")"
    else:
        rate = (
            f"training speed is assumed, not measured: {machine.mfu:.0%} of the peak of {machine.gpu} in the stage's "
            f"train.precision (a roofline's figure for net D on an H100 in bf16; it says little of other devices)"
        )
    data = dict.fromkeys(map(str, sets.values()))
    images = sum(config.train.iterations * config.train.batch for config in graph.stages.values())
    network = (
        f"{machine.node_gb_per_s:g} GB/s each way and node" if machine.nodes > 1 else f"{LINK_GB_PER_S:g} GB/s a GPU"
    )
    factors = any(
        comm_of(one.train.comm, architecture_of(one), one.train.batch, machine.gpus, one.train.precision) == "factor"
        for one in graph.stages.values()
    )
    return (
        rate,
        f"every stage trains its full train.iterations ({images:,} images together); no time lost in queues",
        f"gradients are exchanged by rings at {network}, hidden behind the backward pass (two thirds of a step)"
        + (", and by factor every GPU then forms the FC layers' gradients of the whole batch" if factors else ""),
        f"{' and '.join(data)}; "
        + ("no data.index is given; " if any(one.startswith("ILSVRC") for one in data) else "")
        + f"uncropped images have sides 1:{LONG_SIDE}",
        "validation runs at the training speed, by FLOPs; tests do, too, but for what the GPU's peak is lower in "
        "evaluation.precision; starting, saving and drawing take no time",
        _loading(graph, machine),
        f"a GPU has {_per_gpu(graph, machine)} images of each batch; with few, kernels reach less of the peak, and "
        f"the update of the weights, not counted here, weighs more",
        "parameters, momentum and posteriors are 4 bytes each; multi-crop testing, 50 crops a Q, is not included",
    )


def _loading(graph: Graph, machine: Machine) -> str:
    """What decodes and reads, and how fast."""
    if machine.decode_per_core == DECODE_PER_CORE:
        rate = (
            f"a core decodes {DECODE_PER_CORE:g} images/s with DALI, by measurements with photographs of 29 kB on a "
            f"Xeon (2026-11-22); larger ones take longer: measure with `vggrepro bench loader`, give --decode-rate"
        )
    else:
        rate = f"a core decodes {machine.decode_per_core:g} images/s, as given"
    cores = {decoding_cores(config, machine) for config in graph.stages.values()}
    known = " or ".join(f"{n} cores a node decode" for n in sorted(cores - {None}))  # type: ignore[type-var]
    have = known or "how many cores a node has is not known (cluster.cpus_per_task)"
    read = "" if machine.read_mb_per_s is None else f"; the file system gives {machine.read_mb_per_s:g} MB/s, as given"
    return f"{rate}; {have}{read}"


def _per_gpu(graph: Graph, machine: Machine) -> str:
    shares = {config.train.batch // machine.gpus for config in graph.stages.values()}
    return " or ".join(map(str, sorted(shares)))
