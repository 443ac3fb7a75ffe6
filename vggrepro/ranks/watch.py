"""Watch over a working rank: requests to stop, and whether the other ranks are alive.

Signals and the time limit only set a flag. The loops of training and evaluation check it at points where they can stop,
and the ranks agree there, so that all of them stop at the same step.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from vggrepro.errors import Interrupted
from vggrepro.progress import warn
from vggrepro.ranks.collectives import from_first_rank, host_group, sum_over_ranks
from vggrepro.ranks.topology import Topology

ABANDONED_STATUS = 76
"""Exit status of a rank that exits because another rank is lost; the run can resume from the newest checkpoint."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # NCCL uses SIGUSR1, so the jobs request SIGUSR2 from SLURM
_GONE_AFTER_S = 5.0


Item = TypeVar("Item")


class Watch:
    """Context manager around the work of a rank.

    Args:
        topology: this rank; default: a single process.
        silence_s: seconds without progress after which a rank is considered lost and the others exit.
        stop_after_s: wall time in seconds after which this rank requests a stop.
    """

    def __init__(
        self, topology: Topology | None = None, *, silence_s: float = 600.0, stop_after_s: float | None = None
    ) -> None:
        self.topology = topology or Topology()
        self.reason: str | None = None
        """Reason of a request to stop, if there is one."""
        self._silence_s = silence_s
        self._deadline = time.monotonic() + stop_after_s if stop_after_s is not None else None
        self._beats, self._doing, self._waits = 0, "", False
        self._vote: tuple[distributed.Work, torch.Tensor] | None = None
        self._group: distributed.ProcessGroup | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)
        self._lost: str | None = None

    def __enter__(self) -> Watch:
        self._signal_rx, self._signal_tx = socket.socketpair()
        self._signal_tx.setblocking(False)
        self._handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A Python handler does not run while the main thread is blocked in C, such as in an all-reduce. The wakeup
            # descriptor is written at once, and the thread reads it. The handler only replaces the default one.
            self._wakeup = signal.set_wakeup_fd(self._signal_tx.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        if self.topology.world > 1:
            self._join_others()
        self._check_deadline()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and self.topology.world > 1:  # gloo and NCCL report lost connections so
            until = time.monotonic() + 3 * _GONE_AFTER_S
            while self._lost is None and time.monotonic() < until:
                time.sleep(0.1)
        self._closed.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
        self._signal_tx.send(b"\0")
        self._thread.join(timeout=5)
        self._signal_rx.close()
        self._signal_tx.close()
        if isinstance(error, RuntimeError) and self._lost:
            warn(self._exit_message(self._lost))
            raise SystemExit(ABANDONED_STATUS) from error

    def beat(self, doing: str) -> bool:
        """Reports progress and the next work; returns whether this rank has a request to stop. See :meth:`rest`."""
        self._beats += 1
        starts, self._doing = not self._doing, doing
        if starts and self.topology.world > 1:
            self._signal_tx.send(b"\0")  # publish it to the other ranks now
        return self.reason is not None

    def rest(self) -> None:
        """Allows any amount of time until the next beat."""
        self._doing = ""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks a block that may wait for other ranks, so that this rank is not considered the silent one."""
        self._beats += 1
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self._beats += 1

    def apart(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yields items inside :meth:`waiting`, because producing them does not wait for other ranks."""
        while True:
            self._waits = False
            item = next(items, None)
            self._waits = True
            if item is None:
                return
            yield item

    def until_stopped(self, items: Generator[Item], doing: str) -> Iterator[Item]:
        """Yields a rank's items until a request to stop, which raises Interrupted on every rank."""
        with closing(items):
            for item in items:
                if self.beat(doing):
                    break
                yield item
        self.stop_if_requested()

    def vote(self) -> bool:
        """Returns whether any rank had a request to stop at the previous call, equal on all ranks; without waiting."""
        if self.topology.world == 1:
            return self.reason is not None
        stop = self._last_vote()
        flag = torch.tensor(int(self.reason is not None))
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._vote = (work, flag)
        return stop

    def stop_if_requested(self) -> None:
        """Raises Interrupted on every rank if any rank has a request to stop; waits for all ranks."""
        self._last_vote()
        with self.waiting():
            requests = int(sum_over_ranks(torch.tensor(int(self.reason is not None)), self._group))
        if requests:
            raise Interrupted(self.reason or "another rank was asked to stop")

    def _last_vote(self) -> bool:
        if self._vote is None:
            return False
        work, flag = self._vote
        self._vote = None
        with self.waiting():
            work.wait()
        return bool(flag)

    def _join_others(self) -> None:
        self._group = host_group()
        nonce = from_first_rank(f"watch-{os.getpid()}-{time.time_ns()}")  # excludes entries of an earlier attempt
        server = distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        self._store = distributed.PrefixStore(nonce, server)
        self._entries: list[tuple[Any, float]] = [(None, time.monotonic())] * self.topology.world
        self._ticks: list[tuple[int, float]] = [(-1, time.monotonic())] * self.topology.world
        self._tick = 0
        self._publish()
        distributed.barrier(group=self._group)

    def _poll(self) -> None:
        """Runs in the thread: handles signals at once, and polls the time limit and the other ranks."""
        pause_s = min(1.0, self._silence_s / 10) * max(1, self.topology.world / 64)
        unreachable_since: float | None = None
        while not self._closed.is_set():
            if select.select([self._signal_rx], [], [], pause_s)[0]:
                for number in self._signal_rx.recv(64):
                    if number in _SIGNALS:
                        self._request_stop(signal.Signals(number).name)
            self._check_deadline()
            if self.topology.world == 1 or self._closed.is_set():
                continue
            try:
                self._publish()
                self._read_others()
                unreachable_since = None
            except Exception:  # the launcher or rank 0 serves the store
                unreachable_since = unreachable_since or time.monotonic()
                self._lost = "the ranks' common store cannot be reached: rank 0 or the launcher has ended"
                if time.monotonic() - unreachable_since > self._silence_s:
                    self._abandon(self._lost)

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._request_stop("wall time nearly spent")

    def _request_stop(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            warn(f"vggrepro: rank {self.topology.rank}: asked to stop ({reason}); stops after this step")

    def _publish(self) -> None:
        self._tick += 1
        entry = [self._tick, self._beats, self._waits, self._doing, self.reason, socket.gethostname()]
        self._store.set(str(self.topology.rank), json.dumps(entry))

    def _read_others(self) -> None:
        now = time.monotonic()
        entries = [json.loads(text) for text in self._store.multi_get([str(r) for r in range(self.topology.world)])]
        for rank, (tick, *entry) in enumerate(entries):
            if tick != self._ticks[rank][0]:
                self._ticks[rank] = (tick, now)
            if entry != self._entries[rank][0]:
                self._entries[rank] = (entry, now)
            _, _, doing, reason, host = entry
            if reason and self.reason is None:
                self.reason = f"rank {rank}: {reason}"
            if now - self._ticks[rank][1] > _GONE_AFTER_S:
                self._lost = f"rank {rank} on {host} is gone ({_last(doing)})"
        if not self._doing:
            return
        silent = [rank for rank in range(self.topology.world) if now - self._entries[rank][1] > self._silence_s]
        for rank in silent:
            _, waits, doing, _, host = self._entries[rank][0]
            stopped = now - self._ticks[rank][1] > self._silence_s  # its thread has stopped as well
            # A silent rank leaves the other ranks time to name it first.
            too_early = rank == self.topology.rank and now - self._entries[rank][1] < self._silence_s + _GONE_AFTER_S
            if not too_early and (stopped or (doing and not waits)):
                self._abandon(f"rank {rank} on {host} has been silent for {self._silence_s:g} s ({_last(doing)})")
        if len(silent) == self.topology.world and all(self._entries[rank][0][1] for rank in silent):
            self._abandon(f"all ranks have waited for each other for {self._silence_s:g} s ({self._doing})")

    def _abandon(self, reason: str) -> None:
        if not self._closed.is_set():
            warn(self._exit_message(reason))
            os._exit(ABANDONED_STATUS)  # the main thread is blocked forever

    def _exit_message(self, reason: str) -> str:
        return f"vggrepro: rank {self.topology.rank}: {reason}; exits, the run can resume from the newest checkpoint"


def _last(doing: str) -> str:
    return f"last seen: {doing}" if doing else "not seen working"
