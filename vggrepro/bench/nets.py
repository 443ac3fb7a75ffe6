"""Common part of the benchmarks of testing: a net applied to validation images in three ways."""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vggrepro.bench.machine import conditions
from vggrepro.bench.turns import rates_in_turn, ratios, result
from vggrepro.config.settings import Config, Evaluation
from vggrepro.data.dataset import open_data
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Loader, make_loader
from vggrepro.data.views import rescaled_size
from vggrepro.evaluation.methods import images_at_once, uncropped_views
from vggrepro.models.init import init_weights
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.group import pick_device
from vggrepro.training.throughput import peak_flops

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """Functions that compute outputs (N, k) of images with a net."""

    ours: Callable[[VGG, torch.Tensor, Evaluation], torch.Tensor]
    """Our implementation, for uncropped images of one shape and their mirror images."""
    usual: Callable[[VGG, torch.Tensor], torch.Tensor]
    """Reference implementation for uncropped images."""
    of_crops: Callable[[VGG, torch.Tensor], torch.Tensor]
    over_Q: Callable[[Sequence[Floats]], Floats]
    """Reduction of the outputs (images, k) over Q before the comparison."""
    skipped: tuple[str, ...] = ()
    """Layers that are not computed."""


@dataclass(frozen=True)
class Bench:
    """A net with random weights in two memory formats, and the images to which it is applied."""

    config: Config
    device: torch.device
    split: Split
    loader: Loader
    net: VGG
    """Net in channels-last format, as in our code."""
    plain: VGG
    """Net with the same weights in torch's default memory format."""
    mean: torch.Tensor
    """Mean that is subtracted from pixels, shape (3, 1, 1)."""

    def ours(self, output: Output, Q: int) -> Floats:
        """Computes outputs (images, k) in batches of one shape, like `vggrepro evaluate` and `vggrepro features`."""
        testing = self.config.evaluation
        views = uncropped_views(self.split, Q, images_at_once(testing), self.net.architecture.crop)
        batches = self.loader.batches(self.split, views)
        shown = [(batch.views.image, output.ours(self.net, batch.images, testing)) for batch in batches]
        values = torch.cat([found for _, found in shown]).cpu().numpy()
        return values[np.argsort(np.concatenate([rows for rows, _ in shown]))]

    def per_image(self, output: Output, Q: int) -> Floats:
        """Computes outputs (images, k) one image at a time, decoded and resampled by PIL."""
        rows = []
        for row in range(len(self.split)):
            height, width = rescaled_size(self.split.size[row : row + 1], Q)[0]
            pixels = np.array(self._image(row).resize((width, height), Image.Resampling.BILINEAR))
            image = (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() - self.mean)[None].to(self.device)
            views = [image, image.flip(3)] if self.config.evaluation.flip else [image]
            rows.append(torch.cat([output.usual(self.plain, view) for view in views]).mean(dim=0).cpu().numpy())
        return np.stack(rows)

    def centre_crop(self, output: Output, Q: int) -> Floats:
        """Computes outputs (images, k) in full batches after Resize(Q) and CenterCrop, without mirror images."""
        from torchvision.transforms import v2

        transform = v2.Compose([v2.Resize(Q), v2.CenterCrop(self.config.model.crop), v2.PILToTensor()])
        mean, n, batch = self.mean.to(self.device), len(self.split), self.config.evaluation.batch
        found = []
        for start in range(0, n, batch):
            crops = torch.stack([transform(self._image(row)) for row in range(start, min(start + batch, n))])
            found.append(output.of_crops(self.plain, crops.to(self.device).float() - mean).cpu().numpy())
        return np.concatenate(found)

    def _image(self, row: int) -> Image.Image:
        with Image.open(io.BytesIO(self.split.read(row))) as opened:
            return opened.convert("RGB")

    def flop_per_image(self, Q: tuple[int, ...], skipped: tuple[str, ...] = ()) -> float:
        """Counts the FLOP of the dense pass at all Q, including mirror images, without the skipped layers."""
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

    def compare(self, name: str, output: Output, Q: tuple[int, ...], rounds: int) -> dict[str, Any]:
        """Times the three implementations in turn. Returns the fields of every benchmark, with rates in images/s.

        `details.largest_difference` compares the outputs of ours and of the usual way.
        """
        config, device, precision = self.config, self.device, self.config.evaluation.precision
        ways: dict[str, Callable[[], Floats]] = {
            "ours": lambda: output.over_Q([self.ours(output, side) for side in Q]),
            "usual": lambda: output.over_Q([self.per_image(output, side) for side in Q]),
            "centre_crop": lambda: output.over_Q([self.centre_crop(output, min(Q))]),
        }
        set_arithmetic(device, precision)
        with autocast(device, precision), torch.inference_mode():
            results = {name: way() for name, way in ways.items()}  # also warms up
            rates, cpu_rates = rates_in_turn(ways, rounds, 1, len(self.split), time.perf_counter, time.process_time)
        flop, peak = self.flop_per_image(Q, output.skipped), peak_flops(device, precision)
        ours, by_round = statistics.median(rates["ours"]), ratios(rates["ours"], rates["usual"])
        details = {
            "centre_crop": statistics.median(rates["centre_crop"]),
            "ratio_range": [min(by_round), max(by_round)],
            "rates": rates,
            # on a shared machine, processor time is more reliable than wall time
            "cpu_time_ratio": statistics.median(ratios(cpu_rates["ours"], cpu_rates["usual"])),
            "largest_difference": float(np.abs(results["ours"] - results["usual"]).max()),
            "tflop_per_s": ours * flop / 1e12,
            "mfu": ours * flop / peak if peak else None,
            "net": config.model.net,
            "geometry": config.model.geometry,
            "images": len(self.split),
            "rounds": rounds,
            "precision": precision,
            "backend": self.loader.backend,
            **conditions(device),
        }
        return result(name, rates["ours"], rates["usual"], "images/s", details, peak / flop if peak else None)


def bench_of(config: Config, images: int) -> Bench:
    """Builds a net and selects up to `images` evenly spaced validation images. Raises UserError."""
    device = pick_device(config.run.device, 0)
    split = open_data(config, training=False).split("val")
    split = split.take(np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).astype(np.int64)))
    loader = make_loader(config.data, device)
    plain = VGG(architecture_of(config)).eval()
    init_weights(plain, "kaiming", seed=0)
    net = deepcopy(plain).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Bench(config, device, split, loader, net, plain.to(device), torch.tensor(config.data.mean).view(3, 1, 1))
