"""Ranks: where this process stands among them, and the few things they must agree on."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from vggrepro.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store

_JOIN_TIMEOUT_S = 300.0
_TIMEOUT_S = 600.0
_SIOCGIFADDR = 0x8915  # linux/sockios.h: asks an interface for its address
_FIRST_RANK_TIMEOUT = timedelta(hours=12)  # rank 0 may be reading the headers of millions of images


@dataclass(frozen=True)
class Topology:
    """This process's place: `rank` of `world`, `local_rank` of `local_world` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0


def divisors(batch: int) -> str:
    """The numbers of ranks among which a batch can be shared, for a message."""
    return ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)


def topology(environment: Mapping[str, str]) -> Topology:
    """The topology that a launcher has put into the environment.

    torchrun's variables, else those of the SLURM step that this process is a task of, else a single process. A step may
    be smaller than its allocation, and a batch script is not a step.

    Raises UserError when some of the variables are missing, are not numbers or name no rank.
    """
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name in environment for name in torchrun):
        here = Topology(*_numbers(environment, torchrun, "start the ranks with torchrun"))
        if not (0 <= here.rank < here.world and 0 <= here.local_rank < here.local_world <= here.world):
            given = _given(environment, torchrun)
            raise UserError(f"{given}: no such rank can be (ranks count from 0); start the ranks with torchrun")
        return here
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return Topology()
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    rank, world, local_rank, node = _numbers(environment, names, "start the ranks with srun")
    tasks_per_node = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if sum(tasks_per_node) != world or node >= len(tasks_per_node):
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={environment.get('SLURM_STEP_TASKS_PER_NODE')} does not add up to "
            f"SLURM_STEP_NUM_TASKS={world}; start the ranks with srun"
        )
    return Topology(rank, world, local_rank, tasks_per_node[node])


def _numbers(environment: Mapping[str, str], names: tuple[str, ...], advice: str) -> list[int]:
    present = [name for name in names if name in environment]
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in environment)
        raise UserError(f"{present[0]} is set but {missing} is not; {advice}, or unset {present[0]}")
    try:
        return [int(environment[name]) for name in names]
    except ValueError:
        raise UserError(f"{_given(environment, names)}: expected whole numbers; {advice}") from None


def _given(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={environment[name]}" for name in names)


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's short form: "2(x3),1" is 2, 2, 2, 1."""
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in counts for _ in range(int(times or 1))]


def host_names(text: str) -> list[str]:
    """SLURM's short form of a list of machines: "n[1-2,07],m" is n1, n2, n07, m."""
    names = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        head, bracket, rest = item.partition("[")
        if not bracket:
            names.append(head)
            continue
        inner, _, tail = rest.partition("]")
        for part in inner.split(","):
            low, _, high = part.partition("-")
            middles = [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
            names += [head + middle + end for middle in middles for end in (host_names(tail) or [""])]
    return names


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


def pick_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """The device of a rank. Raises UserError when CUDA is asked for and this rank has no device."""
    import torch

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
def process_group(here: Topology, device: torch.device, timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """The process group of all ranks, in which the main thread works on `device`; for one process that alone.

    What lies on a CUDA device is exchanged by NCCL; what lies on the host, objects included, by gloo. A rank that
    leaves the others alone in a collective is an error after `timeout_s` seconds. Leaves the meeting point in
    MASTER_ADDR and MASTER_PORT.

    Raises ConnectionError, naming them, when ranks do not come within five minutes.
    """
    import torch
    from torch import distributed

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    if here.world == 1:
        yield
        return
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=_meet(here),
        rank=here.rank,
        world_size=here.world,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if cuda else None,  # or torch guesses which one NCCL is to use
    )
    # a broken network shows before any data is opened
    for place in ("cpu", device) if cuda else ("cpu",):
        distributed.all_reduce(torch.zeros(1, device=place))
    yield
    # Not after an exception: NCCL would wait for what the other ranks no longer answer.
    distributed.destroy_process_group()


def _meet(here: Topology) -> Store:
    """The ranks' common store, once all of them are there. Raises ConnectionError."""
    from torch import distributed

    host, port = meeting_point(os.environ)
    os.environ |= {"MASTER_ADDR": _address(host), "MASTER_PORT": str(port)}
    own = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
    limit = timedelta(seconds=_JOIN_TIMEOUT_S)
    try:
        server = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            here.world,
            is_master=here.is_first and not served,
            timeout=limit,
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise ConnectionError(f"rank {here.rank} on {own} cannot reach rank 0 at {host}:{port}: {error}") from None
    store = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    names = [f"rank {rank}" for rank in range(here.world)]
    store.set(names[here.rank], own)
    try:
        store.wait(names, limit)
    except RuntimeError:
        absent = [name for name in names if not store.check([name])]
        present = {store.get(name).decode() for name in names if name not in absent}
        hosts = [name for name in host_names(os.environ.get("SLURM_STEP_NODELIST", "")) if name not in present]
        silent = f"; no rank at all on {', '.join(hosts)}" if hosts else ""
        raise ConnectionError(
            f"{', '.join(absent)} of {here.world} did not come to {host}:{port} within {_JOIN_TIMEOUT_S:g} s{silent}"
        ) from None
    _keep_gloo_off_loopback({store.get(name).decode() for name in names} - {own})
    return store


def _keep_gloo_off_loopback(others: set[str]) -> None:
    """Names gloo the interface to the other machines where this one's name leads to itself, as Debian's 127.0.1.1 does.

    By itself gloo listens at the address of the machine's name, where the others cannot reach it.
    """
    if not others or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
    except OSError:  # a name without an address: gloo takes the loopback interface, too
        pass
    if interface := interface_to(_address(min(others))):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def interface_to(host: str) -> str | None:
    """The network interface through which a machine is reached, where it has an IPv4 address of its own."""
    import fcntl

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
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        pass
    try:
        command = ["scontrol", "show", "node", host, "--oneliner"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return host
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else host


def host_group(timeout: timedelta | None = None) -> ProcessGroup:
    """A group of all ranks for what is exchanged between hosts, apart from the devices' work."""
    from torch import distributed

    group = distributed.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, distributed.ProcessGroup)
    return group


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """The sum over ranks, in place; the tensor itself for a single process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.all_reduce(values, group=group)
    return values


def from_first_rank(item: Any) -> Any:
    """Rank 0's object on every rank; it is pickled, so only for what we made ourselves."""
    from torch import distributed

    if not distributed.is_initialized():
        return item
    box = [item]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def from_every_rank(item: Any) -> list[Any]:
    """Every rank's object in the order of ranks, on all ranks; pickled, like `from_first_rank`."""
    from torch import distributed

    if not distributed.is_initialized():
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


def share_of_cores() -> int:
    """How many of its machine's cores are this rank's: each that it may run on, shared with the ranks that may as well.

    SLURM may bind every task to cores of its own, or leave all of them to all tasks of a machine.
    """
    mine = os.sched_getaffinity(0)
    ranks = from_every_rank((socket.gethostname(), mine))
    beside = [cores for host, cores in ranks if host == socket.gethostname()]
    return max(1, int(sum(1 / sum(core in cores for cores in beside) for core in mine) + 1e-9))


def gather_to_first(item: Any) -> list[Any] | None:
    """Every rank's object in the order of ranks on rank 0, None elsewhere; pickled, like `from_first_rank`."""
    from torch import distributed

    if not distributed.is_initialized():
        return [item]
    items: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(item, items, dst=0)
    return items


@contextmanager
def first_rank_first(here: Topology) -> Iterator[None]:
    """Rank 0 runs the block before the others do: what it makes on disk, they find there."""
    if here.world == 1:
        yield
        return
    from torch import distributed

    group = host_group(_FIRST_RANK_TIMEOUT)
    if not here.is_first:
        distributed.barrier(group=group)
    try:
        yield
    finally:
        if here.is_first:
            distributed.barrier(group=group)
        distributed.destroy_process_group(group)
