"""Batches made ahead of their use, by a thread of their own and, on a CUDA device, a stream of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import torch

AHEAD = 2
"""Items made, or begun, ahead of the one asked for."""


class OnDevice(Protocol):
    """What is prefetched."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of its tensors from being used again before what `stream` has been given so far is done."""


Item = TypeVar("Item", bound=OnDevice)
Begun = TypeVar("Begun")


def made_ahead(items: Iterator[Begun]) -> Iterator[Begun]:
    """The items, each taken from the iterator AHEAD of its turn: for what others work on from then on."""
    ahead = deque(islice(items, AHEAD))
    while ahead:
        ahead.extend(islice(items, 1))
        yield ahead.popleft()


def prefetch(items: Generator[Item], device: torch.device) -> Generator[Item]:
    """The items, made by another thread, a few ahead of the one asked for. Closing waits for the one being made.

    On a CUDA device the thread works on a stream beside the caller's, so that copies to the device and conversions run
    under the kernels of the step before. The caller's stream waits until an item is there, the host does not.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make() -> tuple[Item | None, torch.cuda.Event | None]:
        return next(items, None), stream.record_event() if stream else None

    with ThreadPoolExecutor(1, "prefetch", initializer=_enter, initargs=(stream,)) as maker:
        ahead = deque(maker.submit(make) for _ in range(AHEAD))
        try:
            while True:
                item, made = ahead.popleft().result()
                if item is None:
                    return
                ahead.append(maker.submit(make))
                if made:
                    taker = torch.cuda.current_stream(device)
                    taker.wait_event(made)
                    item.record_stream(taker)  # the allocator knows the stream that made it, not the one that uses it
                yield item
        finally:
            for future in ahead:
                future.cancel()
            maker.submit(items.close)


def _enter(stream: torch.cuda.Stream | None) -> None:
    """Device and stream are a thread's own: without this it would work on device 0, behind the kernels of training."""
    if stream:
        torch.cuda.set_device(stream.device)
        torch.cuda.set_stream(stream)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on a device; the host does not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from pageable memory it would wait
    return tensor.to(device, non_blocking=True)
