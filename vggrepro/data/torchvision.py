"""The torchvision backend: decode and resample with PIL, as torchvision's folder data sets do, in a pool of threads.

PIL lets go of the interpreter's lock while it decodes and resamples, so threads scale and nothing is forked.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image

from vggrepro.data.index import Split
from vggrepro.data.views import Views

_AHEAD = 2  # batches decoded ahead of the one asked for


def render(
    split: Split, stream: Iterable[Views], *, mean: tuple[float, float, float], workers: int
) -> Iterator[torch.Tensor]:
    """Yields each Views of the stream as a float32 tensor (N, 3, h, w), channels last in memory, RGB 0-255 minus mean.

    Resampling is anti-aliased bilinear, by PIL.
    """
    with ThreadPoolExecutor(workers) as pool:

        def submit(batch: Views) -> tuple[Views, list[Future[np.ndarray]]]:
            windows = batch.source_window()
            return batch, [
                pool.submit(_render_one, split, int(picture), window, batch.shape, bool(flip))
                for picture, window, flip in zip(batch.picture, windows, batch.flip, strict=True)
            ]

        views = iter(stream)
        ahead = [submit(batch) for batch in islice(views, 1 + _AHEAD)]
        try:
            while ahead:
                batch, futures = ahead.pop(0)
                pixels = np.stack([future.result() for future in futures])
                ahead += [submit(following) for following in islice(views, 1)]
                images = pixels - (np.array(mean, np.float32) - batch.shift)[:, None, None, :]
                yield torch.from_numpy(images).permute(0, 3, 1, 2)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the caller may have left early


def _render_one(split: Split, picture: int, window: np.ndarray, shape: tuple[int, int], flip: bool) -> np.ndarray:
    top, left, bottom, right = window
    with Image.open(io.BytesIO(split.read(picture))) as encoded:
        image = encoded.convert("RGB")
    # `box` resamples just this window, with the filter reading beyond it: the same as rescaling all, then cropping.
    pixels = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
    return pixels[:, ::-1] if flip else pixels
