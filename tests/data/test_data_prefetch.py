"""What is made ahead of its use: in order, on a thread and a stream of its own, and never in use twice."""

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


def items(n: int, closed: list[bool] | None = None, made: list[int] | None = None) -> Generator[Item]:
    try:
        for number in range(n):
            if made is not None:
                made.append(number)
            yield Item(number)
    finally:
        if closed is not None:
            closed.append(True)


def test_in_order_and_to_the_end() -> None:
    assert [item.number for item in prefetch(items(7), CPU)] == list(range(7))
    assert list(prefetch(items(0), CPU)) == []


def test_a_few_are_made_ahead_and_no_more() -> None:
    made: list[int] = []
    with closing(prefetch(items(100, made=made), CPU)) as ahead:
        for _ in range(3):
            next(ahead)
    assert len(made) <= 3 + module.AHEAD


def test_closing_closes_what_makes_them() -> None:
    closed: list[bool] = []
    with closing(prefetch(items(100, closed), CPU)) as ahead:
        next(ahead)
    assert closed == [True]


def test_what_goes_wrong_in_making_is_raised_where_it_is_used() -> None:
    def broken() -> Generator[Item]:
        yield Item(0)
        raise OSError("disk")

    with closing(prefetch(broken(), CPU)) as ahead:
        assert next(ahead).number == 0
        with pytest.raises(OSError, match="disk"):
            next(ahead)


class Cuda:
    """Stands in for `torch.cuda`: device and stream are a thread's own, as there."""

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
    def own(self) -> dict[str, Any]:
        return self.of_thread.setdefault(threading.get_ident(), {})

    def set_device(self, device: torch.device) -> None:
        self.own["device"] = device

    def set_stream(self, stream: Any) -> None:
        self.own["stream"] = stream

    def current_stream(self, device: torch.device) -> Any:
        return self.own.setdefault("stream", self.Stream(device))


def test_on_cuda_it_has_a_stream_of_its_own_which_the_users_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the fourth GPU of a machine; the thread would else work on the first."""
    cuda, device = Cuda(), torch.device("cuda", 3)
    monkeypatch.setattr(module.torch, "cuda", cuda)
    seen: list[dict[str, Any]] = []

    def watched() -> Generator[Item]:
        for item in items(4):
            seen.append(dict(cuda.own))
            yield item

    users = cuda.current_stream(device)
    found = list(prefetch(watched(), device))
    assert [item.number for item in found] == [0, 1, 2, 3]
    (stream,) = {one["stream"] for one in seen}
    assert {one["device"] for one in seen} == {device}
    assert stream is not users
    assert all(item.used_by == [users] for item in found), "its memory waits for the stream that uses it"
    made = [event for kind, (event, *_) in cuda.events if kind == "recorded"]
    waited = [event for kind, (event, *_) in cuda.events if kind == "waited"]
    assert waited == made[:4], "the user's stream waits for each item, and for the host to do so there is no need"
    for kind, (_, of, *_) in cuda.events:
        assert of is (stream if kind == "recorded" else users)
