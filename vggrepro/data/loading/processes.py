"""Work for other processes of this machine, by torch's DataLoader: tensors come back in order, in shared memory."""

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

_AHEAD = 2  # items that a process has ready
_PRELOADED = ["vggrepro.data.loading.loader", "nvidia.dali.fn"]
"""Imported once by the process that forks the others; what is not there is left out."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}

Item = TypeVar("Item")


def in_order(share: Callable[[int, int], Iterator[Item]], processes: int) -> Generator[Item]:
    """The items of all processes in turn; closing ends them. Raises UserError when one is killed, or raises it itself.

    `share(number, n)`, which is pickled for them, is what process `number` makes: the items number, number + n, ...
    They have no part in CUDA: they are forked from a server that never touches it. Signals that ask this process to
    stop are not for them: they end with it. The server is deaf to these, too, and with it whatever else this process
    might have it fork.
    """
    multiprocessing.set_forkserver_preload(_PRELOADED)
    loader = DataLoader(
        _Divided(share),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=_AHEAD,
        multiprocessing_context="forkserver",
    )
    # A mask is inherited, and unlike a handler it can be set in any thread. (To start its tracker Python sets one, too,
    # and takes it back.)
    resource_tracker.ensure_running()
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        items = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Also when the interpreter ends: Python would ask them to end, by a signal that they do not hear, and wait.
    started = set(multiprocessing.active_children()) - others
    end = weakref.finalize(loader, _end, items, started)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    except (RuntimeError, OSError, EOFError) as error:
        if "Too many open files" in str(error):  # torch's own words: each tensor comes with a file
            raise failure("images of other processes cannot be taken over", OSError(errno.EMFILE, "")) from None
        if not (killed := _killed(started)):
            raise
        raise UserError(
            f"a process that decodes images {killed}; perhaps for want of memory or of room in /dev/shm (in a "
            f"container: --shm-size); set data.processes lower, or to 0 for none"
        ) from None
    finally:
        end()


def shared_empty(shape: Sequence[int]) -> torch.Tensor:
    """A tensor (uint8) to be filled in another process and handed back: in shared memory from the start, as torch's own
    `default_collate` makes it, and so without a copy.
    """
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]


def _killed(processes: set[BaseProcess]) -> str:
    """The first that did not end by itself, and how; empty when there is none. To take a tensor over from one that is
    just being killed fails before its end is known (torch asks once, too early): it has a second to be dead.
    """
    until = time.monotonic() + 1
    while True:
        for process in processes:
            if process.exitcode:
                return f"{ending_of(process.exitcode)} (pid {process.pid})"
        if time.monotonic() > until:
            return ""
        time.sleep(0.01)


def _end(items: Any, processes: set[BaseProcess]) -> None:
    """Ends the processes when they are done with the item in hand."""
    items._shutdown_workers()  # waits for five seconds
    for process in processes:
        if process.is_alive():
            process.kill()


class _Divided(IterableDataset):
    def __init__(self, share: Callable[[int, int], Iterator[Any]]) -> None:
        self._share = share

    def __iter__(self) -> Iterator[Any]:
        process = get_worker_info()
        assert process is not None, "not in a process of its own"
        make_ready("stdout", "stderr")
        try:
            with blaming_the_machine():
                yield from self._share(process.id, process.num_workers)
        except UserError as error:
            yield error  # raised, it would arrive as a page
