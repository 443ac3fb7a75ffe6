"""Cost estimate of a graph: GPU-hours, wall time, disk, money, with assumptions.

A plan also names the bottleneck of each stage, and cheaper settings, which it finds by planning again with them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vggrepro.config.parsing import override
from vggrepro.config.recipes import Graph
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.preflight.cost import Cheaper, Plan, StagePlan, cost_of
from vggrepro.preflight.machine import ImageSet, Machine, image_sets_of
from vggrepro.preflight.plan_text import assumptions_of
from vggrepro.ranks.topology import divisors
from vggrepro.storage.ledger import ledger
from vggrepro.training.throughput import PEAKS

MOST_CORES = 256
"""Limit on cores per machine: a setting that needs more is not proposed."""
MIN_SAVED = 0.1
"""Least fraction of the GPU-hours that a proposed setting must save."""


def plan(graph: Graph, machine: Machine) -> Plan:
    """Plans a graph on a machine. Raises UserError."""
    _check(graph, machine)
    sets = image_sets_of(graph)
    made = _plan(graph, machine, sets)
    return replace(made, cheaper=_cheaper(graph, machine, sets, made))


def _plan(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet]) -> Plan:
    stages: list[StagePlan] = []
    ends: dict[str | None, float] = {None: 0.0}
    for name, config in graph.stages.items():
        parent = graph.parents[name]
        stages.append(cost_of(config, parent, ends[parent], machine, sets[name]))
        ends[name] = stages[-1].starts_after_hours + stages[-1].wall_hours
    spans = [(ends[parent], ends[name]) for name, parent in graph.parents.items()]
    return Plan(
        stages=tuple(stages),
        total_gpu_hours=sum(stage.gpu_hours for stage in stages),
        wall_hours=max(ends.values()),
        wall_hours_in_a_row=sum(stage.wall_hours for stage in stages),
        most_stages_at_once=max(sum(start <= at < end for start, end in spans) for at, _ in spans),
        disk_gb=sum(stage.disk_gb for stage in stages),
        money=None if machine.price is None else sum(stage.money or 0.0 for stage in stages),
        assumptions=assumptions_of(graph, machine, sets, stages),
        cheaper=(),
    )


def _cheaper(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet], made: Plan) -> tuple[Cheaper, ...]:
    """Finds the best of four alternatives, and a pair of settings if it saves `MIN_SAVED` once more."""
    cores = max(stage.decode_cores_node for stage in made.stages)
    alternatives: list[tuple[str, ...]] = [("train.comm=auto",)]
    if not machine.measured:  # a measured rate is valid for its precision only
        alternatives += [("train.precision=bf16",), ("train.precision=bf16", "train.comm=auto")]
    if cores <= MOST_CORES:
        alternatives.append((f"cluster.cpus_per_task={math.ceil(cores / machine.gpus_per_node)}",))
    trials = []
    for settings in alternatives:
        try:
            stages = {name: override(config, settings, Path(name)) for name, config in graph.stages.items()}
        except UserError:  # invalid for a stage
            continue
        changed = replace(graph, stages=stages)
        trials.append((settings, changed, _plan(changed, machine, sets)))
    trials.sort(key=lambda trial: (len(trial[0]), trial[2].total_gpu_hours))
    found: list[Cheaper] = []
    least = made.total_gpu_hours
    departures = _departures(graph)
    for settings, changed, now in trials:
        if now.total_gpu_hours > (1 - MIN_SAVED) * least:
            continue
        least = now.total_gpu_hours
        found.append(
            Cheaper(
                settings,
                now.total_gpu_hours,
                now.wall_hours,
                made.total_gpu_hours - now.total_gpu_hours,
                made.wall_hours - now.wall_hours,
                tuple(dict.fromkeys(text for stage, text in _departures(changed) if (stage, text) not in departures)),
                max(stage.decode_cores_node for stage in now.stages),
                max(stage.read_mb_per_s for stage in now.stages),
            )
        )
    return tuple(found)


def _departures(graph: Graph) -> list[tuple[str, str]]:
    """Lists (stage, departure) from the stages' ledgers."""
    return [
        (name, f"{line.setting}: {line.run} instead of {line.paper}")
        for name, config in graph.stages.items()
        for line in ledger(config, graph.parent_of(name))
    ]


def _check(graph: Graph, machine: Machine) -> None:
    if machine.gpu not in PEAKS and not machine.measured:
        raise UserError(
            f"--gpu {machine.gpu}: its peak is unknown; use one of {', '.join(PEAKS)}, or give a measured "
            f"rate with --measured D=IMAGES_PER_S"
        )
    known = PEAKS.get(machine.gpu)
    for config in graph.stages.values():
        require_class_scores(architecture_of(config))
        if config.train.batch % machine.gpus:
            raise UserError(
                f"{machine.nodes} nodes with {machine.gpus_per_node} GPUs do not divide "
                f"train.batch={config.train.batch}; plan for {divisors(config.train.batch)} GPUs"
            )
        for section, precision in (("train", config.train.precision), ("evaluation", config.evaluation.precision)):
            if known is not None and precision not in known:
                raise UserError(
                    f"--gpu {machine.gpu} has no {precision} ({section}.precision of {config.name}); known: "
                    f"{', '.join(known)}"
                )
    rates = [
        *((f"--measured {net}=", rate, "images/s") for net, rate in machine.measured.items()),
        ("--decode-rate ", machine.decode_per_core, "images/s"),
        ("--network ", machine.node_gb_per_s, "GB/s"),
        ("--read ", machine.read_mb_per_s, "MB/s"),
    ]
    for option, rate, unit in rates:
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"{option}{rate:g}: a rate in {unit} must be positive")
    if not 0 < machine.mfu <= 1:
        raise UserError(f"--mfu {machine.mfu:g}: a fraction of the peak must be in (0, 1]")
    if machine.price is not None and not 0 <= machine.price < math.inf:
        raise UserError(f"--price {machine.price:g}: a price must be at least 0")
