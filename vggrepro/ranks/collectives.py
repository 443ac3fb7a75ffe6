"""Collectives on host objects, and the division of a node's cores among its ranks."""

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
    """Creates a gloo group of all ranks for host data, separate from the collectives of devices."""
    group = distributed.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, distributed.ProcessGroup)
    return group


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """Sums a tensor over ranks in place and returns it; unchanged for a single process."""
    if distributed.is_initialized():
        distributed.all_reduce(values, group=group)
    return values


def from_first_rank(item: Any) -> Any:
    """Returns rank 0's object on every rank. Objects are pickled, so they must be trusted."""
    if not distributed.is_initialized():
        return item
    box = [item]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def from_every_rank(item: Any) -> list[Any]:
    """Gathers every rank's object on all ranks, in rank order; pickled as in `from_first_rank`."""
    if not distributed.is_initialized():
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


def cores_of_rank() -> int:
    """Counts this rank's cores; a core that several ranks may run on, e.g. under SLURM, is divided among them."""
    local = os.sched_getaffinity(0)
    ranks = from_every_rank((socket.gethostname(), local))
    on_host = [cores for host, cores in ranks if host == socket.gethostname()]
    return max(1, int(sum(1 / sum(core in cores for cores in on_host) for core in local) + 1e-9))


@contextmanager
def first_rank_first(topology: Topology) -> Iterator[None]:
    """Runs the block on rank 0 before the other ranks, which then find its files on disk."""
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
