"""Description of the machine, clocks and synchronisation for benchmarks."""

import gc
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def clock(device: torch.device) -> float:
    """Returns seconds: wall time after synchronising a GPU; on a CPU, this process's processor time."""
    wait_for(device)
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """Returns a GPU's name, or the processor's name and number of available cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {len(os.sched_getaffinity(0))} cores"


def conditions(device: torch.device) -> dict[str, Any]:
    """Returns the description of the machine for a result."""
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": version("torch"),
    }


def release(device: torch.device) -> None:
    """Releases the memory of unused nets, including compiled ones."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
