"""Cost of a stage: hours, traffic, disk.

FLOP and byte counts follow from Table 1. A single rate converts them into hours: measured (`--measured NET=images/s`),
or assumed from the device's peak. A figure from an assumed rate is marked as an estimate.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vggrepro.config.settings import Config
from vggrepro.models.table1 import BOX_NUMBERS, Architecture, architecture_of
from vggrepro.paper import facts, value
from vggrepro.preflight.machine import (
    ACTION_PERSONS,
    FORWARD_SHARE,
    LINK_GB_PER_S,
    LONG_SIDE,
    RESULT_S,
    START_S,
    ImageSet,
    Machine,
)
from vggrepro.training.throughput import comm_of, flop_per_image, payload_bytes, product_flop, sent_bytes, training_flop

Binds = Literal["GPU", "exchange", "loader", "file system"]


@dataclass(frozen=True)
class StagePlan:
    """Cost of a stage, including its evaluation by the methods of its tables."""

    name: str
    depends_on: str | None
    images: int
    training_flop: float
    evaluation_flop: float
    """Validation during training, and the dense tests at its end."""
    features_flop: float
    """Features of other data sets' images (Appendix B), without the linear SVMs, which run on the CPU."""
    images_per_s: float
    """Training speed of all GPUs together."""
    rate_from: str
    gpu_hours: float
    training_hours: float
    evaluation_hours: float
    """Includes the features of other data sets."""
    bookkeeping_hours: float
    """Start, storing results, drawing and writing tables, while the GPUs wait."""
    wall_hours: float
    starts_after_hours: float
    """Start on the critical path, if there are nodes for all stages that can run at the same time."""
    step_ms: float
    binds: Binds
    """Bottleneck of a step."""
    comm: str | None
    """Exchange of gradients, with `auto` resolved; None on a single GPU."""
    exchange_ms: float
    """Exchange per step, without overlap."""
    exchange_mb: float
    """Payload of the collectives per step."""
    sent_mb: float
    """Traffic sent per step and node (on a single node: per GPU), by rings."""
    read_mb_per_s_node: float
    read_mb_per_s: float
    """Required bandwidth of the file system for all nodes together, without caching in memory."""
    images_per_s_node: float
    """Images to decode."""
    decode_cores_node: int
    """Cores per node that keep up with its GPUs and their exchange."""
    cores_node: int | None
    """Decoding cores per node, from cluster.cpus_per_task and data.workers; None: unknown."""
    disk_gb: float
    """Checkpoints, posteriors and features."""
    money: float | None


@dataclass(frozen=True)
class Cheaper:
    """Cost of the same graph under other settings."""

    settings: tuple[str, ...]
    """Arguments of `--set`."""
    gpu_hours: float
    wall_hours: float
    saved_gpu_hours: float
    saved_wall_hours: float
    """On the critical path."""
    departures: tuple[str, ...]
    """Departures from the paper that the graph does not have without these settings."""
    decode_cores_node: int
    """Required decoding cores per node."""
    read_mb_per_s: float
    """Required bandwidth of the file system for all nodes together."""


@dataclass(frozen=True)
class Plan:
    """Cost of a graph; the fields are the contract of `vggrepro plan --json`."""

    stages: tuple[StagePlan, ...]
    total_gpu_hours: float
    wall_hours: float
    """The critical path."""
    wall_hours_in_a_row: float
    """Duration if the stages run one after another."""
    most_stages_at_once: int
    disk_gb: float
    money: float | None
    assumptions: tuple[str, ...]
    cheaper: tuple[Cheaper, ...]
    """The best of four alternatives, then a pair of settings that saves more; savings below `MIN_SAVED` are omitted."""


def cost_of(config: Config, parent: str | None, start_hours: float, machine: Machine, data: ImageSet) -> StagePlan:
    """Plans a stage that starts after `start_hours`. Raises UserError."""
    net, frozen = architecture_of(config), config.keeps_features
    batch, precision = config.train.batch, config.train.precision
    flop = flop_per_image(net, frozen=frozen)
    speed, rate_from = _flop_per_s(config, machine)
    comm = comm_of(config.train.comm, net, batch, machine.gpus, precision, frozen=frozen)
    payload, sent, exchange_s = 0.0, 0.0, 0.0
    if comm is not None:
        ranks, rate = (machine.nodes, machine.node_gb_per_s) if machine.nodes > 1 else (machine.gpus, LINK_GB_PER_S)
        payload = float(payload_bytes(net, batch, comm, precision, frozen=frozen))
        sent = sent_bytes(net, batch, comm, ranks, precision, frozen=frozen)
        exchange_s = sent / (rate * 1e9)
    compute_s = batch * flop / (speed * machine.gpus)
    after_s = 0.0
    if comm == "factor":  # every rank computes all of these products, without overlap
        after_s = product_flop(net, batch) / speed
        compute_s -= after_s / machine.gpus
    gpu_s = max(compute_s, FORWARD_SHARE * compute_s + exchange_s) + after_s
    cores = machine.decoding_cores(config)
    takes: dict[Binds, float] = {"GPU": compute_s + after_s, "exchange": gpu_s}
    if cores is not None and config.data.backend != "dali_gpu":
        takes["loader"] = batch / (cores * machine.nodes * machine.decode_per_core)
    if machine.read_mb_per_s is not None:
        takes["file system"] = batch * data.bytes / 1e6 / machine.read_mb_per_s
    binds = max(takes, key=lambda part: takes[part])  # ties: the first
    step_s = takes[binds]
    images_per_s = batch / step_s
    training_hours = config.train.iterations * step_s / 3600
    validation_flop, test_flop = _evaluation_flop(config, net, data)
    views = 2 if config.evaluation.flip else 1
    features_flop = float(sum(views * n * _dense_flop(net, Q, but="fc8") for n, Q in _passes(config, data)))
    slower = machine.peak(precision) / machine.peak(config.evaluation.precision)
    evaluation_hours = (validation_flop + slower * (test_flop + features_flop)) / (speed * machine.gpus) / 3600
    results = data.val * len({*config.single_Q, *config.multi_Q})
    bookkeeping_hours = (START_S + results * RESULT_S) / 3600
    wall_hours = training_hours + evaluation_hours + bookkeeping_hours
    gpu_hours = wall_hours * machine.gpus
    return StagePlan(
        name=config.name,
        depends_on=parent,
        images=config.train.iterations * batch,
        training_flop=training_flop(config),
        evaluation_flop=validation_flop + test_flop,
        features_flop=features_flop,
        images_per_s=images_per_s,
        rate_from=rate_from,
        gpu_hours=gpu_hours,
        training_hours=training_hours,
        evaluation_hours=evaluation_hours,
        bookkeeping_hours=bookkeeping_hours,
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


def _flop_per_s(config: Config, machine: Machine) -> tuple[float, str]:
    """Returns the sustained FLOP/s of a GPU in training, and the source of the figure."""
    if not machine.measured:
        peak = machine.peak(config.train.precision)
        return peak * machine.mfu, f"assumed: {machine.mfu:.0%} of {peak / 1e12:g} TFLOP/s ({config.train.precision})"
    net = config.model.net
    if net in machine.measured:
        rate = machine.measured[net]
        return rate * flop_per_image(architecture_of(config)), f"measured: {rate:g} images/s per GPU"
    other, rate = next(iter(machine.measured.items()))
    # the same geometry, another column of Table 1
    blocks = min(len(architecture_of(config).blocks), len(facts().architectures[other]))
    flop = flop_per_image(architecture_of(config.with_settings("model", net=other, layers=None, blocks=blocks)))
    return rate * flop, f"from {other}'s measured {rate:g} images/s per GPU, by FLOPs"


def _evaluation_flop(config: Config, net: Architecture, data: ImageSet) -> tuple[float, float]:
    """Counts the FLOP of centre-crop validations in training, and of the final tests, dense at all Q."""
    forward = 2 * net.multiply_adds
    epochs = config.train.iterations * config.train.batch / data.train
    validations = max(1, int(epochs / config.train.validate_every))
    # mirror images; or, for boxes, two nets, one of which scores positions
    views = 2 if config.evaluation.flip or config.localisation else 1
    dense = sum(_dense_flop(net, Q) for Q in {*config.single_Q, *config.multi_Q})
    centre = forward * len(config.single_Q)
    return float(data.val * validations * forward), float(data.val * (centre + views * dense))


def _passes(config: Config, data: ImageSet) -> Iterator[tuple[int, int]]:
    """Yields (images, Q) of every pass over other data sets: over full images, and over persons' boxes as images."""
    for name, images in data.others.items():
        if images is not None:
            from vggrepro.evaluation.feature_spec import feature_specs

            specs = feature_specs(name, config)
            yield from ((images, Q) for Q in sorted({Q for spec in specs for Q in spec.Q}))
            yield from ((ACTION_PERSONS, Q) for Q in sorted({Q for spec in specs if spec.boxes for Q in spec.Q}))


def _dense_flop(net: Architecture, Q: int, but: str = "") -> float:
    """Counts the FLOP per uncropped image, without the layer `but`."""
    conv, fc = (
        2 * sum(layer.multiply_adds for layer in net.layers() if layer.kind == kind and layer.name != but)
        for kind in ("conv", "fc")
    )
    long = round(Q * LONG_SIDE)
    return conv * Q * long / net.crop**2 + fc * net.places(Q, long)


def disk_gb(config: Config, data: ImageSet) -> float:
    """Estimates the disk space of a stage in GB: checkpoints (weights, momentum), posteriors, features.

    Raises UserError."""
    net = architecture_of(config)
    step = 2 * 4 * net.parameters
    sets = {*config.single_Q, *config.multi_Q}
    if config.localisation:  # five guesses and the true class
        places = sum(net.places(Q, round(Q * LONG_SIDE)) for Q in sets)
        per_image = places * (value("localisation_guesses") + 1) * (BOX_NUMBERS + 1)
    else:
        per_image = len(sets) * net.classes
    units = next(layer.shape[0] for layer in net.layers() if layer.name == net.feature_layer)
    stored = data.val * per_image + units * sum(images for images, _ in _passes(config, data))
    return ((config.train.keep + 1) * step + 4 * net.parameters + 4 * stored) / 1e9
