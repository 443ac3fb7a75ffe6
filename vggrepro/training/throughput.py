"""Speed, and what it is held against."""

from __future__ import annotations

import resource
import sys
import time
from typing import Literal

import torch

from vggrepro.models.table1 import Architecture

Precision = Literal["fp32", "tf32", "bf16"]

# Dense peaks in FLOP/s from the vendors' data sheets, by a part of the device's name; the first match counts.
PEAKS: dict[str, dict[Precision, float]] = {
    "H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "H200": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "V100": {"fp32": 15.7e12},
}


def flop_per_picture(net: Architecture) -> int:
    """Floating-point operations of one training picture, a multiply-add being two.

    Forward once, backward twice (for inputs and for weights), except that the first layer needs no input gradient.
    D: 92.65e9.
    """
    layers = [layer.multiply_adds for layer in net.layers() if layer.multiply_adds]
    return 2 * (3 * sum(layers) - layers[0])


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The device's peak in FLOP/s as its vendor states it, or None where this is not known (as for CPUs)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(precision) for part, peaks in PEAKS.items() if part in name), None)


class Meter:
    """Time spent in steps since the last report; what lies between steps (validation, checkpoints) does not count."""

    def __init__(self) -> None:
        self._started = self._seconds = self._waited_before = 0.0
        self._pictures = 0

    def start(self) -> None:
        """Before a step."""
        self._started = time.perf_counter()

    def stop(self, pictures: int) -> None:
        """After a step of so many pictures over all ranks; in the report's last step, after the device is done."""
        self._seconds += time.perf_counter() - self._started
        self._pictures += pictures

    def read(self, waited_s: float, flop: int, peak: float | None, world: int) -> dict[str, float]:
        """images/s with and without the wait for pictures, the wait's share, memory, and MFU where a peak is known.

        Starts anew. `waited_s` is this rank's waiting so far, `flop` a picture's, `peak` one rank's FLOP/s.
        """
        waited = waited_s - self._waited_before
        busy = max(self._seconds - waited, 1e-9)
        report = {
            "images_per_s": self._pictures / self._seconds,
            "images_per_s_without_wait": self._pictures / busy,
            "data_wait": waited / self._seconds,
            "memory_gib": memory_gib(),
        }
        if peak:
            used = report["images_per_s"] * flop
            report |= {"mfu": used / (peak * world), "flop_per_image": flop, "peak_flops": peak}
        self._seconds, self._pictures, self._waited_before = 0.0, 0, waited_s
        return report


def describe(speed: dict[str, float]) -> str:
    """A report in a few words."""
    text = f"{speed['images_per_s']:.0f} images/s  waits {speed['data_wait']:.0%}"
    if "mfu" in speed:
        text += f"  MFU {speed['mfu']:.1%} of {speed['peak_flops'] / 1e12:.0f} TFLOP/s"
    return text


def memory_gib() -> float:
    """Largest memory so far in GiB: of the device where there is one, else of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
