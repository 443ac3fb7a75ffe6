"""The training step beside torchvision's reference recipe, on synthetic images, interleaved in one run."""

import itertools
import statistics
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vggrepro.bench.machine import clock, conditions, name_of, release
from vggrepro.bench.turns import rates_in_turn, ratios
from vggrepro.config.settings import Config, Model, Train
from vggrepro.data.loading.loader import Batch
from vggrepro.data.loading.prefetch import prefetch
from vggrepro.data.sampler import TrainingSampler
from vggrepro.errors import UserError
from vggrepro.models.init import init_weights
from vggrepro.models.precision import autocast
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.group import pick_device
from vggrepro.ranks.topology import Topology
from vggrepro.training.step import Trainer
from vggrepro.training.throughput import flop_per_image, peak_flops

_SIZES = np.full((1000, 2), 512, np.int64)  # arbitrary image sizes in px, from which views are drawn
_RATE = 1e-5  # a learning rate at which weights stay finite on noise: NaN computes faster

Step = Callable[[], None]


def small(net: str = "A") -> Config:
    """Returns a small geometry for a CPU."""
    return Config(model=Model(net=net, classes=100, crop=64, width=0.25), train=Train(batch=32, learning_rate=_RATE))


def plain(net: str = "A") -> Config:
    """Returns the default configuration: the paper's geometry in bf16, compiled; on a CPU a small one."""
    if torch.cuda.is_available():
        return Config(model=Model(net=net), train=Train(precision="bf16", compile=True, learning_rate=_RATE))
    return small(net)


def run(config: Config, nets: tuple[str, ...], batches: tuple[int, ...], steps: int, rounds: int) -> dict[str, Any]:
    """Times training steps of each net at each batch size: `rounds` turns of `steps` steps per implementation.

    Rates are images per second, on a CPU per second of processor time, which other load disturbs least.

    ours: the training step under `config`. usual: torchvision's reference recipe as users run it: NCHW, automatic mixed
    precision on CUDA, metrics read at every step. The details add the same recipe in channels_last, and as ceiling a
    bare step in our layout and precision. The head figures belong to the last net and batch size.
    """
    device = pick_device(config.run.device, 0)
    details: dict[str, Any] = {}
    head: dict[str, float | None] = {}
    for net, batch in itertools.product(nets, batches):
        model = config.model.model_copy(update={"net": net})
        setup = config.model_copy(update={"model": model, "train": config.train.model_copy(update={"batch": batch})})
        release(device)
        try:
            found = _compare(setup, device, steps, rounds)
        except torch.OutOfMemoryError:
            details[f"{net} batch {batch}"] = "out of memory"
            continue
        head = {key: found[key] for key in ("ours", "usual", "ratio")} | {"ceiling": found["bare"], "mfu": found["mfu"]}
        details[f"{net} batch {batch}"] = found
    if not head:
        tried = ", ".join(map(str, batches))
        raise UserError(f"--batches {tried}: none fits into the memory of {name_of(device)}; try smaller ones")
    details |= {
        "geometry": f"{config.model.geometry}, {config.model.classes} classes",
        "precision": config.train.precision,
        "compile": config.train.compile,
        "steps": steps,
        "rounds": rounds,
    } | conditions(device)
    unit = "images/s" if device.type == "cuda" else "images/s of processor time"
    return {"name": "step", "unit": unit, **head, "details": details}


def _compare(config: Config, device: torch.device, steps: int, rounds: int) -> dict[str, Any]:
    ways: dict[str, Step] = {
        "ours": training_step(trainer_of(config, device)),
        "usual": _usual(config, device, torch.contiguous_format),
        "usual_channels_last": _usual(config, device, torch.channels_last),
        "bare": _bare(config, device),
    }
    memory: dict[str, float] = {}
    for name, step in ways.items():  # compilation, autotuning, first allocations
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):
            step()
        if device.type == "cuda":
            memory[name] = torch.cuda.max_memory_allocated(device) / 2**30
    (rates,) = rates_in_turn(ways, rounds, steps, config.train.batch, partial(clock, device))
    found: dict[str, Any] = {name: statistics.median(several) for name, several in rates.items()}
    for other in ("usual", "usual_channels_last", "bare"):
        key = "ratio" if other == "usual" else f"ratio_to_{other}"
        found[key] = statistics.median(ratios(rates["ours"], rates[other]))
    found["mfu"] = mfu(config, device, found["ours"])
    found["gflop_per_image"] = flop_per_image(architecture_of(config)) / 1e9
    if memory:
        found["memory_gib_all_ways_resident"] = memory
    return found


def training_step(trainer: Trainer) -> Step:
    """Returns the training step of `vggrepro train` on images in memory."""
    config, device = trainer.config, trainer.device
    sampler = TrainingSampler(_SIZES, config.data, config.model.crop, config.run.seed)
    images, labels = noise(config, config.train.batch, device)

    def batches() -> Generator[Batch]:
        for number in itertools.count():
            yield Batch(images, labels, sampler.views(number * len(labels), len(labels)))

    endless, number = prefetch(trainer.completed(batches(), 0), device), itertools.count()
    return lambda: trainer.step(next(number), endless, config.train.learning_rate)


def trainer_of(config: Config, device: torch.device) -> Trainer:
    """Builds a trainer of an untrained net on a single rank."""
    return Trainer(untrained(config, device), config, Topology(), device)


def _usual(config: Config, device: torch.device, layout: torch.memory_format) -> Step:
    """Returns a step of `references/classification/train.py`: mixed precision on CUDA, metrics read."""
    net, optimiser = _with_sgd(config, device, layout)
    images, labels = noise(config, config.train.batch, device, layout)
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=mixed):
            scores = net(images)
            loss = F.cross_entropy(scores, labels)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        loss.item()
        (scores.topk(min(5, scores.shape[1]))[1] == labels[:, None]).sum().item()

    return step


def _bare(config: Config, device: torch.device) -> Step:
    """Returns a bare step: forward, backward, SGD."""
    net, optimiser = _with_sgd(config, device, torch.channels_last, fused=True)
    images, labels = noise(config, config.train.batch, device)

    def step() -> None:
        with autocast(device, config.train.precision):
            loss = F.cross_entropy(net(images).float(), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _with_sgd(
    config: Config, device: torch.device, layout: torch.memory_format, *, fused: bool | None = None
) -> tuple[VGG, torch.optim.SGD]:
    net, train = untrained(config, device, layout), config.train
    return net, torch.optim.SGD(
        net.parameters(), train.learning_rate, train.momentum, weight_decay=train.weight_decay, fused=fused
    )


def untrained(config: Config, device: torch.device, layout: torch.memory_format = torch.channels_last) -> VGG:
    """Builds a net with random weights, in training mode."""
    net = VGG(architecture_of(config))
    init_weights(net, "glorot_uniform", config.run.seed)
    return net.to(device, memory_format=layout).train()  # type: ignore[call-overload]


def noise(
    config: Config, rows: int, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws random input images (rows, 3, crop, crop) and labels (rows,)."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(rows, 3, config.model.crop, config.model.crop, generator=random) * 60
    labels = torch.randint(config.model.classes, (rows,), generator=random)
    return images.to(device).contiguous(memory_format=layout), labels.to(device)


def mfu(config: Config, device: torch.device, images_per_s: float) -> float | None:
    """Returns the model FLOP utilisation at a training rate; None if the device's peak is unknown."""
    peak = peak_flops(device, config.train.precision)
    return images_per_s * flop_per_image(architecture_of(config)) / peak if peak else None


def about(config: Config, device: torch.device) -> dict[str, Any]:
    """Returns the net, batch and machine of a result."""
    return {
        "net": f"{config.model.net}, {config.model.geometry}",
        "batch": config.train.batch,
        "precision": config.train.precision,
    } | conditions(device)
