"""Ways to apply a net to the same validation images, timed in turn: what benchmarks of testing have in common."""

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
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
from vggrepro.models.init import init_weights
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.group import pick_device
from vggrepro.training.throughput import peak_flops

Timed = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Bench:
    """A net with random weights, twice, and the images that it is applied to."""

    config: Config
    device: torch.device
    split: Split
    loader: Loader
    net: VGG
    """As ours has it, channels last."""
    plain: VGG
    """The same weights in torch's default memory format."""

    def mean(self) -> torch.Tensor:
        """(3, 1, 1) what is subtracted from pixels."""
        return torch.tensor(self.config.data.mean).view(3, 1, 1)

    def image(self, row: int) -> Image.Image:
        """An image as PIL decodes it."""
        with Image.open(io.BytesIO(self.split.read(row))) as opened:
            return opened.convert("RGB")

    def centre_crops(self, Q: int) -> Iterator[torch.Tensor]:
        """Full batches as most people make them: torchvision's Resize(Q) and CenterCrop, never mirrored."""
        from torchvision.transforms import v2

        transform = v2.Compose([v2.Resize(Q), v2.CenterCrop(self.config.model.crop), v2.PILToTensor()])
        mean, n, batch = self.mean().to(self.device), len(self.split), self.config.evaluation.batch
        for start in range(0, n, batch):
            crops = [transform(self.image(row)) for row in range(start, min(start + batch, n))]
            yield torch.stack(crops).to(self.device).float() - mean

    def flop_per_image(self, Q: tuple[int, ...], skipped: tuple[str, ...] = ()) -> float:
        """Of the dense pass at all Q, mirror images included, without some layers; a multiply-add is two."""
        net, size_of = self.net.architecture, self.split.size
        layers = [layer for layer in net.layers() if layer.name not in skipped]
        convolutions = sum(layer.multiply_adds for layer in layers if layer.kind == "conv") / net.crop**2
        connected = sum(layer.multiply_adds for layer in layers if layer.kind == "fc")
        total = 0.0
        for side in Q:
            size = rescaled_size(size_of, side)
            places = np.prod(size // net.stride - net.fc6_kernel + 1, axis=1)
            total += float((np.prod(size, axis=1) * convolutions + places * connected).sum())
        return 2 * (1 + self.config.evaluation.flip) * total / len(size_of)

    def in_turn(self, name: str, ways: Mapping[str, Timed], rounds: int, flop: float) -> dict[str, Any]:
        """Times `ours`, `usual` and `centre_crop` in turn, so many times; (images, n) that ours and usual say agree.

        `flop` is ours of an image. Returns the keys of every benchmark, with rates in images/s.
        """
        config, device, n = self.config, self.device, len(self.split)
        precision = config.evaluation.precision
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
        set_arithmetic(device, precision)
        with autocast(device, precision), torch.inference_mode():
            results = {name: way() for name, way in ways.items()}  # and nothing is cold afterwards
            for _ in range(rounds):
                for way_name, way in ways.items():
                    started, cpu_started = time.perf_counter(), time.process_time()
                    way()
                    seconds[way_name].append(time.perf_counter() - started)
                    cpu_seconds[way_name].append(time.process_time() - cpu_started)
        rates = {name: [n / one for one in taken] for name, taken in seconds.items()}
        ratios = [ours / usual for ours, usual in zip(rates["ours"], rates["usual"], strict=True)]
        ours, peak = statistics.median(rates["ours"]), peak_flops(device, precision)
        return {
            "name": name,
            "ours": ours,
            "usual": statistics.median(rates["usual"]),
            "ratio": statistics.median(ratios),
            "unit": "images/s",
            "ceiling": peak / flop if peak else None,
            "details": {
                "centre_crop": statistics.median(rates["centre_crop"]),
                "ratio_range": [min(ratios), max(ratios)],
                "rates": rates,
                # on a machine shared with others, the processor's time says more than the clock
                "cpu_time_ratio": statistics.median(
                    usual / ours for ours, usual in zip(cpu_seconds["ours"], cpu_seconds["usual"], strict=True)
                ),
                "largest_difference": float(np.abs(results["ours"] - results["usual"]).max()),
                "tflop_per_s": ours * flop / 1e12,
                "mfu": ours * flop / peak if peak else None,
                "net": config.model.net,
                "crop": config.model.crop,
                "width": config.model.width,
                "images": n,
                "rounds": rounds,
                "precision": precision,
                "backend": self.loader.backend,
                **conditions(device),
            },
        }


def bench_of(config: Config, images: int) -> Bench:
    """A net and evenly spread validation images, at most so many. Raises UserError."""
    device = pick_device(config.run.device, 0)
    split = open_data(config, training=False).split("val")
    split = split.take(np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).astype(np.int64)))
    loader = make_loader(config.data, device)
    plain = VGG(architecture_of(config)).eval()
    init_weights(plain, "kaiming", seed=0)
    net = deepcopy(plain).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Bench(config, device, split, loader, net, plain.to(device))
