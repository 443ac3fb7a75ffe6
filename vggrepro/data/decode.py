"""From files to bytes, to pixels, and to the window a view shows. What all backends share.

One definition of an image's pixels: what PIL decodes, converted to RGB, never rotated by EXIF. One resampling: PIL's
anti-aliased bilinear filter on exactly the window, reading beyond it, which is rescaling all and then cropping. (The
GPU's decoder differs by a few grey levels; `resample.py` is the same filter there.)

What the machine fails at (open files, memory, permissions, file systems that are away) is never a property of an image:
it may pass, or it ends the command. Only what a file itself lacks makes it a bad image.
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
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Between attempts to read; what still fails after all of them has failed."""
_OF_THE_FILE = {errno.EISDIR, errno.ELOOP}
_LASTING = {errno.EACCES, errno.EPERM}
_REMEDIES = dict.fromkeys(_LASTING, "change its permissions")
_REMEDIES |= {number: MACHINE_REMEDIES[number] for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)}
_mentioned: dict[int, float] = {}
"""When the user last read that reading fails for a reason, by errno."""
_given_up: dict[int, float] = {}
"""When waiting for a reason to pass ended in vain: images that were asked for meanwhile do not wait once more."""
_lock = threading.Lock()

# PIL imports what reads a format when it first meets one, and calls a file broken where that fails: for want of file
# descriptors, say. The common formats come first, as they would later.
Image.preinit()
Image.init()


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


def read(path: str, offset: int, length: int, least: int | None = None) -> bytes:
    """At most `length` bytes of a file, fewer than `least` (all) only where it ends.

    A file that is not read from its start is an archive. Raises as `patiently`.
    """
    return patiently(path, partial(read_now, path, offset, length, least), archive=offset > 0)


def read_now(path: str, offset: int, length: int, least: int | None = None) -> bytes:
    """The same, without patience. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        return read_at(file, offset, length, length if least is None else least)
    finally:
        os.close(file)


def read_at(file: int, offset: int, length: int, least: int) -> bytes:
    """The same of a file that is open. Raises OSError."""
    found = os.pread(file, length, offset)
    while len(found) < least and (more := os.pread(file, length - len(found), offset + len(found))):
        found += more  # a file system that fails in the middle gives what it has, and the error when asked for the rest
    return found


def patiently(path: str, attempt: Callable[[], T], *, archive: bool = False) -> T:
    """What an attempt to read a file gives; made again, at once and then for a minute, while the machine fails.

    The first wait for a reason is a line on standard error. Raises BadImageError for what is the file's: it is gone
    although its folder is there, or it is none; an archive is to be there. Raises UserError for what does not pass.
    """
    for wait in (*_WAITS_S, None):
        try:
            try:
                return attempt()
            except OSError:  # of a link, the folder that it leads to
                there = os.path.isdir(os.path.dirname(os.path.realpath(path)))
            return attempt()  # the folder may have come back between the two, and archives may have been closed
        except MemoryError as error:
            raise failure(f"{path} cannot be read", error) from None
        except OSError as error:
            if not archive and (error.errno in _OF_THE_FILE or (there and error.errno == errno.ENOENT)):
                raise BadImageError(f"unreadable ({error.strerror})") from None
            reason, failed = error.errno or 0, failure(f"{path} cannot be read", error)
        now, patience = time.monotonic(), sum(_WAITS_S)
        with _lock:
            if wait is None:
                _given_up[reason] = now
            if wait is None or reason in _LASTING or now - _given_up.get(reason, -math.inf) < patience:
                raise failed
            if now - _mentioned.get(reason, -math.inf) > patience:
                _mentioned[reason] = now
                warn(f"{path} cannot be read ({os.strerror(reason)}); trying again for {patience:.0f} s")
        time.sleep(wait)
    raise AssertionError


def failure(what: str, error: OSError | MemoryError) -> UserError:
    """What the machine fails at, why, and the remedy, in one line."""
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    reason = os.strerror(number) if number else str(error)
    return UserError(f"{what} ({reason}); {_REMEDIES.get(number or 0, 'is the file system mounted?')}")


@contextmanager
def blaming_the_machine() -> Iterator[None]:
    """Raises UserError where memory, or the right to open one more file, runs out while images are decoded."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in _REMEDIES:
            raise
        raise failure("images cannot be decoded", error) from None


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image in its own mode, not yet decoded.

    Whatever goes wrong inside becomes a BadImageError; but for MemoryError, and OSError with a number: bytes in memory
    give no reason for one, so it is the machine's.
    """
    if not encoded:
        raise BadImageError("empty file")
    try:
        # warnings are about metadata, which do not touch the pixels, and about large images
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
        if "out of memory" in str(error):  # of a decoder, which says it as it says that a file is broken
            raise MemoryError from None
        truncated = "truncated" in str(error).lower()
        raise BadImageError("truncated" if truncated else f"broken ({type(error).__name__})") from None


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: grey repeated, palettes looked up, alpha dropped, CMYK converted by PIL."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def full_region(encoded: bytes | BadImageError, size: Ints) -> Region | BadImageError:
    """The whole image, held to the size it is indexed with, or what is wrong with it.

    Raises MemoryError and OSError as `opened`.
    """
    if isinstance(encoded, BadImageError):
        return encoded
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
