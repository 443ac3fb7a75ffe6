"""Process group of the ranks, and the device of each rank."""

import fcntl
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import Store

from vggrepro.config.settings import Device
from vggrepro.errors import UserError
from vggrepro.ranks.topology import Topology, host_names

_JOIN_TIMEOUT_S = 300.0
_SIOCGIFADDR = 0x8915  # linux/sockios.h: get the address of an interface


def rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """Returns the host and port of the rendezvous: MASTER_ADDR and MASTER_PORT, else derived from the SLURM step.

    The port differs between jobs, steps and restarts, so that jobs can share a node and old ranks cannot join.
    """
    job, step, restarts = (
        int(environment.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    first = (host_names(environment.get("SLURM_STEP_NODELIST", "")) or ["127.0.0.1"])[0]
    port = 15000 + (7 * job + 101 * step + 1009 * restarts) % 15000
    return environment.get("MASTER_ADDR") or first, int(environment.get("MASTER_PORT") or port)


def pick_device(setting: Device, local_rank: int) -> torch.device:
    """Selects the device of a rank. Raises UserError if `setting` is cuda and this rank has no device."""
    count = torch.cuda.device_count()
    if setting == "cpu" or (setting == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise UserError("run.device=cuda: no CUDA device is visible; set run.device=cpu or check CUDA_VISIBLE_DEVICES")
    # SLURM may make a single device visible to each task, which is then number 0.
    number = 0 if count == 1 else local_rank
    if number >= count:
        raise UserError(
            f"local rank {local_rank} has no device: {count} CUDA devices are visible; start at most {count} ranks "
            f"on this machine"
        )
    return torch.device("cuda", number)


@contextmanager
def process_group(topology: Topology, device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Initialises the process group of all ranks for the block; a single process only sets the device.

    NCCL handles tensors on CUDA devices; gloo handles host tensors and objects. Sets MASTER_ADDR and MASTER_PORT. A
    collective fails after `timeout_s` seconds. Raises ConnectionError, which names ranks that do not connect within
    five minutes.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    if topology.world == 1:
        yield
        return
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=_meet(topology),
        rank=topology.rank,
        world_size=topology.world,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if cuda else None,  # otherwise torch guesses the device for NCCL
    )
    # A broken network fails here, before any data is opened.
    for place in ("cpu", device) if cuda else ("cpu",):
        distributed.all_reduce(torch.zeros(1, device=place))
    yield
    # Not after an exception: NCCL would wait for ranks that no longer respond.
    distributed.destroy_process_group()


def _meet(topology: Topology) -> Store:
    """Connects to the ranks' common store and waits for all of them. Raises ConnectionError."""
    host, port = rendezvous(os.environ)
    os.environ |= {"MASTER_ADDR": _address(host), "MASTER_PORT": str(port)}
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    serves = topology.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun may serve it
    limit = timedelta(seconds=_JOIN_TIMEOUT_S)
    try:
        server = distributed.TCPStore(
            os.environ["MASTER_ADDR"], port, topology.world, serves, limit, wait_for_workers=False
        )
    except RuntimeError as error:
        raise ConnectionError(f"rank {topology.rank} on {node} cannot reach rank 0 at {host}:{port}: {error}") from None
    store = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    names = [f"rank {rank}" for rank in range(topology.world)]
    store.set(names[topology.rank], node)
    try:
        store.wait(names, limit)
    except RuntimeError:
        absent = [name for name in names if not store.check([name])]
        present = {store.get(name).decode() for name in names if name not in absent}
        hosts = [name for name in host_names(os.environ.get("SLURM_STEP_NODELIST", "")) if name not in present]
        empty = f"; no rank connected from {', '.join(hosts)}" if hosts else ""
        raise ConnectionError(
            f"{', '.join(absent)} of {topology.world} did not connect to {host}:{port} within "
            f"{_JOIN_TIMEOUT_S:g} s{empty}"
        ) from None
    _keep_gloo_off_loopback({store.get(name).decode() for name in names} - {node})
    return store


def _keep_gloo_off_loopback(others: set[str]) -> None:
    """Sets gloo's network interface if the host name, on which gloo listens, resolves to the loopback address."""
    if not others or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):  # if the name has no address, gloo uses the loopback interface as well
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
    if interface := interface_to(_address(min(others))):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def interface_to(host: str) -> str | None:
    """Finds the network interface that leads to a host; None if it has no IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # a datagram socket sends nothing here
        except OSError:
            return None
        local = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                request = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if request[20:24] == local:
                    return name
    return None


def _address(host: str) -> str:
    """Returns the host name if it resolves, else the address that SLURM knows for it."""
    with suppress(OSError):
        socket.getaddrinfo(host, None)
        return host
    try:
        command = ["scontrol", "show", "node", host, "--oneliner"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return host
    address = re.search(r"\bNodeAddr=(\S+)", output)
    return address[1] if address else host
