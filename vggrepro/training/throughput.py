"""Speed, and the peak that it is compared with."""

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
"""What a rank may compute, at most, to spare its link a byte. While 50 GB/s send one, the 29 TFLOP/s that a step may
reach on an H100 in fp32 do 575 operations; an A100 at 25 GB/s does 335; and in bf16 it is ten times as many."""

# Dense peaks in FLOP/s from the vendors' data sheets, by a part of the device's name; the first match counts.
PEAKS: dict[str, dict[Precision, float]] = {
    "H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "H200": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "V100": {"fp32": 15.7e12},
}


def flop_per_image(net: Architecture, *, frozen: bool = False) -> int:
    """Floating-point operations of one training image, a multiply-add being two.

    Forward once, backward twice (for inputs and for weights), except that the first trained layer needs no input
    gradient. `frozen`: only the FC layers are trained. D: 92.65e9, frozen 31.36e9.
    """
    layers = [layer for layer in net.layers() if layer.multiply_adds]
    trained = [layer.multiply_adds for layer in layers if layer.kind == "fc" or not frozen]
    forward = sum(layer.multiply_adds for layer in layers)
    return 2 * (forward + 2 * sum(trained) - trained[0])


def training_flop(config: Config) -> float:
    """Floating-point operations of the training of a stage, from its first iteration to its last. Raises UserError."""
    per_image = flop_per_image(architecture_of(config), frozen=config.keeps_features)
    return float(config.train.iterations * config.train.batch * per_image)


def payload_bytes(
    net: Architecture, batch: int, comm: Comm, precision: Precision = "fp32", *, frozen: bool = False
) -> int:
    """Bytes of a step's collectives: the gradients' size, and in `factor` mode the gathered factors' size.

    `batch` is the global batch; with bf16 autocast a factor's number takes 2 bytes in place of 4, since inputs and
    output gradients of the FC layers are bfloat16 anyway. What crosses the wire depends on the algorithm: a ring of n
    ranks sends 2 (n - 1) / n of an all-reduce's payload from each rank, and (n - 1) / n of an all-gather's. `frozen`:
    only the FC layers have gradients.
    """
    every = sum(layer.parameters for layer in net.layers() if layer.kind == "fc" or not frozen)
    if comm == "ddp":
        return 4 * every
    if comm == "bf16":
        return 2 * every
    fc = [layer for layer in net.layers() if layer.kind == "fc"]
    dense = sum(layer.parameters for layer in fc)
    factors = sum(layer.multiply_adds // layer.shape[0] + layer.shape[0] for layer in fc)
    return 4 * (every - dense) + (2 if precision == "bf16" else 4) * batch * factors


def sent_bytes(
    net: Architecture, batch: int, comm: Comm, ranks: int, precision: Precision = "fp32", *, frozen: bool = False
) -> float:
    """Bytes that each of some ranks in rings sends in a step: 2 (n - 1) / n of what is all-reduced, (n - 1) / n of what
    is gathered. Arguments as of :func:`payload_bytes`.
    """
    payload = payload_bytes(net, batch, comm, precision, frozen=frozen)
    gathered = payload - payload_bytes(net, 0, comm, precision, frozen=frozen)
    return (2 * (payload - gathered) + gathered) * (ranks - 1) / ranks


def product_flop(net: Architecture, batch: int) -> int:
    """Floating-point operations of the FC layers' weight gradients for a global batch.

    In `factor` mode every rank does them all; in the other modes its share, the images of its own.
    """
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
    """How some ranks exchange gradients under `train.comm`; None for a single rank, which exchanges nothing.

    `auto` is whichever of `ddp` and `factor`, equal up to rounding, costs less: `factor` where each byte that it spares
    the wire costs at most FLOP_PER_SAVED_BYTE operations (67 for the paper's nets and batch), else `ddp`. With `frozen`
    convolutions it is `ddp`: the inputs of fc6 have no gradient by which `factor` would see that it is trained.
    """
    if ranks == 1:
        return None
    if setting != "auto":
        return setting
    if frozen:
        return "ddp"
    spared = sent_bytes(net, batch, "ddp", ranks) - sent_bytes(net, batch, "factor", ranks, precision)
    added = product_flop(net, batch) * (ranks - 1) / ranks
    return "factor" if added <= FLOP_PER_SAVED_BYTE * spared else "ddp"


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The device's peak in FLOP/s as its vendor states it, or None where this is not known (as for CPUs)."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peaks.get(precision) for part, peaks in PEAKS.items() if part in name), None)


class Meter:
    """Time spent in steps since the last report; what lies between steps (validation, checkpoints) does not count."""

    def __init__(self) -> None:
        self._started = self._seconds = self._waited_before = 0.0
        self._images = 0

    def start(self) -> None:
        """Before a step."""
        self._started = time.perf_counter()

    def stop(self, images: int) -> None:
        """After a step of so many images over all ranks; in the report's last step, after the device is done."""
        self._seconds += time.perf_counter() - self._started
        self._images += images

    def read(self, waited_s: float, flop: int, peak: float | None, world: int) -> dict[str, float]:
        """images/s with and without the wait for images, the wait's share, memory, and MFU where a peak is known.

        Starts again from zero. `waited_s` is this rank's waiting so far, `flop` an image's, `peak` one rank's FLOP/s.
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
    """A report in a few words."""
    text = f"{speed['images_per_s']:.0f} images/s  waits {speed['data_wait']:.0%}"
    if "mfu" in speed:
        text += f"  MFU {speed['mfu']:.1%} of {speed['peak_flops'] / 1e12:.0f} TFLOP/s"
    return text


def memory_gib() -> float:
    """Largest memory so far in GiB: of the device where there is one, else of this process."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
