"""The DALI backend: region-of-interest decode, and one resampling of exactly the region a view shows.

Only this module imports DALI.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from vggrepro.data.index import Split
from vggrepro.data.views import Views

_AHEAD = 2  # batches whose bytes are being read, and batches being decoded, ahead of the one asked for


def render(
    split: Split, stream: Iterable[Views], *, mean: tuple[float, float, float], workers: int
) -> Iterator[torch.Tensor]:
    """Yields each Views of the stream as a float32 tensor (N, 3, h, w), channels last in memory, RGB 0-255 minus mean.

    The first Views must be the longest. Decoding and resampling (anti-aliased bilinear) run on the CPU in `workers`
    threads.
    """
    views = iter(stream)
    first = next(views, None)
    if first is None:
        return
    with ThreadPoolExecutor(1) as reader:
        pipe = _pipeline(_inputs(reader, split, first, views, mean), len(first), workers)
        while True:
            pipe.schedule_run()
            try:
                (images,) = pipe.share_outputs()
            except StopIteration:
                return
            # copied, since DALI uses the buffer again
            array = np.array(images.as_tensor(), copy=True)
            pipe.release_outputs()
            yield torch.from_numpy(array).permute(0, 3, 1, 2)


def _inputs(
    reader: ThreadPoolExecutor, split: Split, first: Views, views: Iterator[Views], mean: tuple[float, float, float]
) -> Iterator[tuple[Any, ...]]:
    """What the pipeline is fed, a tuple a batch, read from disk ahead of time."""

    def prepare(batch: Views) -> tuple[Any, ...]:
        box = batch.decode_box().astype(np.int32)
        window = (batch.source_window() - np.tile(box[:, :2], 2)).astype(np.float32)
        return (
            [np.frombuffer(split.read(int(picture)), np.uint8) for picture in batch.picture],
            np.ascontiguousarray(box[:, :2]),
            box[:, 2:] - box[:, :2],
            np.ascontiguousarray(window[:, :2]),
            np.ascontiguousarray(window[:, 2:]),
            np.tile(np.array(batch.shape, np.float32), (len(batch), 1)),
            batch.flip.astype(np.int32),
            # subtracting mean - shift is one operation fewer than subtracting the mean and adding the shift
            (np.array(mean, np.float32) - batch.shift)[:, None, None, :],
        )

    ahead = [reader.submit(prepare, batch) for batch in (first, *islice(views, _AHEAD - 1))]
    while ahead:
        inputs = ahead.pop(0).result()
        ahead += [reader.submit(prepare, batch) for batch in islice(views, 1)]
        yield inputs


def _pipeline(inputs: Iterator[tuple[Any, ...]], batch_size: int, threads: int) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    integer, real = types.INT32, types.FLOAT

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=_AHEAD)
    def views() -> Any:
        encoded, anchor, extent, roi_start, roi_end, size, flip, mean = fn.external_source(
            inputs,
            num_outputs=8,
            ndim=[1, 1, 1, 1, 1, 1, 0, 3],
            dtype=[types.UINT8, integer, integer, real, real, real, integer, real],
        )
        decoded = fn.decoders.image_slice(
            encoded,
            anchor,
            extent,
            axis_names="HW",
            output_type=types.RGB,
            adjust_orientation=False,  # neither PIL nor the paper's time rotates by EXIF
        )
        resized = fn.resize(
            decoded, size=size, roi_start=roi_start, roi_end=roi_end, interp_type=types.INTERP_LINEAR, antialias=True
        )
        return fn.cast(fn.flip(resized, horizontal=flip), dtype=real) - mean

    pipe = views()
    pipe.build()
    return pipe
