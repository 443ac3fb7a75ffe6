"""Ranks: where this process stands among them, and the few things they must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from vggrepro.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

_TIMEOUT_S = 600.0
_FIRST_RANK_TIMEOUT = timedelta(hours=12)  # rank 0 may be reading the headers of millions of pictures


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


def topology(environment: Mapping[str, str]) -> Topology:
    """The topology that a launcher has put into the environment: torchrun's variables, else a single process.

    Raises UserError when some of torchrun's variables are missing or are not numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    present = [name for name in names if name in environment]
    if not present:
        return Topology()
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in environment)
        raise UserError(
            f"{present[0]} is set but {missing} is not; start the ranks with torchrun, or unset {present[0]}"
        )
    try:
        return Topology(*(int(environment[name]) for name in names))
    except ValueError:
        values = ", ".join(f"{name}={environment[name]}" for name in names)
        raise UserError(f"{values}: expected whole numbers; start the ranks with torchrun") from None


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
    """The process group of all ranks (NCCL on CUDA, gloo on the CPU); nothing for a single process.

    A rank that does not come, or leaves the others alone in a collective, is an error after `timeout_s` seconds.
    """
    if here.world == 1:
        yield
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        distributed.destroy_process_group()


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
