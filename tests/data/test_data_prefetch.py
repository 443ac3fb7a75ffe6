"""Prefetching: order, a separate thread and stream, and no reuse of memory in use."""

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from vggrepro.data.loading import prefetch as module
from vggrepro.data.loading.prefetch import prefetch

CPU = torch.device("cpu")


@dataclass
class Item:
    number: int
    used_by: list[Any] = field(default_factory=list)

    def record_stream(self, stream: Any) -> None:
        self.used_by.append(stream)


def items(n: int, closed: list[bool] | None = None, produced: list[int] | None = None) -> Generator[Item]:
    try:
        for number in range(n):
            if produced is not None:
                produced.append(number)
            yield Item(number)
    finally:
        if closed is not None:
            closed.append(True)


def test_all_items_are_yielded_in_order() -> None:
    assert [item.number for item in prefetch(items(7), CPU)] == list(range(7))
    assert list(prefetch(items(0), CPU)) == []


def test_only_a_few_items_are_prepared_ahead() -> None:
    produced: list[int] = []
    with closing(prefetch(items(100, produced=produced), CPU)) as ahead:
        for _ in range(3):
            next(ahead)
    assert len(produced) <= 3 + module.AHEAD


def test_closing_closes_the_source() -> None:
    closed: list[bool] = []
    with closing(prefetch(items(100, closed), CPU)) as ahead:
        next(ahead)
    assert closed == [True]


def test_errors_of_the_source_are_raised_to_the_consumer() -> None:
    def broken() -> Generator[Item]:
        yield Item(0)
        raise OSError("disk")

    with closing(prefetch(broken(), CPU)) as ahead:
        assert next(ahead).number == 0
        with pytest.raises(OSError, match="disk"):
            next(ahead)


class Cuda:
    """Simulates `torch.cuda`: device and stream are thread-local."""

    def __init__(self) -> None:
        self.of_thread: dict[int, dict[str, Any]] = {}
        self.events: list[tuple[str, Any]] = []
        cuda = self

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.device = device

            def record_event(self) -> str:
                event = f"event {len(cuda.events)}"
                cuda.events.append(("recorded", (event, self, threading.current_thread().name)))
                return event

            def wait_event(self, event: str) -> None:
                cuda.events.append(("waited", (event, self)))

        self.Stream = Stream

    @property
    def state(self) -> dict[str, Any]:
        return self.of_thread.setdefault(threading.get_ident(), {})

    def set_device(self, device: torch.device) -> None:
        self.state["device"] = device

    def set_stream(self, stream: Any) -> None:
        self.state["stream"] = stream

    def current_stream(self, device: torch.device) -> Any:
        return self.state.setdefault("stream", self.Stream(device))


def test_on_cuda_the_consumer_waits_for_a_separate_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth GPU of a machine is used; a new thread would use the first."""
    cuda, device = Cuda(), torch.device("cuda", 3)
    monkeypatch.setattr(module.torch, "cuda", cuda)
    seen: list[dict[str, Any]] = []

    def watched() -> Generator[Item]:
        for item in items(4):
            seen.append(dict(cuda.state))
            yield item

    users = cuda.current_stream(device)
    found = list(prefetch(watched(), device))
    assert [item.number for item in found] == [0, 1, 2, 3]
    (stream,) = {state_then["stream"] for state_then in seen}
    assert {state_then["device"] for state_then in seen} == {device}
    assert stream is not users
    assert all(item.used_by == [users] for item in found), "the memory waits for the stream that uses it"
    produced = [event for kind, (event, *_) in cuda.events if kind == "recorded"]
    waited = [event for kind, (event, *_) in cuda.events if kind == "waited"]
    assert waited == produced[:4], "the consumer's stream waits for each item, so the host need not"
    for kind, (_, of, *_) in cuda.events:
        assert of is (stream if kind == "recorded" else users)
