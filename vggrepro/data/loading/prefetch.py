"""Prepares batches ahead of use in a separate thread and, on a CUDA device, on a separate stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import torch

AHEAD = 2  # number of items that are prepared, or begun, ahead of the requested one


class OnDevice(Protocol):
    """An item that can be prefetched."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Prevents reuse of the memory of its tensors until all work queued on `stream` so far is done."""


Item = TypeVar("Item", bound=OnDevice)
Begun = TypeVar("Begun")


def made_ahead(items: Iterator[Begun]) -> Iterator[Begun]:
    """Yields the items, each taken from the iterator AHEAD items early, for iterators that start background work."""
    ahead = deque(islice(items, AHEAD))
    while ahead:
        ahead.extend(islice(items, 1))
        yield ahead.popleft()


def prefetch(items: Generator[Item], device: torch.device) -> Generator[Item]:
    """Yields the items, which another thread prepares a few ahead of use; closing waits for the item in preparation.

    On a CUDA device the thread uses a separate stream, so that copies to the device and conversions overlap with the
    kernels of the previous step. The caller's stream waits until an item is ready; the host does not.
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
                    item.record_stream(taker)  # the allocator only knows the stream that made the item
                yield item
        finally:
            for future in ahead:
                future.cancel()
            maker.submit(items.close)


def _enter(stream: torch.cuda.Stream | None) -> None:
    """Sets device and stream of the thread, which would otherwise use device 0 and queue behind training's kernels."""
    if stream:
        torch.cuda.set_device(stream.device)
        torch.cuda.set_stream(stream)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a host tensor to a device without making the host wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory is synchronous
    return tensor.to(device, non_blocking=True)
