"""Distributes work over other processes of this machine with torch's DataLoader, and returns tensors in order."""

import errno
import math
import multiprocessing
import signal
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vggrepro.data.decode import blaming_the_machine, failure
from vggrepro.errors import UserError, ending_of, make_ready

_AHEAD = 2  # items that a process prepares ahead of use
_PRELOADED = ["vggrepro.data.loading.loader", "nvidia.dali.fn"]
"""Imported once, by the process that forks the others; missing modules are ignored."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}

Item = TypeVar("Item")


def in_order(share: Callable[[int, int], Iterator[Item]], processes: int) -> Generator[Item]:
    """Yields the items of all processes in turn; closing ends the processes. Raises UserError, also if one is killed.

    `share(number, n)`, which is pickled, yields the items number, number + n, ... in process `number`. The processes
    are forked from a server that never initialises CUDA. They and the server block the signals that stop this process,
    and end with it.
    """
    multiprocessing.set_forkserver_preload(_PRELOADED)
    loader = DataLoader(
        _Divided(share),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=_AHEAD,
        multiprocessing_context="forkserver",
    )
    # A signal mask is inherited and, unlike a handler, can be set in any thread. Starting the resource tracker resets
    # the mask, so the tracker is started first.
    resource_tracker.ensure_running()
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # At interpreter exit, too: Python would send the processes a signal that they block, and wait for them.
    started = set(multiprocessing.active_children()) - others
    end = weakref.finalize(loader, _end, items, started)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    except (RuntimeError, OSError, EOFError) as error:
        if "Too many open files" in str(error):  # torch's message: each shared tensor is an open file
            raise failure("images of other processes cannot be received", OSError(errno.EMFILE, "")) from None
        if not (killed := _killed(started)):
            raise
        raise UserError(
            f"a process that decodes images {killed}, perhaps because memory or /dev/shm is full (in a container: "
            f"--shm-size); set data.processes lower, or to 0 for none"
        ) from None
    finally:
        end()


def shared_empty(shape: Sequence[int]) -> torch.Tensor:
    """Allocates a uint8 tensor in shared memory, like torch's `default_collate`, so that no copy returns it."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]


def _killed(processes: set[BaseProcess]) -> str:
    """Describes how the first process that failed has ended; empty if none has within a second."""
    deadline = time.monotonic() + 1  # receiving a tensor from a killed process fails before its exit code is known
    while True:
        for process in processes:
            if process.exitcode:
                return f"{ending_of(process.exitcode)} (pid {process.pid})"
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.01)


def _end(items: Any, processes: set[BaseProcess]) -> None:
    """Ends the processes after their current item."""
    items._shutdown_workers()  # waits for up to five seconds
    for process in processes:
        if process.is_alive():
            process.kill()


class _Divided(IterableDataset):
    def __init__(self, share: Callable[[int, int], Iterator[Any]]) -> None:
        self._share = share

    def __iter__(self) -> Iterator[Any]:
        process = get_worker_info()
        assert process is not None, "not in a worker process"
        make_ready("stdout", "stderr")
        try:
            with blaming_the_machine():
                yield from self._share(process.id, process.num_workers)
        except UserError as error:
            yield error  # if raised, the message would be a full traceback
