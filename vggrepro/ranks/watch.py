"""What a rank keeps an eye on while it works: whether it is asked to stop, and whether the other ranks are alive.

Signals and the clock set a flag and nothing else. The loops of training and evaluation ask for it at points where they
can leave, and the ranks agree there, so that all of them leave at the same step.
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
"""Exit status of a rank that gave up because another one fell silent: the newest checkpoint serves."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # SIGUSR1 belongs to NCCL; USR2 is what SLURM is asked to send
_GONE_AFTER_S = 5.0


Item = TypeVar("Item")


class Watch:
    """One rank's watch, a context manager around its work.

    Args:
        topology: this rank's place.
        silence_s: seconds without a sign of progress after which a rank counts as lost and the others end.
        stop_after_s: wall time in seconds after which the run is asked to stop.
    """

    def __init__(
        self, topology: Topology | None = None, *, silence_s: float = 600.0, stop_after_s: float | None = None
    ) -> None:
        self.topology = topology or Topology()
        self.reason: str | None = None
        """Why this rank is to stop, once it is."""
        self._silence_s = silence_s
        self._deadline = time.monotonic() + stop_after_s if stop_after_s is not None else None
        self._beats, self._doing, self._waits = 0, "", False
        self._vote: tuple[distributed.Work, torch.Tensor] | None = None
        self._group: distributed.ProcessGroup | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._lost: str | None = None

    def __enter__(self) -> Watch:
        self._signal_rx, self._signal_tx = socket.socketpair()
        self._signal_tx.setblocking(False)
        self._handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A Python handler does not run while the main thread is blocked in C, in an all-reduce say; the wakeup
            # descriptor is written at once, and the thread reads it. The handler only keeps the default one away.
            self._wakeup = signal.set_wakeup_fd(self._signal_tx.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        if self.topology.world > 1:
            self._join_others()
        self._look_at_clock()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and self.topology.world > 1:  # as gloo and NCCL report a lost connection
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
            warn(f"vggrepro: rank {self.topology.rank}: {self._lost}; ends here, the newest checkpoint serves")
            raise SystemExit(ABANDONED_STATUS) from error

    def beat(self, doing: str) -> bool:
        """Reports progress and what is done next; returns whether this rank has been asked to stop.

        From now on a rank that does not beat is a silent one, until :meth:`rest`.
        """
        self._beats += 1
        starts, self._doing = not self._doing, doing
        if starts and self.topology.world > 1:
            self._signal_tx.send(b"\0")  # the others are told now
        return self.reason is not None

    def rest(self) -> None:
        """What follows may take any time."""
        self._doing = ""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may wait for the other ranks: while it takes, this one is not the silent one."""
        self._beats += 1
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self._beats += 1

    def apart(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items, within :meth:`waiting`: what makes them waits for no other rank."""
        while True:
            self._waits = False
            item = next(items, None)
            self._waits = True
            if item is None:
                return
            yield item

    def until_stopped(self, items: Generator[Item], doing: str) -> Iterator[Item]:
        """The items, as long as nobody asks to stop; every rank calls it, each with items of its own.

        Raises Interrupted on every rank, once all have come to the end of theirs or to the request, if there was one.
        """
        with closing(items):
            for item in items:
                if self.beat(doing):
                    break
                yield item
        self.stop_if_requested()

    def vote(self) -> bool:
        """Whether any rank has been asked to stop: at every call the same answer on all ranks.

        Several ranks answer one call late, on a channel of their own, so that neither host nor device waits.
        """
        if self.topology.world == 1:
            return self.reason is not None
        answer = self._last_vote()
        flag = torch.tensor(int(self.reason is not None))
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._vote = (work, flag)
        return answer

    def stop_if_requested(self) -> None:
        """Raises Interrupted on every rank if any has been asked to stop; waits for all."""
        self._last_vote()
        with self.waiting():
            asked = int(sum_over_ranks(torch.tensor(int(self.reason is not None)), self._group))
        if asked:
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
        nonce = from_first_rank(f"watch-{os.getpid()}-{time.time_ns()}")  # an earlier attempt's entries stay apart
        server = distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        self._store = distributed.PrefixStore(nonce, server)
        self._entries: list[tuple[Any, float]] = [(None, time.monotonic())] * self.topology.world
        self._ticks: list[tuple[int, float]] = [(-1, time.monotonic())] * self.topology.world
        self._tick = 0
        self._publish()
        distributed.barrier(group=self._group)

    def _look(self) -> None:
        """The thread: hears signals at once, looks at the clock and the other ranks every so often."""
        pause_s = min(1.0, self._silence_s / 10) * max(1, self.topology.world / 64)
        unreachable_since: float | None = None
        while not self._closed.is_set():
            if select.select([self._signal_rx], [], [], pause_s)[0]:
                for number in self._signal_rx.recv(64):
                    if number in _SIGNALS:
                        self._ask(signal.Signals(number).name)
            self._look_at_clock()
            if self.topology.world == 1 or self._closed.is_set():
                continue
            try:
                self._publish()
                self._read_others()
                unreachable_since = None
            except Exception:  # the store is served by the launcher or by rank 0
                unreachable_since = unreachable_since or time.monotonic()
                self._lost = "the ranks' common store cannot be reached: rank 0 or the launcher has ended"
                if time.monotonic() - unreachable_since > self._silence_s:
                    self._abandon(self._lost)

    def _look_at_clock(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._ask("wall time nearly spent")

    def _ask(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            warn(f"vggrepro: rank {self.topology.rank}: asked to stop ({reason}); leaves at the next step")

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
        quiet = [rank for rank in range(self.topology.world) if now - self._entries[rank][1] > self._silence_s]
        for rank in quiet:
            _, waits, doing, _, host = self._entries[rank][0]
            stopped = now - self._ticks[rank][1] > self._silence_s  # not even its thread runs any more
            own = rank == self.topology.rank and now - self._entries[rank][1] < self._silence_s + _GONE_AFTER_S
            if not own and (stopped or (doing and not waits)):  # the others name this one first
                self._abandon(f"rank {rank} on {host} has been silent for {self._silence_s:g} s ({_last(doing)})")
        if len(quiet) == self.topology.world and all(self._entries[rank][0][1] for rank in quiet):
            self._abandon(f"all ranks have waited for each other for {self._silence_s:g} s ({self._doing})")

    def _abandon(self, why: str) -> None:
        if not self._closed.is_set():
            warn(f"vggrepro: rank {self.topology.rank}: {why}; ends here, the newest checkpoint serves")
            os._exit(ABANDONED_STATUS)  # the main thread is blocked for good


def _last(doing: str) -> str:
    return f"last seen: {doing}" if doing else "not seen at work"
