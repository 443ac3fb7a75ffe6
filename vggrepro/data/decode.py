"""Reading, decoding and resampling, shared by all backends.

The pixels of an image are defined as what PIL decodes, converted to RGB and never rotated by EXIF. The resampling is
PIL's anti-aliased bilinear filter on exactly the window, with reads beyond it, which equals rescaling the full image
and then cropping. (The GPU's decoder differs by a few grey levels; `resample.py` is the same filter on a device.)

Only defects of the file make an image bad. Failures of the machine (open files, memory, permissions, unmounted file
systems) pass, or they end the command.
"""

from __future__ import annotations

import errno
import io
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggrepro.data.views import Ints
from vggrepro.errors import MACHINE_REMEDIES, UserError
from vggrepro.progress import warn

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]
T = TypeVar("T")
_GROUP = 4
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between attempts to read
_FILE_ERRORS = {errno.EISDIR, errno.ELOOP}
_LASTING = {errno.EACCES, errno.EPERM}
_REMEDIES = dict.fromkeys(_LASTING, "change its permissions")
_REMEDIES |= {number: MACHINE_REMEDIES[number] for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)}
_warned: dict[int, float] = {}  # time of the last warning about an errno
_given_up: dict[int, float] = {}
"""Time at which retrying after an errno was given up: images requested in the meantime do not wait again."""
_lock = threading.Lock()

# PIL imports a format's plugin when it first meets the format, and reports the file as broken if the import fails, for
# example because file descriptors ran out. preinit() keeps the common formats first.
Image.preinit()
Image.init()


class BadImageError(Exception):
    """An image cannot be read or decoded; the text is the reason."""


@dataclass(frozen=True)
class Region:
    """A decoded part of an image."""

    image: Image.Image | torch.Tensor  # RGB; a uint8 tensor, shape (h, w, 3), if it was decoded on a GPU
    top: int  # position of the part in the image, px
    left: int


def read(path: str, offset: int, length: int, least: int | None = None) -> bytes:
    """Reads up to `length` bytes; fewer than `least` (default: all) only at the end. Raises like :func:`patiently`."""
    # a file that is not read from its start is an archive
    return patiently(path, partial(read_now, path, offset, length, least), archive=offset > 0)


def read_now(path: str, offset: int, length: int, least: int | None = None) -> bytes:
    """Reads like :func:`read`, but in a single attempt. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        return read_at(file, offset, length, length if least is None else least)
    finally:
        os.close(file)


def read_at(file: int, offset: int, length: int, least: int) -> bytes:
    """Reads like :func:`read_now` from a file descriptor. Raises OSError."""
    content = os.pread(file, length, offset)
    while len(content) < least and (more := os.pread(file, length - len(content), offset + len(content))):
        content += more  # a file system that fails midway returns a part, and the error only on the next read
    return content


def patiently(path: str, attempt: Callable[[], T], *, archive: bool = False) -> T:
    """Calls `attempt` to read a file, and retries, at once and then for a minute, while the machine fails.

    The first retry is reported on standard error. Raises BadImageError if a file that is not an archive is missing from
    its folder, or is not a regular file, and UserError if another failure does not pass.
    """
    for wait in (*_WAITS_S, None):
        try:
            try:
                return attempt()
            except OSError:
                folder_exists = os.path.isdir(os.path.dirname(os.path.realpath(path)))
            return attempt()  # the folder may have come back since, and archives may have been closed
        except MemoryError as error:
            raise failure(f"{path} cannot be read", error) from None
        except OSError as error:
            if not archive and (error.errno in _FILE_ERRORS or (folder_exists and error.errno == errno.ENOENT)):
                raise BadImageError(f"unreadable ({error.strerror})") from None
            reason, failed = error.errno or 0, failure(f"{path} cannot be read", error)
        now, patience = time.monotonic(), sum(_WAITS_S)
        with _lock:
            if wait is None:
                _given_up[reason] = now
            if wait is None or reason in _LASTING or now - _given_up.get(reason, -math.inf) < patience:
                raise failed
            if now - _warned.get(reason, -math.inf) > patience:
                _warned[reason] = now
                warn(f"{path} cannot be read ({os.strerror(reason)}); trying again for {patience:.0f} s")
        time.sleep(wait)
    raise AssertionError


def failure(what: str, error: OSError | MemoryError) -> UserError:
    """Creates a UserError that states a failure of the machine, its reason and the remedy."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    reason = os.strerror(number) if number else str(error)
    return UserError(f"{what} ({reason}); {_REMEDIES.get(number or 0, 'is the file system mounted?')}")


@contextmanager
def blaming_the_machine() -> Iterator[None]:
    """Turns a lack of memory or file descriptors during decoding into a UserError."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in _REMEDIES:
            raise
        raise failure("images cannot be decoded", error) from None


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image without decoding it; the mode is that of the file.

    Turns every exception inside the context into a BadImageError, except MemoryError and OSError with an errno: for
    bytes in memory, these are failures of the machine.
    """
    if not encoded:
        raise BadImageError("empty file")
    try:
        # warnings concern metadata, which do not affect the pixels, and large images
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as image:
            yield image
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except Image.DecompressionBombError:
        raise BadImageError("more than 179 megapixels") from None
    except Exception as error:  # PIL raises whatever a broken file provokes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "out of memory" in str(error):  # a decoder reports it like a broken file
            raise MemoryError from None
        truncated = "truncated" in str(error).lower()
        raise BadImageError("truncated" if truncated else f"broken ({type(error).__name__})") from None


def rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB: repeats grey, applies palettes, drops alpha, converts CMYK as PIL does."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def full_region(encoded: bytes | BadImageError, size: Ints) -> Region | BadImageError:
    """Decodes the full image of indexed height and width, or returns why it is bad. Raises like :func:`opened`."""
    if isinstance(encoded, BadImageError):
        return encoded
    try:
        with opened(encoded) as encoded_image:
            image = rgb(encoded_image)
    except BadImageError as error:
        return error
    if image.size != (size[1], size[0]):
        return BadImageError(f"it has {image.width}x{image.height} px, but {size[1]}x{size[0]} in the index")
    return Region(image, 0, 0)


def resample(region: Region, box: Ints, window: NDArray[np.float64], flip: bool, out: Pixels) -> None:
    """Resamples a window of an image into `out`, shape (h, w, 3), given the box that the filter reads.

    Box and window are top, left, bottom, right in pixels of the image. PIL takes the window in single precision, so it
    is passed relative to the box: the result does not depend on how much more than the box was decoded.
    """
    top, left, bottom, right = (int(edge) for edge in box - np.array([region.top, region.left] * 2))
    image = region.image
    assert isinstance(image, Image.Image), "pixels on a GPU are resampled by resample_on_device"
    if (left, top, right, bottom) != (0, 0, image.width, image.height):
        image = image.crop((left, top, right, bottom))
    low_y, low_x, high_y, high_x = window - np.tile(box[:2], 2)
    within = (max(low_x, 0.0), max(low_y, 0.0), min(high_x, image.width), min(high_y, image.height))
    shown = image.resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR, box=within)
    out[:] = np.asarray(shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else shown)


def groups(n: int) -> list[range]:
    """Divides rows 0 to n - 1 into groups large enough to be worth a task of a thread pool."""
    return [range(start, min(start + _GROUP, n)) for start in range(0, n, _GROUP)]


def in_groups(pool: ThreadPoolExecutor, function: Callable[[int], T], n: int) -> list[T]:
    """Computes [function(0), ..., function(n - 1)] in a pool."""
    return [result for group in pool.map(lambda rows: list(map(function, rows)), groups(n)) for result in group]
