"""What a graph will cost before anything is spent: GPU-hours, wall time, disk, money, each with its assumptions.

A plan also says what binds each stage, and which settings would make it cheaper: those it finds by planning again.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from vggrepro.config.parsing import override
from vggrepro.config.recipes import Graph
from vggrepro.config.settings import Train
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.preflight.cost import Cheaper, Plan, StagePlan, cost_of
from vggrepro.preflight.machine import ImageSet, Machine, image_sets_of
from vggrepro.preflight.plan_text import assumptions_of
from vggrepro.ranks.topology import divisors
from vggrepro.storage.ledger import ledger

MOST_CORES = 256
"""Of a machine: a setting that would take more is not offered."""
WORTH_SAYING = 0.1
"""Least share of the GPU-hours that a setting must save to be offered."""


def plan(graph: Graph, machine: Machine) -> Plan:
    """What the graph costs on a machine. Raises UserError."""
    _check(graph, machine)
    sets = image_sets_of(graph)
    made = _plan(graph, machine, sets)
    return replace(made, cheaper=_cheaper(graph, machine, sets, made))


def _plan(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet]) -> Plan:
    stages: dict[str, StagePlan] = {}
    for name, config in graph.stages.items():
        parent = graph.parents[name]
        start = stages[parent].starts_after_hours + stages[parent].wall_hours if parent else 0.0
        stages[name] = cost_of(config, parent, start, machine, sets[name])
    ends = [stage.starts_after_hours + stage.wall_hours for stage in stages.values()]
    money = [stage.money for stage in stages.values() if stage.money is not None]
    return Plan(
        stages=tuple(stages.values()),
        total_gpu_hours=sum(stage.gpu_hours for stage in stages.values()),
        wall_hours=max(ends),
        wall_hours_in_a_row=sum(stage.wall_hours for stage in stages.values()),
        most_stages_at_once=max(
            sum(
                one.starts_after_hours <= at.starts_after_hours < end
                for one, end in zip(stages.values(), ends, strict=True)
            )
            for at in stages.values()
        ),
        disk_gb=sum(stage.disk_gb for stage in stages.values()),
        money=sum(money) if money else None,
        assumptions=assumptions_of(graph, machine, sets, tuple(stages.values())),
        cheaper=(),
    )


def _cheaper(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet], made: Plan) -> tuple[Cheaper, ...]:
    """The best single change of settings, and with it the best second, where each saves its share of what is left."""
    found: list[Cheaper] = []
    settings: tuple[str, ...] = ()
    now, now_graph = made, graph
    while len(settings) < 2:
        trials = []
        for setting in _candidates(now_graph, machine, now):
            if setting.partition("=")[0] not in {taken.partition("=")[0] for taken in settings}:
                try:
                    changed = _changed(now_graph, setting)
                except UserError:  # some stage cannot have it
                    continue
                trials.append((_plan(changed, machine, sets), changed, setting))
        best = min(trials, key=lambda trial: trial[0].total_gpu_hours, default=None)
        if best is None or best[0].total_gpu_hours > (1 - WORTH_SAYING) * now.total_gpu_hours:
            break
        now, now_graph, settings = best[0], best[1], (*settings, best[2])
        found.append(
            Cheaper(
                settings,
                now.total_gpu_hours,
                now.wall_hours,
                made.total_gpu_hours - now.total_gpu_hours,
                made.wall_hours - now.wall_hours,
                _new_departures(graph, now_graph),
                max(stage.decode_cores_node for stage in now.stages),
                max(stage.read_mb_per_s for stage in now.stages),
            )
        )
    return tuple(found)


def _candidates(graph: Graph, machine: Machine, made: Plan) -> list[str]:
    """Settings that may help, as `--set` takes them. What torch.compile brings is not known without a measurement."""
    from vggrepro.training.throughput import PEAKS

    # a measured rate holds for the precision it was measured in
    precisions = [] if machine.measured else list(PEAKS[machine.gpu])
    candidates = [f"train.precision={precision}" for precision in precisions]
    candidates += [f"train.comm={comm}" for comm in get_args(Train.model_fields["comm"].annotation)]
    if any(stage.binds == "loader" for stage in made.stages):
        cores = max(stage.decode_cores_node for stage in made.stages)
        if cores <= MOST_CORES:
            candidates.append(f"cluster.cpus_per_task={math.ceil(cores / machine.gpus_per_node)}")
    return candidates


def _changed(graph: Graph, setting: str) -> Graph:
    stages = {name: override(config, [setting], Path(name)) for name, config in graph.stages.items()}
    return replace(graph, stages=stages)


def _new_departures(graph: Graph, changed: Graph) -> tuple[str, ...]:
    """What the ledgers of the changed stages have and those of the stages as they are have not, each once."""
    new: dict[str, None] = {}
    for name, parent in graph.parents.items():
        before, after = (ledger(one.stages[name], one.stages[parent] if parent else None) for one in (graph, changed))
        known = {(one.setting, str(one.run)) for one in before}
        new |= {
            f"{one.setting}: {one.run} instead of {one.paper}": None
            for one in after
            if (one.setting, str(one.run)) not in known
        }
    return tuple(new)


def _check(graph: Graph, machine: Machine) -> None:
    from vggrepro.training.throughput import PEAKS

    for config in graph.stages.values():
        require_class_scores(architecture_of(config))
        if config.train.batch % machine.gpus:
            raise UserError(
                f"{machine.nodes} nodes of {machine.gpus_per_node} GPUs do not divide "
                f"train.batch={config.train.batch}; plan for {divisors(config.train.batch)} GPUs"
            )
    if machine.gpu not in PEAKS and not machine.measured:
        raise UserError(
            f"--gpu {machine.gpu}: its peak is not known here; use one of {', '.join(PEAKS)}, or give a measured "
            f"rate with --measured D=IMAGES_PER_S"
        )
    known = PEAKS.get(machine.gpu)
    for config in graph.stages.values():
        for section, precision in (("train", config.train.precision), ("evaluation", config.evaluation.precision)):
            if known is not None and precision not in known:
                raise UserError(
                    f"--gpu {machine.gpu} has no {precision} ({section}.precision of {config.name}); known: "
                    f"{', '.join(known)}"
                )
    rates = [(f"--measured {net}={rate:g}", rate, "images/s") for net, rate in machine.measured.items()]
    rates.append((f"--decode-rate {machine.decode_per_core:g}", machine.decode_per_core, "images/s"))
    rates.append((f"--network {machine.node_gb_per_s:g}", machine.node_gb_per_s, "GB/s"))
    if machine.read_mb_per_s is not None:
        rates.append((f"--read {machine.read_mb_per_s:g}", machine.read_mb_per_s, "MB/s"))
    for option, rate, unit in rates:
        if not 0 < rate < math.inf:
            raise UserError(f"{option}: a rate in {unit} is above 0")
    if not 0 < machine.mfu <= 1:
        raise UserError(f"--mfu {machine.mfu:g}: a share of the peak is above 0 and at most 1")
    if machine.price is not None and not 0 <= machine.price < math.inf:
        raise UserError(f"--price {machine.price:g}: a price is 0 or more")
