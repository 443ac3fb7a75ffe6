"""From bytes to pixels, and from pixels to the window a view shows. What all backends share.

One definition of a picture's pixels: what PIL decodes, converted to RGB, never rotated by EXIF. One resampling: PIL's
anti-aliased bilinear filter on exactly the window, reading beyond it, which is rescaling all and then cropping.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggrepro.data.views import Ints

Pixels = NDArray[np.uint8]


class BadPictureError(Exception):
    """A picture that cannot be read or decoded; the text says why."""


@dataclass(frozen=True)
class Region:
    """A decoded part of a picture."""

    image: Image.Image
    """RGB."""
    top: int
    left: int
    """Where the part lies in the picture, px."""


def decode(encoded: bytes) -> Image.Image:
    """The picture as RGB, wherever its file comes from. Raises BadPictureError for a file with any damage."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as picture:
            return _rgb(picture)
    except Exception as error:  # PIL raises whatever a broken file provokes
        raise BadPictureError(f"{type(error).__name__}: {error}") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def whole_region(encoded: bytes, size: Ints) -> Region:
    """The whole picture, held to the size it is indexed with. Raises BadPictureError."""
    image = decode(encoded)
    if image.size != (size[1], size[0]):
        raise BadPictureError(f"it has {image.width}x{image.height} px, its index says {size[1]}x{size[0]}")
    return Region(image, 0, 0)


def resample(region: Region, box: Ints, window: NDArray[np.float64], flip: bool, out: Pixels) -> None:
    """Fills `out` (h, w, 3) with a window of a picture, given the box that the filter reads.

    Box and window are top, left, bottom, right in the picture's px. PIL takes the window in single precision, so it is
    given relative to the box: the result does not depend on how much more than the box was decoded.
    """
    top, left, bottom, right = (int(edge) for edge in box - np.array([region.top, region.left] * 2))
    image = region.image
    if (left, top, right, bottom) != (0, 0, image.width, image.height):
        image = image.crop((left, top, right, bottom))
    low_y, low_x, high_y, high_x = window - np.tile(box[:2], 2)
    within = (max(low_x, 0.0), max(low_y, 0.0), min(high_x, image.width), min(high_y, image.height))
    pixels = np.asarray(image.resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR, box=within))
    out[:] = pixels[:, ::-1] if flip else pixels
