"""The packages, the driver and the GPUs of this machine."""

import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vggrepro.preflight.check import Check
from vggrepro.storage.environment import installed, output_of

_OLDEST = {"torch": (2, 10), "torchvision": (0, 25)}
_SHM_GIB = 1.0


@dataclass(frozen=True)
class Build:
    """Requirements of the packages for a major version of CUDA: a lock of the clone, an extra of the package."""

    driver: str
    """Minimum driver on Linux, by CUDA's minor-version compatibility."""
    capability: tuple[int, int]
    """Minimum compute capability of the lock's torch."""


_BUILDS = {13: Build("580.65.06", (7, 5)), 12: Build("525.60.13", (7, 0))}


def packages() -> Iterator[Check]:
    """Checks the versions of Python, torch and DALI."""
    yield Check("Python", "ok", platform.python_version())
    install = _install_command(_best_build(_driver()) or max(_BUILDS))
    for name, oldest in _OLDEST.items():
        found = installed(name)
        if found is None:
            yield Check(name, "fail", "not installed", f"run `{install}`")
        elif _numbers(found)[:2] < oldest:
            needed = ".".join(map(str, oldest))
            yield Check(name, "fail", found, f"vggrepro needs {name} {needed} or newer: run `{install}`")
        else:
            yield Check(name, "ok", found)
    dali = {package: found for package in map(_dali, _BUILDS) if (found := installed(package))}
    package, version = next(iter(dali.items()), ("", ""))
    if not dali:
        remedy = f"images are decoded by PIL, more slowly; on Linux x86-64 `{install}` brings it"
        yield Check("DALI", "warn", "not installed", remedy)
    elif len(dali) > 1:
        remedy = "they share a folder, and neither is complete: install vggrepro into a new environment"
        yield Check("DALI", "fail", f"{' and '.join(dali)} are installed", remedy)
    elif sys.flags.optimize > 1:
        remedy = "images are decoded by PIL, more slowly: leave -OO (PYTHONOPTIMIZE=2) out"
        yield Check("DALI", "warn", f"{version} cannot be used under python -OO, which drops docstrings", remedy)
    else:
        yield Check("DALI", "ok", f"{version} ({package})")


def _dali(cuda: int) -> str:
    return f"nvidia-dali-cuda{cuda}0"


def _numbers(version: str) -> tuple[int, ...]:
    """Parses 2.10.1+cu128 to (2, 10, 1)."""
    parts = version.partition("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _install_command(cuda: int) -> str:
    """Returns the command that installs vggrepro for a major version of CUDA: make in a clone, otherwise pip or uv."""
    if (Path(__file__).parents[2] / "Makefile").exists():
        return f"make CUDA={cuda} install"
    pip = "pip" if importlib.util.find_spec("pip") else "uv pip"
    others = [package for package in map(_dali, _BUILDS) if package != _dali(cuda) and installed(package)]
    removal = f"{pip} uninstall {' '.join(others)} && " if others else ""
    return f"{removal}{pip} install 'vggrepro[cuda{cuda}]'"


def _best_build(driver: str | None) -> int | None:
    """Returns the newest CUDA that a driver supports; None without a sufficient driver."""
    if driver is None:
        return None
    return max((cuda for cuda, build in _BUILDS.items() if _numbers(driver) >= _numbers(build.driver)), default=None)


def _driver() -> str | None:
    """Returns the version of the loaded NVIDIA driver."""
    found = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def gpus() -> Iterator[Check]:
    """Checks the driver, and torch's view of the GPUs."""
    driver = _driver()
    try:
        import torch
    except Exception as error:
        install = _install_command(_best_build(driver) or max(_BUILDS))
        remedy = f"remove the environment and install it again: `{install}`"
        yield Check("CUDA", "fail", f"torch cannot be imported: {error}", remedy)
        return
    with warnings.catch_warnings(action="ignore"):  # torch warns about an old driver
        available = torch.cuda.is_available()
    if not available:
        if driver:
            found = f"driver {driver}, but torch {torch.__version__} sees no GPU"
            yield Check("CUDA", "fail", found, _why_no_gpu(driver, torch.version.cuda))
        else:
            yield Check("CUDA", "warn", "no NVIDIA driver", "only the CPU is used: enough for `make demo`")
        return
    yield Check("driver", "ok", driver or "loaded")
    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    yield Check("CUDA", "ok", f"{torch.version.cuda}, {count} x {', '.join(names)}")
    if len(names) > 1:
        yield Check("GPUs", "warn", "of several kinds", "the slowest sets the pace; CUDA_VISIBLE_DEVICES chooses")
    compiled = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    oldest = min(torch.cuda.get_device_capability(number) for number in range(count))
    if compiled and 10 * oldest[0] + oldest[1] < min(compiled):
        fitting = max((cuda for cuda, build in _BUILDS.items() if build.capability <= oldest), default=None)
        remedy = f"run `{_install_command(fitting)}`" if fitting else "choose newer GPUs with CUDA_VISIBLE_DEVICES"
        found = f"compute capability {oldest[0]}.{oldest[1]}, for which torch {torch.__version__} has no kernels"
        yield Check("GPUs", "fail", found, remedy)
    if torch.distributed.is_nccl_available():
        yield Check("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Check("NCCL", "fail", "not in this torch", "install torch from its CUDA wheels")
    free = shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0
    if free < _SHM_GIB:
        remedy = "NCCL needs it between the GPUs of a machine; in a container raise it (--shm-size 8g)"
        yield Check("/dev/shm", "warn", f"{free:.2f} GiB free", remedy)


def _why_no_gpu(driver: str, cuda: str | None) -> str:
    """Returns the remedy if a torch built for `cuda` (None: for the CPU) sees no GPU despite a driver."""
    best = _best_build(driver)
    if best is None:
        oldest = min(_BUILDS)
        return f"install driver {_BUILDS[oldest].driver} or newer: CUDA {oldest} is the oldest that vggrepro runs on"
    install = _install_command(best)
    built = _BUILDS.get(_numbers(cuda)[0]) if cuda else None
    if built is None:
        return f"this torch is built for {f'CUDA {cuda}' if cuda else 'the CPU'}: run `{install}`"
    if _numbers(driver) < _numbers(built.driver):
        return f"it is built for CUDA {cuda}, which needs driver {built.driver} or newer: run `{install}`"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "not set" if visible is None else repr(visible)
    return f"the driver is new enough: was this job given a GPU? CUDA_VISIBLE_DEVICES is {shown}"
