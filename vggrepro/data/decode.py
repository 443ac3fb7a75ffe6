"""From bytes to pixels, and from pixels to the window a view shows. What all backends share.

One definition of an image's pixels: what PIL decodes, converted to RGB, never rotated by EXIF. One resampling: PIL's
anti-aliased bilinear filter on exactly the window, reading beyond it, which is rescaling all and then cropping. (The
GPU's decoder differs by a few grey levels; `resample.py` is the same filter there.)
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggrepro.data.views import Ints

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]
T = TypeVar("T")
_GROUP = 4


class BadImageError(Exception):
    """An image that cannot be read or decoded; the text says why."""


@dataclass(frozen=True)
class Region:
    """A decoded part of an image."""

    image: Image.Image | torch.Tensor
    """RGB; a tensor (h, w, 3) uint8 where it was decoded on a GPU."""
    top: int
    left: int
    """Where the part lies in the image, px."""


def read(path: str, offset: int, length: int) -> bytes:
    """At most `length` bytes of a file, by a positioned read. Raises BadImageError."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)
    except OSError as error:
        raise BadImageError(f"unreadable ({error.strerror})") from None


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image in its own mode, not yet decoded; whatever goes wrong inside becomes a BadImageError."""
    if not encoded:
        raise BadImageError("empty file")
    try:
        # warnings are about metadata, which do not touch the pixels, and about large images
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as image:
            yield image
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except Image.DecompressionBombError:
        raise BadImageError("more than 179 megapixels") from None
    except MemoryError:
        raise BadImageError("out of memory") from None
    except Exception as error:  # PIL raises whatever a broken file provokes
        truncated = "truncated" in str(error).lower()
        raise BadImageError("truncated" if truncated else f"broken ({type(error).__name__})") from None


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: grey repeated, palettes looked up, alpha dropped, CMYK converted by PIL."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def whole_region(encoded: bytes, size: Ints) -> Region | BadImageError:
    """The whole image, held to the size it is indexed with, or what is wrong with it."""
    try:
        with opened(encoded) as encoded_image:
            image = rgb(encoded_image)
    except BadImageError as error:
        return error
    if image.size != (size[1], size[0]):
        return BadImageError(f"it has {image.width}x{image.height} px, its index says {size[1]}x{size[0]}")
    return Region(image, 0, 0)


def resample(region: Region, box: Ints, window: NDArray[np.float64], flip: bool, out: Pixels) -> None:
    """Fills `out` (h, w, 3) with a window of an image, given the box that the filter reads.

    Box and window are top, left, bottom, right in the image's px. PIL takes the window in single precision, so it is
    given relative to the box: the result does not depend on how much more than the box was decoded.
    """
    top, left, bottom, right = (int(edge) for edge in box - np.array([region.top, region.left] * 2))
    image = region.image
    assert isinstance(image, Image.Image), "pixels on a GPU are resampled there"
    if (left, top, right, bottom) != (0, 0, image.width, image.height):
        image = image.crop((left, top, right, bottom))
    low_y, low_x, high_y, high_x = window - np.tile(box[:2], 2)
    within = (max(low_x, 0.0), max(low_y, 0.0), min(high_x, image.width), min(high_y, image.height))
    shown = image.resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR, box=within)
    out[:] = np.asarray(shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else shown)


def groups(n: int) -> list[range]:
    """Rows 0 to n - 1 in groups: a task for a pool that is worth the handing over."""
    return [range(start, min(start + _GROUP, n)) for start in range(0, n, _GROUP)]


def in_groups(pool: ThreadPoolExecutor, function: Callable[[int], T], n: int) -> list[T]:
    """[function(0), ..., function(n - 1)], computed by a pool."""
    return [one for group in pool.map(lambda rows: [function(row) for row in rows], groups(n)) for one in group]
