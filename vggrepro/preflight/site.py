"""Checks of SLURM, the network, the user, the disk, the tracking server."""

import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from vggrepro.config.recipes import Graph
from vggrepro.errors import HOME_PREFIX, UserError
from vggrepro.preflight.check import Check
from vggrepro.preflight.cost import disk_gb
from vggrepro.preflight.machine import image_sets_of
from vggrepro.storage.environment import PATIENCE_S, installed, output_of
from vggrepro.storage.tracking_uri import resolve_uri

_PROBE_MIB = 64
_SLOW_MIB_PER_S = 50
_SPARE_GB = 20.0
_SLURM_CONF = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


def slurm() -> Check:
    """Checks that jobs can be submitted from this machine."""
    if not shutil.which("sbatch"):
        remedy = "on a cluster, load its module or log in to its head node; `vggrepro reproduce` needs none"
        return Check("SLURM", "warn", "no sbatch on the path", remedy)
    partitions = output_of("sinfo", "--noheader", "--format=%R")
    if partitions is not None:
        return Check("SLURM", "ok", f"partitions {', '.join(sorted(set(partitions.split()))) or 'none'}")
    if "SLURM_CONF" in os.environ or any(Path(file).exists() for file in _SLURM_CONF):
        return Check("SLURM", "fail", "sinfo does not answer", "is slurmctld up? ask `scontrol ping`")
    return Check("SLURM", "warn", "sinfo does not answer", "no cluster is configured on this machine")


def host() -> Iterator[Check]:
    """Checks that this machine reaches itself by its host name, where ranks rendezvous."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None, family=socket.AF_INET)[0][4][0]
    except OSError:
        yield Check(
            "host name", "warn", f"{name} does not resolve", "jobs on several machines need it: add it to DNS or hosts"
        )
        address = "127.0.0.1"
    try:
        with socket.create_server((str(address), 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection((str(address), port), timeout=PATIENCE_S):
                pass
        found = f"{name} reaches itself at {address}, port {port}"
        if str(address).startswith("127.") and shutil.which("sbatch"):
            remedy = "other machines cannot use this address: jobs on several nodes need a name that resolves"
            yield Check("ports", "warn", found, remedy)
        else:
            yield Check("ports", "ok", found)
    except OSError as error:
        remedy = "open ports 15000-60999 between the machines, and check that their names resolve"
        yield Check("ports", "fail", f"{name} at {address}: {error}", remedy)


def home() -> Iterator[Check]:
    """Warns a user without a home, as in a container with an arbitrary user id."""
    folder = os.environ.get("HOME", "")
    if Path(folder).name.startswith(HOME_PREFIX):
        found = f"user {os.getuid()} has none; {folder} is used until the command ends"
        yield Check("home", "warn", found, "files that libraries store there are lost: set HOME to a permanent folder")


def runs_folder(root: Path) -> Check:
    """Checks atomic renames, hard links and the write speed of the folder of runs."""
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
        return Check("runs folder", "fail", f"{root}: {error.strerror}", remedy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
    found = f"{root} writes {rate:.0f} MiB/s"
    if rate >= _SLOW_MIB_PER_S:
        return Check("runs folder", "ok", found)
    remedy = f"a checkpoint of net D is 1.1 GB and would take {1056 / rate:.0f} s; choose a faster run.root"
    return Check("runs folder", "warn", found, remedy)


def disk(graph: Graph | None, root: Path) -> Check:
    """Checks the free space for a graph's runs."""
    place = next(place for place in (root.absolute(), *root.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free / 1e9
    needed, known = _SPARE_GB, False
    if graph:
        with suppress(UserError):  # an error in the index is reported by its check
            sets = image_sets_of(graph)
            needed, known = sum(disk_gb(config, sets[name]) for name, config in graph.stages.items()), True
    found = f"{free:,.0f} GB free, {needed:,.1f} {'' if known else 'or more '}needed"
    if free >= needed:
        return Check("disk", "ok", found)
    remedy = f"free some space on {place}, or choose another run.root"
    return Check("disk", "fail" if known else "warn", found, remedy)


def mlflow(graph: Graph | None, root: Path) -> Check:
    """Checks that the tracking server answers, if any."""
    if graph and not any(config.tracking.mlflow for config in graph.stages.values()):
        return Check("MLflow", "ok", "off (tracking.mlflow); metrics.jsonl is always written")
    version = installed("mlflow")
    if version is None:
        return Check("MLflow", "fail", "not installed", "install mlflow, or set tracking.mlflow=false")
    try:
        uri = resolve_uri(next(iter(graph.stages.values())).tracking.uri if graph else None, root)
    except UserError as error:
        return Check("MLflow", "fail", "tracking.uri", str(error))
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return Check("MLflow", "ok", f"{version}, {parts.scheme} database")
    server = f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    try:
        with urllib.request.urlopen(f"{server}{parts.path.rstrip('/')}/health", timeout=PATIENCE_S):
            return Check("MLflow", "ok", f"{version}, {server} answers")
    except urllib.error.HTTPError as error:  # it is there, and wants a password or has no such page
        return Check("MLflow", "ok", f"{version}, {server} answers with {error.code}")
    except OSError as error:
        remedy = "runs continue and catch up later; start the server, or correct tracking.uri"
        return Check("MLflow", "warn", f"{server}: {getattr(error, 'reason', error)}", remedy)
