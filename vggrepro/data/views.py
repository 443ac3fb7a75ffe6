"""Views: the part of an image that the net is shown. Samplers draw views, backends render them.

A view rescales the image isotropically so that its shorter side is S (training) or Q (testing), cuts a window out of
the result, optionally mirrors it, and shifts its colours. A random training crop, a centre crop, each of 50 test crops
and the uncropped image of dense evaluation are all views. A backend does not know which kind it renders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_PER_ROW = ("image", "size", "rescaled", "corner", "flip", "shift")


@dataclass(frozen=True)
class Views:
    """N views as arrays. All windows have the same shape, so that they form one tensor.

    Args:
        image: Image numbers in the split, shape (N,).
        size: Height and width of the stored images, px, shape (N, 2).
        rescaled: Height and width of the full images after rescaling, px, shape (N, 2).
        corner: Top and left of the windows in the rescaled images, px, shape (N, 2).
        shape: Height and width of every window, px.
        flip: Whether the window is mirrored left to right, shape (N,).
        shift: Grey levels added to R, G and B, shape (N, 3).
        replacement: `replacement(row, attempt)` returns a single view that replaces a row whose image has gone bad, for
            attempt = 1, 2, ... None: no image may be replaced.
    """

    image: Ints
    size: Ints
    rescaled: Ints
    corner: Ints
    shape: tuple[int, int]
    flip: NDArray[np.bool_]
    shift: NDArray[np.float32]
    replacement: Callable[[int, int], Views] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Views:
        """Selects rows, without replacements."""
        return replace(self, replacement=None, **{name: getattr(self, name)[rows] for name in _PER_ROW})

    def source_window(self) -> NDArray[np.float64]:
        """Windows in pixels of the stored images: top, left, bottom, right, fractional, shape (N, 4)."""
        scale = self.size / self.rescaled
        window = np.concatenate([self.corner, self.corner + np.array(self.shape)], axis=1)
        return window * np.tile(scale, 2)

    def boxes_in_window(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transforms boxes from pixels of the stored images to pixels of the windows.

        Args:
            boxes: Left, top, right and bottom, px, shape (N, ..., 4).

        Returns:
            The boxes rescaled, shifted and mirrored like the pixels, same shape. A box may extend beyond its window.
        """
        scale, corner, flip = self._as_boxes(boxes.ndim)
        moved = boxes * scale - corner
        return np.where(flip, _mirrored(moved, self.shape[1]), moved)

    def boxes_in_image(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inverts :meth:`boxes_in_window`."""
        scale, corner, flip = self._as_boxes(boxes.ndim)
        return (np.where(flip, _mirrored(boxes, self.shape[1]), boxes) + corner) / scale

    def _as_boxes(self, ndim: int) -> tuple[NDArray[np.float64], Ints, NDArray[np.bool_]]:
        """Scale, corner and flip in the order of a box's edges, broadcastable to boxes of `ndim` dimensions."""
        rows = (len(self), *[1] * (ndim - 2))
        edges = [1, 0, 1, 0]  # x precedes y in boxes and follows it in views
        scale, corner = (self.rescaled / self.size)[:, edges], self.corner[:, edges]
        return scale.reshape(*rows, 4), corner.reshape(*rows, 4), self.flip.reshape(*rows, 1)

    def with_row(self, row: int, other: Views) -> Views:
        """Returns a copy with a row replaced by the only row of `other`."""
        changed = {name: getattr(self, name).copy() for name in _PER_ROW}
        for name, column in changed.items():
            column[row] = getattr(other, name)[0]
        return replace(self, **changed)

    def decode_boxes(self) -> tuple[Ints, Ints, NDArray[np.intp]]:
        """Returns the distinct images, a box around the decode boxes of each, and each view's row in these arrays."""
        images, which = np.unique(self.image, return_inverse=True)
        box = self.decode_box()
        union = np.tile(np.array([np.iinfo(np.int64).max] * 2 + [0] * 2), (len(images), 1))
        np.minimum.at(union[:, :2], which, box[:, :2])
        np.maximum.at(union[:, 2:], which, box[:, 2:])
        return images, union, which

    def decode_box(self) -> Ints:
        """Smallest boxes of source pixels that resampling reads: top, left, bottom, right, px, shape (N, 4).

        An anti-aliased bilinear filter reaches max(1, scale) source pixels beyond the window. Without them the border
        would be resampled from a replicated edge that the rescaled image does not have.
        """
        window = self.source_window()
        reach = np.tile(np.maximum(self.size / self.rescaled, 1.0) + 1.0, 2)
        low = np.maximum(np.floor(window[:, :2] - reach[:, :2]), 0)
        high = np.minimum(np.ceil(window[:, 2:] + reach[:, 2:]), self.size)
        return np.concatenate([low, high], axis=1).astype(np.int64)


def _mirrored(boxes: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mirrors boxes left to right in a window of the given width, px."""
    return np.array([width, 0, width, 0]) + boxes[..., [2, 1, 0, 3]] * np.array([-1, 1, -1, 1])


def rescaled_size(size: Ints, short_side: Ints | int) -> Ints:
    """Computes the size of isotropically rescaled images.

    Args:
        size: Height and width, px, shape (N, 2).
        short_side: Shorter side after rescaling, px, a scalar or shape (N,).

    Returns:
        Height and width, px, shape (N, 2). The longer side is rounded to the nearest pixel, halves up (the paper is
        silent).
    """
    short = size.min(axis=1)
    target = np.broadcast_to(np.asarray(short_side, np.int64), short.shape)
    return (2 * size * target[:, None] + short[:, None]) // (2 * short[:, None])


def unaugmented(image: Ints, size: Ints, rescaled: Ints, corner: Ints, shape: tuple[int, int]) -> Views:
    """Builds views that are neither mirrored nor colour-shifted; arguments as of :class:`Views`."""
    n = len(image)
    return Views(image, size, rescaled, corner, shape, np.zeros(n, np.bool_), np.zeros((n, 3), np.float32))


def uncropped(image: Ints, size: Ints, rescaled: Ints) -> Views:
    """Builds views of uncropped images (Section 3.2, dense evaluation); all rows of `rescaled` must be equal."""
    height, width = rescaled[0]
    return unaugmented(image, size, rescaled, np.zeros_like(rescaled), (int(height), int(width)))


def region_shape(size: Ints, boxes: NDArray[np.float64], short_side: int) -> tuple[Ints, Ints]:
    """Rounds boxes outwards to full pixels, and computes their shapes after rescaling.

    Args:
        size: Height and width of the images, px, shape (N, 2).
        boxes: Left, top, right and bottom in the images, px, shape (N, 4).
        short_side: Shorter side of a box after rescaling, px.

    Returns:
        Top, left, bottom and right of the boxes, at least one pixel large, shape (N, 4); and their height and width
        after rescaling, shape (N, 2).
    """
    low = np.clip(np.floor(boxes[:, [1, 0]]).astype(np.int64), 0, size - 1)
    high = np.clip(np.ceil(boxes[:, [3, 2]]).astype(np.int64), low + 1, size)
    return np.concatenate([low, high], axis=1), rescaled_size(high - low, short_side)


def region(image: Ints, size: Ints, edges: Ints, shape: tuple[int, int]) -> Views:
    """Builds views of parts of images, each rescaled to the same shape.

    Args:
        image: Image numbers in the split, shape (N,).
        size: Height and width of the images, px, shape (N, 2).
        edges: Top, left, bottom and right of the parts, px, shape (N, 4).
        shape: Height and width of every window, px.
    """
    low, high = edges[:, :2], edges[:, 2:]
    scale = np.array(shape) / (high - low)
    corner = np.rint(low * scale).astype(np.int64)
    rescaled = np.maximum(np.rint(size * scale).astype(np.int64), corner + shape)
    return unaugmented(image, size, rescaled, corner, shape)


def centre(image: Ints, size: Ints, short_side: int, crop: int) -> Views:
    """Builds centre crops of side `crop` px from images whose shorter side is rescaled to `short_side` px."""
    rescaled = rescaled_size(size, short_side)
    return unaugmented(image, size, rescaled, (rescaled - crop) // 2, (crop, crop))
