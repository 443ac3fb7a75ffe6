"""The DALI backends: of each image, only the region that its views read is decoded, on the CPU or on a GPU.

Only this module imports DALI. On the CPU its decoder gives PIL's pixels for ordinary JPEGs (libjpeg-turbo in both).
Resampling is left to others, `decode.resample` and `resample.py`: DALI's resize repeats the image's edge where the
anti-aliasing filter reaches beyond it, PIL's leaves those taps out, and the borders of strongly reduced images differ
by more than 10 grey levels. On the CPU both cost the same.
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

MOST = 64
"""Images in one batch at most: what a piece of the loader has."""


def regions(
    split: Split,
    wanted: Iterable[tuple[Ints, Ints]],
    *,
    threads: int,
    pool: ThreadPoolExecutor,
    readers: ThreadPoolExecutor,
    device: torch.device | None = None,
) -> Iterator[list[Region | BadImageError]]:
    """Decodes batches of (images, boxes), at most MOST images each, in `threads` threads; reads in `readers`.

    Without a device pixels are PIL's images, with one they are tensors there, which a GPU has helped to decode. PIL
    decodes what is not an ordinary JPEG, so that grey, CMYK and PNG files become RGB in one way; and every image
    of a batch at which DALI fails. That kills its pipeline, which is built again for the batches after.

    Tensors are good for what torch's current stream is given before the next batch is asked for.
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
                    if device is None:  # copied into PIL's own layout
                        images = in_groups(pool, partial(_image, outputs), len(outputs))
                    else:  # torch's current stream waits for DALI's
                        images = [torch.from_dlpack(outputs[row]) for row in range(len(outputs))]
                    pipe.release_outputs()
                except StopIteration:
                    yield from (batch.regions([]) for batch in decoding)
                    return
                except RuntimeError as error:  # what DALI raises for a file it cannot decode
                    if not decoding:
                        raise
                    warn(f"DALI fails to decode ({_reason(error)}); PIL takes its batch")
                    dead = True
                while not decoding[0].for_dali:
                    yield decoding.popleft().regions([])
                yield decoding.popleft().regions(images)
                keep(images)
            batches = chain(tuple(decoding), batches)


@contextmanager
def _in_use(device: torch.device | None) -> Iterator[Callable[[Sequence[Any]], None]]:
    """What keeps images decoded on a GPU until torch's kernels have read them; nothing on the CPU.

    DALI fills a buffer again once no tensor holds it any more: on the host, where kernels that are queued do not count.
    Images are given when the current stream has been given all its work on them; the host waits for earlier ones.
    """
    unread: deque[tuple[torch.cuda.Event, Sequence[Any]]] = deque()

    def let_go(most: int) -> None:
        while len(unread) > most:
            unread[0][0].synchronize()
            unread.popleft()

    def keep(images: Sequence[Any]) -> None:
        if device is not None and device.type == "cuda":
            unread.append((torch.cuda.current_stream(device).record_event(), images))
            let_go(AHEAD)

    try:
        yield keep
    finally:
        let_go(0)


def _image(outputs: Any, row: int) -> Image.Image:
    return Image.fromarray(np.asarray(outputs[row]))


class _Decoded:
    """Images on their way, their bytes being read since it was made."""

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
        """The bytes of every row, or why there are none."""
        return [encoded for group in self._reading for encoded in group.result()]

    @cached_property
    def for_dali(self) -> list[int]:
        """The rows that DALI is to decode: ordinary JPEGs whose bytes could be read."""
        ordinary = self._split.ordinary[self._images]
        return [row for row, encoded in enumerate(self.encoded) if ordinary[row] and isinstance(encoded, bytes)]

    def regions(self, images: Sequence[Image.Image | torch.Tensor]) -> list[Region | BadImageError]:
        """All rows, given what DALI decoded of its own (nothing where it failed)."""
        found: dict[int, Region | BadImageError] = {}
        if images:
            for row, image in zip(self.for_dali, images, strict=True):
                found[row] = Region(image, *map(int, self.boxes[row, :2]))
        left = [row for row in range(len(self._images)) if row not in found]
        sizes = self._split.size[self._images[left]]
        found |= zip(left, self._pool.map(full_region, [self.encoded[row] for row in left], sizes), strict=True)
        return [found[row] for row in range(len(self._images))]


def _inputs(batches: Iterable[_Decoded], decoding: deque[_Decoded]) -> Iterator[tuple[Any, ...]]:
    """What DALI is fed. Every batch is put down in `decoding`, those that hold nothing for DALI as well."""
    for batch in batches:
        decoding.append(batch)
        rows = batch.for_dali
        if rows:
            boxes = batch.boxes[rows].astype(np.int32)
            # all of them are bytes, which only the type checker does not know
            encoded = [np.frombuffer(one, np.uint8) for row in rows if isinstance(one := batch.encoded[row], bytes)]
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
            adjust_orientation=False,  # neither PIL nor the paper's time rotates by EXIF
        )

    pipe = regions()
    pipe.build()
    return pipe


def version() -> str:
    """DALI's version."""
    from nvidia import dali

    return dali.__version__


def _reason(error: RuntimeError) -> str:
    """DALI's message is a page; what is wrong stands below the line "encountered:"."""
    _, _, below = str(error).partition("encountered:")
    return next((line.strip() for line in below.splitlines() if line.strip()), "unknown")
