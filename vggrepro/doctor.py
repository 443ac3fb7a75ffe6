"""What on this machine or cluster will not work, found before a job is started, and the remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from vggrepro.config import Config, Graph
from vggrepro.errors import UserError
from vggrepro.tracking import resolve_uri

if TYPE_CHECKING:
    from vggrepro.data.index import Index

Status = Literal["ok", "warn", "fail"]

_OLDEST = {"torch": (2, 10), "torchvision": (0, 25)}
_PROBE_MIB = 64
_SLOW_MIB_PER_S = 50
_PROBE_IMAGES = 256
_PROBE_S = 3.0
_SLOW_IMAGES_PER_S = 100
_SPARE_GB = 20.0
_SHM_GIB = 1.0
_PATIENCE_S = 10.0
_SLURM_CONF = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Build:
    """What the packages for one major version of CUDA run on: a lock of the clone, and an extra of the package."""

    driver: str
    """Oldest driver on Linux, by CUDA's minor-version compatibility."""
    capability: tuple[int, int]
    """Oldest GPU that the lock's torch has kernels for."""


_BUILDS = {13: Build("580.65.06", (7, 5)), 12: Build("525.60.13", (7, 0))}


def examine(graph: Graph | None, root: Path) -> list[Check]:
    """All checks; of the machine, and of a configuration where one is given. `root` is the folder of runs."""
    examinations: list[Callable[[], Iterator[Check]]] = [
        _packages,
        _gpu,
        _slurm,
        _host,
        lambda: _files(root),
        lambda: _disk(graph, root),
        lambda: _mlflow(graph, root),
    ]
    if graph:
        first = next(iter(graph.stages.values()))
        examinations.append(lambda: _data(first))
    checks: list[Check] = []
    for one in examinations:
        checks += one()
    return checks


def _packages() -> Iterator[Check]:
    yield Check("Python", "ok", platform.python_version())
    install = _install_command(_best_build(_driver()) or max(_BUILDS))
    for name, oldest in _OLDEST.items():
        found = _installed(name)
        if found is None:
            yield Check(name, "fail", "not installed", f"run `{install}`")
        elif _numbers(found)[:2] < oldest:
            needed = ".".join(map(str, oldest))
            yield Check(name, "fail", found, f"vggrepro needs {name} {needed} or newer: run `{install}`")
        else:
            yield Check(name, "ok", found)
    dali = [(package, found) for package in map(_dali, _BUILDS) if (found := _installed(package))]
    if len(dali) > 1:
        both = " and ".join(package for package, _ in dali)
        remedy = "they own the same folder, and neither is whole: install vggrepro into a new environment"
        yield Check("DALI", "fail", f"{both} are installed", remedy)
    elif dali:
        yield Check("DALI", "ok", f"{dali[0][1]} ({dali[0][0]})")
    else:
        remedy = f"images are decoded by PIL, slower; on Linux x86-64 `{install}` brings it"
        yield Check("DALI", "warn", "not installed", remedy)


def _dali(cuda: int) -> str:
    return f"nvidia-dali-cuda{cuda}0"


def _install_command(cuda: int) -> str:
    """What installs vggrepro for this major version of CUDA: make in a clone, else the installer that is there."""
    if (Path(__file__).parents[1] / "Makefile").exists():
        return f"make CUDA={cuda} install"
    pip = "pip" if importlib.util.find_spec("pip") else "uv pip"
    others = [package for package in map(_dali, _BUILDS) if package != _dali(cuda) and _installed(package)]
    removal = f"{pip} uninstall {' '.join(others)} && " if others else ""
    return f"{removal}{pip} install 'vggrepro[cuda{cuda}]'"


def _best_build(driver: str | None) -> int | None:
    """The newest CUDA that a driver is enough for; None for one that is too old, or where there is none."""
    fitting = (cuda for cuda, build in _BUILDS.items() if driver and _numbers(driver) >= _numbers(build.driver))
    return max(fitting, default=None)


def _driver() -> str | None:
    """Version of the NVIDIA driver that is loaded."""
    found = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return found.splitlines()[0] if found else None


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _gpu() -> Iterator[Check]:
    driver = _driver()
    try:
        import torch
    except Exception as error:
        remedy = (
            f"remove the environment and install it anew: `{_install_command(_best_build(driver) or max(_BUILDS))}`"
        )
        yield Check("CUDA", "fail", f"torch cannot be imported: {error}", remedy)
        return
    with warnings.catch_warnings(action="ignore"):  # torch's own words on an old driver
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
    """The remedy where there is a driver, and a torch built for `cuda` (None: for the CPU) that sees no GPU."""
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


def _slurm() -> Iterator[Check]:
    if not shutil.which("sbatch"):
        remedy = "on a cluster, load its module or log in to its head node; `vggrepro reproduce` needs none"
        yield Check("SLURM", "warn", "no sbatch on the path", remedy)
        return
    partitions = _answer(["sinfo", "--noheader", "--format=%R"])
    if partitions is None:
        configured = "SLURM_CONF" in os.environ or any(Path(file).exists() for file in _SLURM_CONF)
        remedy = "is slurmctld up? ask `scontrol ping`" if configured else "no cluster is configured on this machine"
        yield Check("SLURM", "fail" if configured else "warn", "sinfo does not answer", remedy)
    else:
        yield Check("SLURM", "ok", f"partitions {', '.join(sorted(set(partitions.split()))) or 'none'}")


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _host() -> Iterator[Check]:
    """Ranks meet at a port of the first machine, under its own name."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None, family=socket.AF_INET)[0][4][0]
    except OSError:
        yield Check("host name", "warn", f"{name} does not resolve", "several machines need it: add it to DNS or hosts")
        address = "127.0.0.1"
    try:
        with socket.create_server((str(address), 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection((str(address), port), timeout=_PATIENCE_S):
                pass
        found = f"{name} reaches itself at {address}, port {port}"
        if str(address).startswith("127.") and shutil.which("sbatch"):
            remedy = "that address means another machine elsewhere: jobs of several nodes need a name that resolves"
            yield Check("ports", "warn", found, remedy)
        else:
            yield Check("ports", "ok", found)
    except OSError as error:
        remedy = "open ports 15000-60999 between the machines, and check what their names resolve to"
        yield Check("ports", "fail", f"{name} at {address}: {error}", remedy)


def _files(root: Path) -> Iterator[Check]:
    """Checkpoints need atomic renames and hard links; their speed decides how long a save takes."""
    folder = root / f".doctor-{os.getpid()}"
    existed = root.exists()
    try:
        folder.mkdir(parents=True)
        block = os.urandom(2**20)
        started = time.perf_counter()
        with (folder / "written").open("wb") as file:
            for _ in range(_PROBE_MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        rate = _PROBE_MIB / (time.perf_counter() - started)
        os.replace(folder / "written", folder / "renamed")
        os.link(folder / "renamed", folder / "linked")
    except OSError as error:
        remedy = "choose another run.root: it must be writable, with renames and hard links"
        yield Check("runs folder", "fail", f"{root}: {error.strerror}", remedy)
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
    if rate < _SLOW_MIB_PER_S:
        remedy = f"a checkpoint of net D is 1.1 GB and would take {1056 / rate:.0f} s; choose a faster run.root"
        yield Check("runs folder", "warn", f"{root} writes {rate:.0f} MiB/s", remedy)
    else:
        yield Check("runs folder", "ok", f"{root} writes {rate:.0f} MiB/s")


def _disk(graph: Graph | None, root: Path) -> Iterator[Check]:
    from vggrepro.plan import disk_gb, image_sets_of

    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    try:
        sets = image_sets_of(graph) if graph else {}
        needed = sum(disk_gb(config, sets[name]) for name, config in graph.stages.items()) if graph else _SPARE_GB
    except UserError:  # of the index, which has a line of its own
        graph, needed = None, _SPARE_GB
    text = f"{free:,.0f} GB free, {needed:,.1f} {'' if graph else 'or more '}needed"
    if free >= needed:
        yield Check("disk", "ok", text)
    else:
        yield Check(
            "disk", "fail" if graph else "warn", text, f"free some space on {place}, or choose another run.root"
        )


def _mlflow(graph: Graph | None, root: Path) -> Iterator[Check]:
    if graph and not any(config.tracking.mlflow for config in graph.stages.values()):
        yield Check("MLflow", "ok", "off (tracking.mlflow); metrics.jsonl is always written")
        return
    version = _installed("mlflow")
    if version is None:
        yield Check("MLflow", "fail", "not installed", "install mlflow, or set tracking.mlflow=false")
        return
    configured = next(iter(graph.stages.values())).tracking.uri if graph else None
    try:
        uri = resolve_uri(configured, root)
    except UserError as error:
        yield Check("MLflow", "fail", "tracking.uri", str(error))
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        yield Check("MLflow", "ok", f"{version}, {parts.scheme} database")
        return
    host = f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    try:
        with urllib.request.urlopen(f"{host}{parts.path.rstrip('/')}/health", timeout=_PATIENCE_S):
            yield Check("MLflow", "ok", f"{version}, {host} answers")
    except urllib.error.HTTPError as error:  # it is there, and wants a password or has no such page
        yield Check("MLflow", "ok", f"{version}, {host} answers with {error.code}")
    except OSError as error:
        remedy = "runs go on and catch up when it is back; start the server, or correct tracking.uri"
        yield Check("MLflow", "warn", f"{host}: {getattr(error, 'reason', error)}", remedy)


def _data(config: Config) -> Iterator[Check]:
    """Without a scan, which may take hours: an index is held against what it was made of, a folder is looked at."""
    root, index = config.data.root, config.data.index
    if index is not None:
        from vggrepro.data.index import load

        try:
            made = load(index)
        except UserError as error:
            yield Check("index", "fail", str(index), str(error))
            return
        summary = made.summary()
        found = f"{index}: {summary['usable']:,} of {summary['images']:,} images, {summary['classes']} classes"
        if summary["classes"] != config.model.classes:
            yield Check("index", "fail", found, f"set model.classes={summary['classes']}, or name another data.index")
        elif summary["rejected"]:
            yield Check(
                "index", "warn", f"{found}, {summary['rejected']} unusable", "`vggrepro index --report` names them"
            )
        else:
            yield Check("index", "ok", found)
        if not summary["splits"]["train"]:
            remedy = "enough for `vggrepro evaluate`; to train, index the training images as well"
            yield Check("training images", "warn", f"{index} has none", remedy)
        yield from _reading(made)
    elif root is None:
        yield Check("images", "fail", "data.root is not set", "set data.root, or data.index")
    elif root.startswith("builtin:"):
        yield Check("images", "ok", f"{root}, made on the spot")
    elif Path(root).exists():
        yield Check("images", "ok", f"{root}; scanned when a stage first needs it, or now with `vggrepro index`")
    else:
        yield Check("images", "fail", f"{root} does not exist", "correct data.root")


def _reading(index: Index) -> Iterator[Check]:
    """Images at random places, as training asks for them; what the page cache has is read from there."""
    import numpy as np

    from vggrepro.data.decode import BadImageError

    split = index.split("train" if len(index.split("train")) else "val")
    rows = np.random.default_rng(0).permutation(len(split))[:_PROBE_IMAGES]
    read = size = 0
    started = time.perf_counter()
    try:
        for row in rows.tolist():
            size += len(split.read(row))
            read += 1
            if time.perf_counter() - started > _PROBE_S:
                break
    except BadImageError as error:
        yield Check("reading", "fail", f"{split.name_of(row)}: {error}", "restore the images, or index them again")
        return
    seconds = max(time.perf_counter() - started, 1e-9)
    found = f"{read / seconds:,.0f} images/s, {size / 2**20 / seconds:,.0f} MiB/s at random, in one thread"
    if read / seconds < _SLOW_IMAGES_PER_S:
        remedy = "a GPU trains D with thousands a second: put the images on a faster file system"
        yield Check("reading", "warn", found, remedy)
    else:
        yield Check("reading", "ok", found)


def render(checks: list[Check]) -> str:
    """For the terminal."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return "\n".join(lines)
