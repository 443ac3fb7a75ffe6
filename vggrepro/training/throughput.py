"""Training speed, peak speeds of devices, and the cost of gradient exchange."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING, Literal

from vggrepro.config.settings import Comm, Config, Precision
from vggrepro.models.table1 import Architecture, architecture_of

if TYPE_CHECKING:
    import torch

FLOP_PER_SAVED_BYTE = 300
"""Maximum number of operations that are worth saving a byte on a rank's link. While a link of 50 GB/s sends a byte, an
H100 at 29 TFLOP/s (a step in fp32) does 575 operations; an A100 at 25 GB/s does 335. In bf16 it is ten times as many.
"""

# Dense peaks in FLOP/s from the vendors' data sheets, by a part of the device name; the first match is used.
PEAKS: dict[str, dict[Precision, float]] = {
    "H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "H200": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "V100": {"fp32": 15.7e12},
}


def flop_per_image(net: Architecture, *, frozen: bool = False) -> int:
    """Counts the floating-point operations to train on an image; a multiply-add counts as two.

    The backward pass counts twice the forward pass (for inputs and for weights), except that the first trained layer
    needs no input gradient. With `frozen`, only the FC layers are trained. D: 92.65e9, frozen 31.36e9.
    """
    layers = [layer for layer in net.layers() if layer.multiply_adds]
    trained = [layer.multiply_adds for layer in layers if layer.kind == "fc" or not frozen]
    forward = sum(layer.multiply_adds for layer in layers)
    return 2 * (forward + 2 * sum(trained) - trained[0])


def training_flop(config: Config) -> float:
    """Counts the floating-point operations to train a stage completely. Raises UserError."""
    per_image = flop_per_image(architecture_of(config), frozen=config.keeps_features)
    return float(config.train.iterations * config.train.batch * per_image)


def payload_bytes(
    net: Architecture, batch: int, comm: Comm, precision: Precision = "fp32", *, frozen: bool = False
) -> int:
    """Computes the bytes of a step's collectives; `batch` is the global one, and `frozen` are the convolutions."""
    total = sum(layer.parameters for layer in net.layers() if layer.kind == "fc" or not frozen)
    if comm != "factor":
        return (4 if comm == "ddp" else 2) * total
    fc = [layer for layer in net.layers() if layer.kind == "fc"]
    dense = sum(layer.parameters for layer in fc)
    factors = sum(layer.multiply_adds // layer.shape[0] + layer.shape[0] for layer in fc)
    return 4 * (total - dense) + (2 if precision == "bf16" else 4) * batch * factors


def sent_bytes(
    net: Architecture, batch: int, comm: Comm, ranks: int, precision: Precision = "fp32", *, frozen: bool = False
) -> float:
    """Computes the bytes that each rank sends in a step, with the arguments of :func:`payload_bytes`.

    A ring of n ranks sends 2 (n - 1) / n of an all-reduce's payload from each rank, and (n - 1) / n of an all-gather's.
    """
    payload = payload_bytes(net, batch, comm, precision, frozen=frozen)
    gathered = payload - payload_bytes(net, 0, comm, precision, frozen=frozen)
    return (2 * (payload - gathered) + gathered) * (ranks - 1) / ranks


def product_flop(net: Architecture, batch: int) -> int:
    """Counts the operations of the FC layers' weight gradients for a global batch; `factor` does them on each rank."""
    return 2 * batch * sum(layer.multiply_adds for layer in net.layers() if layer.kind == "fc")


def comm_of(
    setting: Literal["auto", Comm],
    net: Architecture,
    batch: int,
    ranks: int,
    precision: Precision,
    *,
    frozen: bool = False,
) -> Comm | None:
    """Selects the gradient exchange for a value of `train.comm`; None for a single rank.

    `auto` selects the cheaper of `ddp` and `factor`, which are equal up to rounding: `factor` if each byte saved costs
    at most FLOP_PER_SAVED_BYTE operations (67 for the paper's nets and batch). With `frozen` convolutions it is `ddp`,
    because the inputs of fc6 have no gradient, which the hooks of `factor` need.
    """
    if ranks == 1:
        return None
    if setting != "auto":
        return setting
    if frozen:
        return "ddp"
    saved = sent_bytes(net, batch, "ddp", ranks) - sent_bytes(net, batch, "factor", ranks, precision)
    added = product_flop(net, batch) * (ranks - 1) / ranks
    return "factor" if added <= FLOP_PER_SAVED_BYTE * saved else "ddp"


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Returns the peak of a device in FLOP/s according to its vendor, or None if unknown (as for CPUs)."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peaks.get(precision) for part, peaks in PEAKS.items() if part in name), None)


class Meter:
    """Time spent in steps since the last report, excluding validations and checkpoints."""

    def __init__(self) -> None:
        self._started = self._seconds = self._waited_before = 0.0
        self._images = 0

    def start(self) -> None:
        """Starts the clock before a step."""
        self._started = time.perf_counter()

    def stop(self, images: int) -> None:
        """Stops the clock after a step with `images` over all ranks; before a report, wait for the device first."""
        self._seconds += time.perf_counter() - self._started
        self._images += images

    def read(self, waited_s: float, flop: int, peak: float | None, world: int) -> dict[str, float]:
        """Returns images/s with and without waits for images, the fraction of waits, memory, and MFU; resets the meter.

        `waited_s` is this rank's total, `flop` the operations per image, and `peak` a rank's FLOP/s (None omits MFU).
        """
        waited = waited_s - self._waited_before
        busy = max(self._seconds - waited, 1e-9)
        report = {
            "images_per_s": self._images / self._seconds,
            "images_per_s_without_wait": self._images / busy,
            "data_wait": waited / self._seconds,
            "memory_gib": memory_gib(),
        }
        if peak:
            used = report["images_per_s"] * flop
            report |= {"mfu": used / (peak * world), "flop_per_image": flop, "peak_flops": peak}
        self._seconds, self._images, self._waited_before = 0.0, 0, waited_s
        return report


def describe(speed: dict[str, float]) -> str:
    """Formats a report in a few words."""
    text = f"{speed['images_per_s']:.0f} images/s  waits {speed['data_wait']:.0%}"
    if "mfu" in speed:
        text += f"  MFU {speed['mfu']:.1%} of {speed['peak_flops'] / 1e12:.0f} TFLOP/s"
    return text


def memory_gib() -> float:
    """Returns the peak memory so far in GiB, of the device if there is one, else of this process."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
