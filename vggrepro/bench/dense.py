"""Dense evaluation beside the usual way: image by image, and beside the centre crop that most people report."""

import io
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vggrepro.bench.machine import conditions
from vggrepro.config.settings import Config
from vggrepro.data.dataset import open_data
from vggrepro.data.index import Split
from vggrepro.data.loader import Loader, make_loader
from vggrepro.data.views import rescaled_size
from vggrepro.evaluation.methods import METHODS, Settings, whole_views
from vggrepro.models.dense import class_scores
from vggrepro.models.init import init_weights
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.paper import value
from vggrepro.ranks.group import pick_device
from vggrepro.training.throughput import peak_flops

Timed = Callable[[], NDArray[np.float32]]


def run(config: Config, Q: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
    """Times three ways of evaluating the same validation images with the same net, in turn, `rounds` times.

    ours: dense at every Q with flips, as `vggrepro evaluate` does it; usual: the same, but one image at a time,
    decoded and resampled by PIL, in torch's default memory format; centre_crop: torchvision's Resize and CenterCrop at
    the smallest Q, in full batches. Returns the keys of every benchmark, with rates in images/s. Raises UserError.
    """
    device = pick_device(config.run.device, 0)
    split = _first(open_data(config, training=False).split("val"), images)
    loader = make_loader(config.data, device)
    plain = VGG(architecture_of(config)).eval()
    init_weights(plain, "kaiming", seed=0)
    net = deepcopy(plain).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain.to(device)
    ways: dict[str, Timed] = {
        "ours": lambda: _ours(net, loader, split, Q, config),
        "usual": lambda: _one_by_one(plain, split, Q, config, device),
        "centre_crop": lambda: _centre_crop(plain, split, min(Q), config, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    set_arithmetic(device, config.evaluation.precision)
    with autocast(device, config.evaluation.precision), torch.inference_mode():
        results = {name: way() for name, way in ways.items()}  # and nothing is cold afterwards
        for _ in range(rounds):
            for name, way in ways.items():
                started, cpu_started = time.perf_counter(), time.process_time()
                way()
                seconds[name].append(time.perf_counter() - started)
                cpu_seconds[name].append(time.process_time() - cpu_started)
    rates = {name: [len(split) / one for one in taken] for name, taken in seconds.items()}
    ratios = [ours / usual for ours, usual in zip(rates["ours"], rates["usual"], strict=True)]
    flop = _flop(net, split, Q, flips=1 + config.evaluation.flip)
    ours, peak = statistics.median(rates["ours"]), peak_flops(device, config.evaluation.precision)
    return {
        "name": "dense",
        "ours": ours,
        "usual": statistics.median(rates["usual"]),
        "ratio": statistics.median(ratios),
        "unit": "images/s",
        "ceiling": peak / (flop / len(split)) if peak else None,
        "details": {
            "centre_crop": statistics.median(rates["centre_crop"]),
            "ratio_range": [min(ratios), max(ratios)],
            "rates": rates,
            # on a machine shared with others, the processor's time says more than the clock
            "cpu_time_ratio": statistics.median(
                usual / ours for ours, usual in zip(cpu_seconds["ours"], cpu_seconds["usual"], strict=True)
            ),
            "largest_difference": float(np.abs(results["ours"] - results["usual"]).max()),
            "tflop_per_s": ours * flop / len(split) / 1e12,
            "mfu": ours * flop / len(split) / peak if peak else None,
            "minutes_for_the_papers_validation_set": value("val_images") / ours / 60,
            "net": config.model.net,
            "crop": config.model.crop,
            "width": config.model.width,
            "Q": list(Q),
            "images": len(split),
            "rounds": rounds,
            "precision": config.evaluation.precision,
            "backend": loader.backend,
            **conditions(device),
        },
    }


def _ours(net: VGG, loader: Loader, split: Split, Q: tuple[int, ...], config: Config) -> NDArray[np.float32]:
    settings = Settings(flip=config.evaluation.flip, batch=config.evaluation.batch)
    total = np.zeros((len(split), net.architecture.classes), np.float32)
    for side in Q:
        views = whole_views(split, side, settings.batch // settings.views, net.architecture.crop)
        for batch in loader.batches(split, views):
            total[batch.views.image] += METHODS["dense"](net, batch.images, settings).cpu().numpy()
    return (total / len(Q)).astype(np.float32)


def _one_by_one(
    net: VGG, split: Split, Q: tuple[int, ...], config: Config, device: torch.device
) -> NDArray[np.float32]:
    mean = torch.tensor(config.data.mean).view(3, 1, 1)
    rows = []
    for row in range(len(split)):
        posteriors = []
        for side in Q:
            with Image.open(io.BytesIO(split.read(row))) as opened:
                image = opened.convert("RGB")
            height, width = rescaled_size(split.size[row : row + 1], side)[0]
            pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
            images = (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() - mean)[None].to(device)
            views = [images, images.flip(3)] if config.evaluation.flip else [images]
            posteriors += [class_scores(net, view).float().softmax(dim=1) for view in views]
        rows.append(torch.stack(posteriors).mean(dim=0).cpu().numpy())
    return np.concatenate(rows)


def _centre_crop(net: VGG, split: Split, Q: int, config: Config, device: torch.device) -> NDArray[np.float32]:
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(Q), v2.CenterCrop(config.model.crop), v2.PILToTensor()])
    mean = torch.tensor(config.data.mean, device=device).view(3, 1, 1)
    rows = []
    for start in range(0, len(split), config.evaluation.batch):
        crops = []
        for row in range(start, min(start + config.evaluation.batch, len(split))):
            with Image.open(io.BytesIO(split.read(row))) as opened:
                crops.append(transform(opened.convert("RGB")))
        rows.append(net(torch.stack(crops).to(device).float() - mean).float().softmax(dim=1).cpu().numpy())
    return np.concatenate(rows)


def _first(split: Split, images: int) -> Split:
    """Evenly spread images of a split."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).astype(np.int64))
    columns = ("container", "offset", "length", "label", "size", "ordinary")
    return replace(split, names=split.names.take(chosen), **{key: getattr(split, key)[chosen] for key in columns})


def _flop(net: VGG, split: Split, Q: tuple[int, ...], *, flips: int) -> float:
    """Floating-point operations of the dense pass over all images, a multiply-add being two."""
    layers, crop, k = net.architecture.layers(), net.architecture.crop, net.architecture.fc6_kernel
    convolutions = sum(layer.multiply_adds for layer in layers if layer.kind == "conv") / crop**2
    connected = sum(layer.multiply_adds for layer in layers if layer.kind == "fc")
    total = 0.0
    for side in Q:
        size = rescaled_size(split.size, side)
        places = np.prod(size // net.architecture.stride - k + 1, axis=1)
        total += float((np.prod(size, axis=1) * convolutions + places * connected).sum())
    return 2 * flips * total
