"""Profile of the training step: the device's kernels, the gaps between them, and the host."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from vggrepro.bench.machine import wait_for
from vggrepro.bench.step import about, mfu, trainer_of, training_step
from vggrepro.config.settings import Config
from vggrepro.ranks.group import pick_device

_WARM_UP = 3
_LONGEST_NAME = 100  # characters of a kernel's name, which lists its template's arguments

Interval = tuple[float, float]
"""Start and end, in microseconds."""


def run(config: Config, steps: int, top: int) -> dict[str, Any]:
    """Runs `steps` steps on images in memory three times: in a row, one at a time, and under torch's profiler.

    The first gives the rate. The second gives the host's time to launch a step: if it exceeds the duration of the step,
    the device waits for the host. The profiler gives the `top` longest kernels and the fraction of time without any
    kernel; it slows the host, so gaps are an upper bound. On a CPU the kernels are torch's outermost operations.
    Raises UserError.
    """
    device = pick_device(config.run.device, 0)
    step = training_step(trainer_of(config, device))
    for _ in range(_WARM_UP):  # compilation, autotuning, first allocations
        step()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(device)
    step_s = (time.perf_counter() - started) / steps
    host = [_host_seconds(step, device) for _ in range(steps)]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, acc_events=True) as profiler:  # torch 2.11 warns without it
        for _ in range(steps):
            step()
        wait_for(device)
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    rate = config.train.batch / step_s
    return {
        "name": "profile",
        "mfu": mfu(config, device, rate),
        "details": {
            "images_per_s": rate,
            "step_ms": 1e3 * step_s,
            "host_ms": 1e3 * statistics.median(host),
            **kernels(profiler.events(), kind, steps, top),
            **about(config, device),
            "compile": config.train.compile,
            "steps": steps,
        },
    }


def kernels(events: Iterable[FunctionEvent], kind: DeviceType, steps: int, top: int) -> dict[str, Any]:
    """Summarises the kernels of a device over `steps` steps: times in ms, fraction of time without a kernel."""
    # on a GPU annotations, such as the optimiser's, cover the kernels of a region and are none
    chosen = [e for e in events if e.device_type == kind and e.cpu_parent is None]
    chosen = [e for e in chosen if kind == DeviceType.CPU or not e.is_user_annotation]
    assert chosen, "the profiler saw nothing on the device"
    intervals: defaultdict[str, list[Interval]] = defaultdict(list)
    for event in chosen:
        intervals[event.name].append((event.time_range.start, event.time_range.end))
    every = [interval for several in intervals.values() for interval in several]
    total = sum(end - start for start, end in every)
    span = max(end for _, end in every) - min(start for start, _ in every)
    sums = {name: sum(end - start for start, end in several) for name, several in intervals.items()}
    longest = sorted(sums, key=lambda name: -sums[name])[:top]
    return {
        "busy_ms": covered(every) / 1e3 / steps,
        "idle_share": 1 - covered(every) / span,
        "launches": len(every) / steps,
        "kinds_of_kernels": len(sums),
        "top": [
            {
                "kernel": name[:_LONGEST_NAME],
                "ms": sums[name] / 1e3 / steps,
                "share": sums[name] / total,
                "launches": len(intervals[name]) / steps,
            }
            for name in longest
        ],
        "top_share": sum(sums[name] for name in longest) / total,
    }


def covered(intervals: Iterable[Interval]) -> float:
    """Returns the length of the union of intervals."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def _host_seconds(step: Any, device: torch.device) -> float:
    started = time.perf_counter()
    step()
    launched = time.perf_counter() - started
    wait_for(device)
    return launched
