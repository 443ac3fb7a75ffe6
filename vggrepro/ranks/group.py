"""How ranks meet: the process group, and the device of each."""

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
_SIOCGIFADDR = 0x8915  # linux/sockios.h: asks an interface for its address


def meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """Machine and port where the ranks meet: MASTER_ADDR and MASTER_PORT, else from SLURM's step.

    The port lies below the range that systems hand out by themselves, and differs between jobs, steps and restarts: two
    jobs can share a machine, and ranks left over from an attempt before cannot join.
    """
    job, step, restarts = (
        int(environment.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    first = (host_names(environment.get("SLURM_STEP_NODELIST", "")) or ["127.0.0.1"])[0]
    port = 15000 + (7 * job + 101 * step + 1009 * restarts) % 15000
    return environment.get("MASTER_ADDR") or first, int(environment.get("MASTER_PORT") or port)


def pick_device(wanted: Device, local_rank: int) -> torch.device:
    """The device of a rank. Raises UserError when CUDA is asked for and this rank has no device."""
    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise UserError(
            "run.device=cuda, but no CUDA device is visible; set run.device=cpu or check CUDA_VISIBLE_DEVICES"
        )
    # SLURM may show each task only its own device, which is then number 0.
    number = 0 if count == 1 else local_rank
    if number >= count:
        raise UserError(
            f"local rank {local_rank} finds {count} CUDA devices; start at most {count} ranks on this machine"
        )
    return torch.device("cuda", number)


@contextmanager
def process_group(topology: Topology, device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """The process group of all ranks, in which the main thread works on `device`; for one process that alone.

    What lies on a CUDA device is exchanged by NCCL; what lies on the host, objects included, by gloo. A rank that
    leaves the others alone in a collective is an error after `timeout_s` seconds. Leaves the meeting point in
    MASTER_ADDR and MASTER_PORT.

    Raises ConnectionError, naming them, when ranks do not come within five minutes.
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
        device_id=device if cuda else None,  # or torch guesses which one NCCL is to use
    )
    # a broken network shows before any data is opened
    for place in ("cpu", device) if cuda else ("cpu",):
        distributed.all_reduce(torch.zeros(1, device=place))
    yield
    # Not after an exception: NCCL would wait for what the other ranks no longer answer.
    distributed.destroy_process_group()


def _meet(topology: Topology) -> Store:
    """The ranks' common store, once all of them are there. Raises ConnectionError."""
    host, port = meeting_point(os.environ)
    os.environ |= {"MASTER_ADDR": _address(host), "MASTER_PORT": str(port)}
    own = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    serves = topology.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun itself
    limit = timedelta(seconds=_JOIN_TIMEOUT_S)
    try:
        server = distributed.TCPStore(
            os.environ["MASTER_ADDR"], port, topology.world, serves, limit, wait_for_workers=False
        )
    except RuntimeError as error:
        raise ConnectionError(f"rank {topology.rank} on {own} cannot reach rank 0 at {host}:{port}: {error}") from None
    store = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    names = [f"rank {rank}" for rank in range(topology.world)]
    store.set(names[topology.rank], own)
    try:
        store.wait(names, limit)
    except RuntimeError:
        absent = [name for name in names if not store.check([name])]
        present = {store.get(name).decode() for name in names if name not in absent}
        hosts = [name for name in host_names(os.environ.get("SLURM_STEP_NODELIST", "")) if name not in present]
        silent = f"; no rank at all on {', '.join(hosts)}" if hosts else ""
        raise ConnectionError(
            f"{', '.join(absent)} of {topology.world} did not come to {host}:{port} within "
            f"{_JOIN_TIMEOUT_S:g} s{silent}"
        ) from None
    _keep_gloo_off_loopback({store.get(name).decode() for name in names} - {own})
    return store


def _keep_gloo_off_loopback(others: set[str]) -> None:
    """Names gloo the interface to the other machines where this one's name leads to itself, as Debian's 127.0.1.1 does.

    By itself gloo listens at the address of the machine's name, where the others cannot reach it.
    """
    if not others or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):  # of a name without an address: gloo takes the loopback interface, too
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
    if interface := interface_to(_address(min(others))):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def interface_to(host: str) -> str | None:
    """The network interface through which a machine is reached, where it has an IPv4 address of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # nothing is sent: it is a datagram socket
        except OSError:
            return None
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # without an address
                continue
            if answer[20:24] == own:
                return name
    return None


def _address(host: str) -> str:
    """The name itself where it resolves, else the address that SLURM has for it."""
    with suppress(OSError):
        socket.getaddrinfo(host, None)
        return host
    try:
        command = ["scontrol", "show", "node", host, "--oneliner"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return host
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else host
