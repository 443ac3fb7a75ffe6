"""The DALI backends: decode only the region of each image that its views read, on the CPU or on a GPU.

Only this module imports DALI. On the CPU its decoder and PIL's give the same pixels for ordinary JPEGs (libjpeg-turbo).
Resampling is left to `decode.resample` and `resample.py`: where the anti-aliasing filter extends beyond the image,
DALI's resize repeats the edge and PIL omits the taps, so that the borders of strongly reduced images differ by more
than 10 grey levels. On the CPU both cost the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image

from vggrepro.data.decode import BadImageError, Region, full_region, groups, in_groups
from vggrepro.data.images.index import Split
from vggrepro.data.loading.prefetch import AHEAD, made_ahead
from vggrepro.data.views import Ints
from vggrepro.progress import warn

MOST = 64  # maximum number of images in a batch, and the default size of a piece of the loader


def regions(
    split: Split,
    wanted: Iterable[tuple[Ints, Ints]],
    *,
    threads: int,
    pool: ThreadPoolExecutor,
    readers: ThreadPoolExecutor,
    device: torch.device | None = None,
) -> Iterator[list[Region | BadImageError]]:
    """Decodes batches of (images, boxes), at most MOST images each, in `threads` threads; reads files in `readers`.

    The regions are PIL images, or tensors if a device is given. Tensors are valid for work that is queued on torch's
    current stream before the next batch is requested. PIL decodes all files that are not ordinary JPEGs, so that every
    backend converts grey, CMYK and PNG files to RGB alike. It also decodes every image of a batch on which DALI fails;
    that kills DALI's pipeline, which is built again for the batches that follow.
    """
    batches = made_ahead(_Decoded(split, pool, readers, *batch) for batch in wanted)
    with _in_use(device) as keep:
        while True:
            decoding: deque[_Decoded] = deque()
            pipe = _build(_inputs(batches, decoding), threads, device)
            dead = False
            while not dead:
                images: Sequence[Image.Image | torch.Tensor] = []
                try:
                    pipe.schedule_run()
                    (outputs,) = pipe.share_outputs()
                    if device is None:  # copied into PIL's layout
                        images = in_groups(pool, partial(_image, outputs), len(outputs))
                    else:  # torch's current stream waits for DALI's
                        images = [torch.from_dlpack(outputs[row]) for row in range(len(outputs))]
                    pipe.release_outputs()
                except StopIteration:
                    yield from (batch.regions([]) for batch in decoding)
                    return
                except RuntimeError as error:  # DALI cannot decode a file
                    if not decoding:
                        raise
                    warn(f"DALI fails to decode ({_reason(error)}); PIL decodes the batch instead")
                    dead = True
                while not decoding[0].for_dali:
                    yield decoding.popleft().regions([])
                yield decoding.popleft().regions(images)
                keep(images)
            batches = chain(tuple(decoding), batches)


@contextmanager
def _in_use(device: torch.device | None) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Yields a function that retains images decoded on a GPU until torch's kernels have read them; no-op on a CPU.

    DALI reuses a buffer as soon as no tensor on the host refers to it, even if kernels that read it are still queued.
    The function must be called after all work on the images has been queued; it waits for earlier images.
    """
    unread: deque[tuple[torch.cuda.Event, Sequence[Any]]] = deque()

    def release(most: int) -> None:
        while len(unread) > most:
            unread[0][0].synchronize()
            unread.popleft()

    def keep(images: Sequence[Any]) -> None:
        if device is not None and device.type == "cuda":
            unread.append((torch.cuda.current_stream(device).record_event(), images))
            release(AHEAD)

    try:
        yield keep
    finally:
        release(0)


def _image(outputs: Any, row: int) -> Image.Image:
    return Image.fromarray(np.asarray(outputs[row]))


class _Decoded:
    """A batch of images whose files are being read."""

    def __init__(
        self, split: Split, pool: ThreadPoolExecutor, readers: ThreadPoolExecutor, images: Ints, boxes: Ints
    ) -> None:
        assert len(images) <= MOST
        self.boxes = boxes
        self._split, self._pool, self._images = split, pool, images
        self._reading = [readers.submit(self._read, rows) for rows in groups(len(images))]

    def _read(self, rows: range) -> list[bytes | BadImageError]:
        return [self._split.read_or_reason(int(image)) for image in self._images[rows.start : rows.stop]]

    @cached_property
    def encoded(self) -> list[bytes | BadImageError]:
        """Encoded image, or the reason why it is bad, per row."""
        return [encoded for group in self._reading for encoded in group.result()]

    @cached_property
    def for_dali(self) -> list[int]:
        """Rows for DALI to decode: ordinary JPEGs that could be read."""
        ordinary = self._split.ordinary[self._images]
        return [row for row, encoded in enumerate(self.encoded) if ordinary[row] and isinstance(encoded, bytes)]

    def regions(self, images: Sequence[Image.Image | torch.Tensor]) -> list[Region | BadImageError]:
        """Completes the images that DALI decoded (none if it failed) with those that PIL decodes here."""
        found: dict[int, Region | BadImageError] = {}
        if images:
            for row, image in zip(self.for_dali, images, strict=True):
                found[row] = Region(image, *map(int, self.boxes[row, :2]))
        others = [row for row in range(len(self._images)) if row not in found]
        sizes = self._split.size[self._images[others]]
        found |= zip(others, self._pool.map(full_region, [self.encoded[row] for row in others], sizes), strict=True)
        return [found[row] for row in range(len(self._images))]


def _inputs(batches: Iterable[_Decoded], decoding: deque[_Decoded]) -> Iterator[tuple[Any, ...]]:
    """Yields DALI's inputs, and appends every batch to `decoding`, including those without images for DALI."""
    for batch in batches:
        decoding.append(batch)
        if rows := batch.for_dali:
            boxes = batch.boxes[rows].astype(np.int32)
            # the condition is always true, and is for the type checker
            encoded = [np.frombuffer(file, np.uint8) for row in rows if isinstance(file := batch.encoded[row], bytes)]
            yield encoded, np.ascontiguousarray(boxes[:, :2]), boxes[:, 2:] - boxes[:, :2]


def _build(inputs: Iterator[tuple[Any, ...]], threads: int, device: torch.device | None) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    gpu = (device.index or 0) if device is not None and device.type == "cuda" else None

    @pipeline_def(batch_size=MOST, num_threads=threads, device_id=gpu, prefetch_queue_depth=AHEAD)
    def regions() -> Any:
        encoded, anchor, extent = fn.external_source(
            inputs, num_outputs=3, ndim=1, dtype=[types.UINT8, types.INT32, types.INT32]
        )
        return fn.decoders.image_slice(
            encoded,
            anchor,
            extent,
            device="cpu" if gpu is None else "mixed",
            axis_names="HW",
            output_type=types.RGB,
            adjust_orientation=False,  # PIL does not rotate by EXIF either
        )

    pipe = regions()
    pipe.build()
    return pipe


def version() -> str:
    """Version of DALI."""
    from nvidia import dali

    return dali.__version__


def _reason(error: RuntimeError) -> str:
    """Extracts the reason from DALI's page-long message: the first line below "encountered:"."""
    _, _, below = str(error).partition("encountered:")
    return next((line.strip() for line in below.splitlines() if line.strip()), "unknown")
