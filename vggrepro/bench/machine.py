"""What benchmarks say of the machine, and how they wait for it."""

import gc
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def clock(device: torch.device) -> float:
    """Seconds: of wall time once the device is done, and on a CPU of this process's time on it."""
    wait_for(device)
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """The device in words: a GPU's name, or the processor's and how many cores of it may be used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {len(os.sched_getaffinity(0))} cores"


def conditions(device: torch.device) -> dict[str, Any]:
    """What every result says of the machine it was measured on."""
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": version("torch"),
    }


def release(device: torch.device) -> None:
    """Gives back the memory of nets that are not used any more, compiled ones included."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
