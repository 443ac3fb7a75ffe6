"""What a configuration will cost before anything is spent: hours, traffic, disk, money, each with its assumptions.

Counts of floating-point operations and bytes follow from Table 1. What turns them into hours is one rate: measured
(`--measured NET=images/s`), or assumed from the device's peak. A figure of the second kind is an estimate and says so.

A plan also says what binds each stage, and which settings would make it cheaper: those it finds by planning again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vggrepro.config import Config, Graph, Precision, Train, override
from vggrepro.distributed import divisors
from vggrepro.errors import UserError
from vggrepro.ledger import ledger
from vggrepro.models.table1 import Architecture, architecture_of
from vggrepro.paper import value

if TYPE_CHECKING:
    from vggrepro.training.throughput import Comm

# Assumptions, only one of them measured by us; each is printed with what follows from it.
ASSUMED_MFU = 0.43
"""4,600 images/s of net D on an H100 in bfloat16: the roofline of an eager step, over the peak of 989 TFLOP/s."""
ILSVRC_BYTES = 115_000
"""An image of ILSVRC-2012: the training archive's 148 GB over its images."""
SAMPLE_BYTES = 5_400
"""An image of the built-in sample set."""
LONG_SIDE = 1.33
"""Mean ratio of a photograph's sides, for the uncropped images of dense evaluation."""
NODE_GB_PER_S = 50.0
"""Of the network, each way and node: 400 Gbit/s."""
LINK_GB_PER_S = 300.0
"""Between the GPUs of one node."""
FORWARD_SHARE = 1 / 3
"""Of a step's arithmetic; the exchange of gradients overlaps with the rest."""
DECODE_PER_CORE = 540.0
"""Training images that a core makes in a second: 619 by DALI's threads on an Intel Xeon, S in [256;512], crop 224,
photographs of 400 x 533 px and 29 kB (benchmarks/results/2026-11-22-loader.md), less the 13 % that it costs to have the
threads in processes of their own, as ranks with a GPU do (2026-11-25-loader.md). Cores are taken to add up: processes
share nothing but the memory's bandwidth, which nobody has measured on more than two."""
MOST_CORES = 256
"""Of a machine: a setting that would take more is not offered."""
WORTH_SAYING = 0.1
"""Least share of the GPU-hours that a setting must save to be offered."""

Binds = Literal["GPU", "exchange", "loader", "file system"]


@dataclass(frozen=True)
class Machine:
    """What the graph runs on."""

    nodes: int
    gpus_per_node: int
    gpu: str = "H100"
    """A key of `training.throughput.PEAKS`."""
    mfu: float = ASSUMED_MFU
    measured: Mapping[str, float] = field(default_factory=dict)
    """Images/s in training on one GPU, by net; of the geometry and precision that is planned for."""
    node_gb_per_s: float = NODE_GB_PER_S
    price: float | None = None
    """Money for one GPU-hour."""
    decode_per_core: float = DECODE_PER_CORE
    """Training images/s that one core decodes."""
    read_mb_per_s: float | None = None
    """What the file system gives all nodes together; None: no limit is known."""

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class ImageSet:
    """What a stage is trained and tested on."""

    name: str
    train: int
    val: int
    bytes: float
    """Mean size of a training image."""

    def __str__(self) -> str:
        return f"{self.name}, {self.train:,} + {self.val:,} images of {self.bytes / 1000:.3g} kB"


@dataclass(frozen=True)
class StagePlan:
    """One stage; its evaluation by the methods of its tables included."""

    name: str
    depends_on: str | None
    images: int
    training_flop: float
    evaluation_flop: float
    """Validation during training, and the dense tests at its end."""
    images_per_s: float
    """Of all GPUs together."""
    rate_from: str
    gpu_hours: float
    training_hours: float
    evaluation_hours: float
    wall_hours: float
    starts_after_hours: float
    """On the critical path, with nodes for all stages that can run at once."""
    step_ms: float
    binds: Binds
    """What a step waits for."""
    comm: str | None
    """How gradients are exchanged, `auto` resolved; None on a single GPU."""
    exchange_ms: float
    """Of a step, as if nothing hid it."""
    exchange_mb: float
    """Payload of a step's collectives."""
    sent_mb: float
    """What each node (with one node: each GPU) sends in a step, by rings."""
    read_mb_per_s_node: float
    read_mb_per_s: float
    """What the file system must give all nodes together, where nothing is kept in memory."""
    images_per_s_node: float
    """To be decoded."""
    decode_cores_node: int
    """Cores of a node that keep up with its GPUs and their exchange."""
    cores_node: int | None
    """Cores of a node that decode, as far as the configuration says: cluster.cpus_per_task, data.workers."""
    disk_gb: float
    """Checkpoints and posteriors."""
    money: float | None


@dataclass(frozen=True)
class Cheaper:
    """The same graph under other settings."""

    settings: tuple[str, ...]
    """As `--set` takes them."""
    gpu_hours: float
    wall_hours: float
    saved_gpu_hours: float
    saved_wall_hours: float
    """On the critical path."""
    departures: tuple[str, ...]
    """From the paper, which the graph has not as it is."""
    decode_cores_node: int
    """Cores of each node that must decode for it."""
    read_mb_per_s: float
    """What the file system must give all nodes together for it."""


@dataclass(frozen=True)
class Plan:
    """A whole graph."""

    stages: tuple[StagePlan, ...]
    total_gpu_hours: float
    wall_hours: float
    """The critical path."""
    wall_hours_in_a_row: float
    """With the nodes of one stage only."""
    most_stages_at_once: int
    disk_gb: float
    money: float | None
    assumptions: tuple[str, ...]
    cheaper: tuple[Cheaper, ...]
    """The setting that saves most GPU-hours, then with the one that saves most beside it; only what is worth saying."""

    def to_json(self) -> dict[str, Any]:
        """The contract of `vggrepro plan --json`."""
        return asdict(self)


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
        stages[name] = _stage(config, parent, start, machine, sets[name])
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
        assumptions=_assumptions(graph, machine, sets),
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
                changed = _changed(now_graph, setting)
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
        if config.train.batch % machine.gpus:
            raise UserError(
                f"{machine.nodes} nodes of {machine.gpus_per_node} GPUs do not divide "
                f"train.batch={config.train.batch}; plan for {divisors(config.train.batch)} GPUs"
            )
    if not machine.measured:
        if machine.gpu not in PEAKS:
            raise UserError(
                f"--gpu {machine.gpu}: its peak is not known here; use one of {', '.join(PEAKS)}, or give a measured "
                f"rate with --measured D=IMAGES_PER_S"
            )
        for config in graph.stages.values():
            if config.train.precision not in PEAKS[machine.gpu]:
                raise UserError(
                    f"--gpu {machine.gpu} has no {config.train.precision} (train.precision of {config.name}); known: "
                    f"{', '.join(PEAKS[machine.gpu])}"
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


def _stage(config: Config, parent: str | None, start_hours: float, machine: Machine, data: ImageSet) -> StagePlan:
    from vggrepro.training.throughput import comm_of, flop_per_image, product_flop

    net = architecture_of(config)
    flop = flop_per_image(net)
    speed, rate_from = _flop_per_s(config, machine)
    batch = config.train.batch
    comm = comm_of(config.train.comm, net, batch, machine.gpus, config.train.precision)
    payload, sent, exchange_s = _exchange(config, net, machine, comm)
    compute_s = batch * flop / (speed * machine.gpus)
    after_s = 0.0
    if comm == "factor":  # no rank leaves its share of these products to the others, and nothing overlaps with them
        after_s = product_flop(net, batch) / speed
        compute_s -= after_s / machine.gpus
    gpu_s = max(compute_s, FORWARD_SHARE * compute_s + exchange_s) + after_s
    cores = _decoding_cores(config, machine)
    takes: dict[Binds, float] = {"GPU": compute_s + after_s, "exchange": gpu_s}
    if cores is not None and config.data.backend != "dali_gpu":
        takes["loader"] = batch / (cores * machine.nodes * machine.decode_per_core)
    if machine.read_mb_per_s is not None:
        takes["file system"] = batch * data.bytes / 1e6 / machine.read_mb_per_s
    binds = max(takes, key=lambda part: takes[part])  # the first of equals
    step_s = takes[binds]
    images = config.train.iterations * config.train.batch
    training_hours = config.train.iterations * step_s / 3600
    validation_flop, test_flop = _evaluation_flop(config, net, data)
    slower = _peak(machine, config.train.precision) / _peak(machine, config.evaluation.precision)
    evaluation_hours = (validation_flop + slower * test_flop) / (speed * machine.gpus) / 3600
    wall_hours = training_hours + evaluation_hours
    images_per_s = config.train.batch / step_s
    gpu_hours = wall_hours * machine.gpus
    return StagePlan(
        name=config.name,
        depends_on=parent,
        images=images,
        training_flop=float(images * flop),
        evaluation_flop=validation_flop + test_flop,
        images_per_s=images_per_s,
        rate_from=rate_from,
        gpu_hours=gpu_hours,
        training_hours=training_hours,
        evaluation_hours=evaluation_hours,
        wall_hours=wall_hours,
        starts_after_hours=start_hours,
        step_ms=1000 * step_s,
        binds=binds,
        comm=comm,
        exchange_ms=1000 * exchange_s,
        exchange_mb=payload / 1e6,
        sent_mb=sent / 1e6,
        read_mb_per_s_node=images_per_s / machine.nodes * data.bytes / 1e6,
        read_mb_per_s=images_per_s * data.bytes / 1e6,
        images_per_s_node=images_per_s / machine.nodes,
        decode_cores_node=math.ceil(batch / gpu_s / machine.nodes / machine.decode_per_core),
        cores_node=cores,
        disk_gb=disk_gb(config, data),
        money=None if machine.price is None else gpu_hours * machine.price,
    )


def image_sets_of(graph: Graph) -> dict[str, ImageSet]:
    """What each stage is trained and tested on; an index that stages share is opened once. Raises UserError."""
    opened: dict[Path | str | None, ImageSet] = {}
    found = {}
    for name, config in graph.stages.items():
        source = config.data.index or config.data.root
        if source not in opened:
            opened[source] = _image_set(config)
        found[name] = opened[source]
    return found


def _image_set(config: Config) -> ImageSet:
    """The counts of the stage's index, or of the sample set; else those of ILSVRC-2012. Raises UserError."""
    from vggrepro.data import index, sample_set

    if config.data.index is not None:
        loaded = index.load(config.data.index)
        index.require_training_images(loaded)
        train, val = loaded.split("train"), loaded.split("val")
        return ImageSet(config.data.index.name, len(train), len(val), float(train.length.mean()))
    if config.data.root == sample_set.ROOT:
        return ImageSet(sample_set.ROOT, sample_set.TRAIN_IMAGES, sample_set.VAL_IMAGES, SAMPLE_BYTES)
    return ImageSet("ILSVRC-2012", value("train_images"), value("val_images"), ILSVRC_BYTES)


def _flop_per_s(config: Config, machine: Machine) -> tuple[float, str]:
    """Sustained FLOP/s of one GPU in training, and where the figure is from."""
    from vggrepro.training.throughput import flop_per_image

    own = config.model.net
    if own in machine.measured:
        rate = machine.measured[own]
        return rate * flop_per_image(architecture_of(config)), f"measured: {rate:g} images/s a GPU"
    if machine.measured:
        other, rate = next(iter(machine.measured.items()))
        # the same geometry, another column of Table 1
        model = config.model.model_copy(update={"net": other, "layers": None})
        flop = flop_per_image(architecture_of(config.model_copy(update={"model": model})))
        return rate * flop, f"from {other}'s measured {rate:g} images/s a GPU, by FLOPs"
    peak = _peak(machine, config.train.precision)
    return peak * machine.mfu, f"assumed: {machine.mfu:.0%} of {peak / 1e12:g} TFLOP/s ({config.train.precision})"


def _decoding_cores(config: Config, machine: Machine) -> int | None:
    """Of a node, as far as the configuration says."""
    known = [n for n in (config.cluster.cpus_per_task, config.data.workers) if n is not None]
    return min(known) * machine.gpus_per_node if known else None


def _exchange(config: Config, net: Architecture, machine: Machine, comm: Comm | None) -> tuple[float, float, float]:
    """(payload, sent by each node or GPU) in bytes and seconds of a step's collectives."""
    if comm is None:
        return 0.0, 0.0, 0.0
    from vggrepro.training.throughput import bytes_per_factor, payload_bytes, sent_bytes

    width = bytes_per_factor(config.train.precision)
    ranks = machine.nodes if machine.nodes > 1 else machine.gpus_per_node
    rate = (machine.node_gb_per_s if machine.nodes > 1 else LINK_GB_PER_S) * 1e9
    sent = sent_bytes(net, config.train.batch, comm, ranks, width)
    return float(payload_bytes(net, config.train.batch, comm, width)), sent, sent / rate


def _peak(machine: Machine, precision: Precision) -> float:
    """FLOP/s of a GPU whose data sheet we have; 1 for another one, on which all precisions count as equally fast."""
    from vggrepro.training.throughput import PEAKS

    return PEAKS.get(machine.gpu, {}).get(precision, 1.0)


def _evaluation_flop(config: Config, net: Architecture, data: ImageSet) -> tuple[float, float]:
    """Of centre-crop validations during training, and of the tests at its end, dense at all Q with mirror images."""
    forward = 2 * net.multiply_adds
    epochs = config.train.iterations * config.train.batch / data.train
    validations = max(1, int(epochs / config.train.validate_every))
    views = 2 if config.evaluation.flip else 1
    dense = sum(_dense_flop(net, Q) for Q in {*config.single_Q, *config.multi_Q})
    centre = forward * len(config.single_Q)
    return float(data.val * validations * forward), float(data.val * (centre + views * dense))


def _dense_flop(net: Architecture, Q: int) -> float:
    """Of one uncropped image: convolutions by area, fully-connected layers by positions of the score map."""
    layers = net.layers()
    conv = 2 * sum(layer.multiply_adds for layer in layers if layer.kind == "conv")
    fc = 2 * sum(layer.multiply_adds for layer in layers if layer.kind == "fc")
    height, width = Q, round(Q * LONG_SIDE)
    positions = (height // net.stride - net.fc6_kernel + 1) * (width // net.stride - net.fc6_kernel + 1)
    return conv * height * width / net.crop**2 + fc * positions


def disk_gb(config: Config, data: ImageSet) -> float:
    """What a stage keeps on disk, GB: step checkpoints (weights, momentum), the best, the final one, posteriors.

    Raises UserError.
    """
    net = architecture_of(config)
    step = 2 * 4 * net.parameters
    sets = len({*config.single_Q, *config.multi_Q})
    posteriors = sets * data.val * net.classes * 4
    return ((config.train.keep + 1) * step + 4 * net.parameters + posteriors) / 1e9


def _assumptions(graph: Graph, machine: Machine, sets: Mapping[str, ImageSet]) -> tuple[str, ...]:
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
    cores = {_decoding_cores(config, machine) for config in graph.stages.values()}
    known = " or ".join(f"{n} cores a node decode" for n in sorted(cores - {None}))  # type: ignore[type-var]
    have = known or "how many cores a node has is not known (cluster.cpus_per_task)"
    read = "" if machine.read_mb_per_s is None else f"; the file system gives {machine.read_mb_per_s:g} MB/s, as given"
    return f"{rate}; {have}{read}"


def _per_gpu(graph: Graph, machine: Machine) -> str:
    shares = {config.train.batch // machine.gpus for config in graph.stages.values()}
    return " or ".join(map(str, sorted(shares)))


def render(made: Plan, machine: Machine) -> str:
    """For the terminal."""
    lines = [f"{machine.nodes} x {machine.gpus_per_node} GPUs ({'measured rate' if machine.measured else machine.gpu})"]
    head = (
        "stage",
        "after",
        "PFLOP",
        "images/s",
        "wall h",
        "GPU h",
        "binds",
        "exchange",
        "sent",
        "decode and read a node",
        "file system",
        "disk",
        "rate",
    )
    rows = [
        (
            one.name,
            one.depends_on or "-",
            _number((one.training_flop + one.evaluation_flop) / 1e15),
            f"{one.images_per_s:,.0f}",
            _number(one.wall_hours),
            _number(one.gpu_hours),
            one.binds,
            (f"{one.comm}: " if one.comm else "") + f"{one.exchange_ms:.1f} of {one.step_ms:.1f} ms",
            f"{one.sent_mb:,.0f} MB/step",
            f"{one.images_per_s_node:,.0f} images/s: {_cores(one)}, {_number(one.read_mb_per_s_node)} MB/s",
            f"{_number(one.read_mb_per_s)} MB/s",
            f"{_number(one.disk_gb)} GB",
            one.rate_from,
        )
        for one in made.stages
    ]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in (head, *rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    together = "stage" if made.most_stages_at_once == 1 else "stages"
    lines += [
        "",
        f"together      {_number(made.total_gpu_hours)} GPU-hours, {_number(made.disk_gb)} GB of disk"
        + (f", {_number(made.money)} at {machine.price:g} a GPU-hour" if made.money is not None else ""),
        f"wall time     {_number(made.wall_hours)} h on the critical path with up to {made.most_stages_at_once} "
        f"{together} at once, {_number(made.wall_hours_in_a_row)} h one after another",
        *(f"{'' if n else 'cheaper':14}{line}" for n, line in enumerate(cheaper_lines(made.cheaper))),
        *waiting_lines(made),
        "",
        "assumptions",
        *(f"  - {text}" for text in made.assumptions),
    ]
    return "\n".join(lines)


def cheaper_lines(found: Sequence[Cheaper]) -> list[str]:
    """What the graph would cost under other settings, ready to paste, for the terminal."""
    lines: list[str] = []
    for one in found:
        settings = " ".join(f"--set {setting}" for setting in one.settings)
        before = one.gpu_hours + one.saved_gpu_hours
        faithful = "no departure from the paper"
        lines.append(
            f"{settings}: saves {_number(one.saved_gpu_hours)} of {_number(before)} "
            f"GPU-hours and {_number(one.saved_wall_hours)} of {_number(one.wall_hours + one.saved_wall_hours)} h; "
            + (f"departs from the paper: {', '.join(one.departures)}" if one.departures else faithful)
            + f"; takes {one.decode_cores_node} cores a node to decode and {_number(one.read_mb_per_s)} MB/s to read"
        )
    return lines


def waiting_lines(made: Plan) -> list[str]:
    """Which GPUs wait for bytes, where fewer nodes would cost less and take little longer."""
    remedies: dict[Binds, str] = {
        "loader": "more cores a node (cluster.cpus_per_task) or fewer nodes cost less",
        "file system": "fewer nodes cost less and take little longer",
    }
    waiting = {part: [one.name for one in made.stages if one.binds == part] for part in remedies}
    return [
        f"{'waiting':14}the GPUs of {', '.join(names)} wait for the {part}: {remedies[part]}"
        for part, names in waiting.items()
        if names
    ]


def _cores(stage: StagePlan) -> str:
    """Those that a node needs to decode as fast as its GPUs train; where it has fewer, these as well."""
    needed = f"{stage.decode_cores_node} core{'' if stage.decode_cores_node == 1 else 's'}"
    if stage.cores_node is None or stage.cores_node >= stage.decode_cores_node:
        return needed
    return f"{stage.cores_node} cores, {stage.decode_cores_node} would keep up"


def _number(amount: float) -> str:
    """To three digits at least."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def measured_rates(texts: list[str]) -> dict[str, float]:
    """`D=4600` and the like as {net: images/s}. Raises UserError."""
    rates = {}
    for text in texts:
        net, _, rate = text.partition("=")
        try:
            rates[net] = float(rate)
        except ValueError:
            raise UserError(f"--measured {text}: expected NET=IMAGES_PER_S of one GPU, e.g. D=4600") from None
    return rates
