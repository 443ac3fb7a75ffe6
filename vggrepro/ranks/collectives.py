"""The few things that ranks must agree on."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from vggrepro.ranks.topology import Topology

_FIRST_RANK_TIMEOUT = timedelta(hours=12)  # rank 0 may be reading the headers of millions of images


def host_group(timeout: timedelta | None = None) -> ProcessGroup:
    """A group of all ranks for what is exchanged between hosts, apart from the devices' work."""
    group = distributed.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, distributed.ProcessGroup)
    return group


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """The sum over ranks, in place; the tensor itself for a single process."""
    if distributed.is_initialized():
        distributed.all_reduce(values, group=group)
    return values


def from_first_rank(item: Any) -> Any:
    """Rank 0's object on every rank; it is pickled, so only for what we made ourselves."""
    if not distributed.is_initialized():
        return item
    box = [item]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def from_every_rank(item: Any) -> list[Any]:
    """Every rank's object in the order of ranks, on all ranks; pickled, like `from_first_rank`."""
    if not distributed.is_initialized():
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


def cores_of_rank() -> int:
    """How many of its machine's cores are this rank's: each that it may run on, shared with the ranks that may as well.

    SLURM may bind every task to cores of its own, or leave all of them to all tasks of a machine.
    """
    mine = os.sched_getaffinity(0)
    ranks = from_every_rank((socket.gethostname(), mine))
    beside = [cores for host, cores in ranks if host == socket.gethostname()]
    return max(1, int(sum(1 / sum(core in cores for cores in beside) for core in mine) + 1e-9))


@contextmanager
def first_rank_first(topology: Topology) -> Iterator[None]:
    """Rank 0 runs the block before the others do: what it makes on disk, they find there."""
    if topology.world == 1:
        yield
        return
    group = host_group(_FIRST_RANK_TIMEOUT)
    if not topology.is_first:
        distributed.barrier(group=group)
    try:
        yield
    finally:
        if topology.is_first:
            distributed.barrier(group=group)
        distributed.destroy_process_group(group)
