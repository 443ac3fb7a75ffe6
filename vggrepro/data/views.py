"""A view: what of an image the net is shown. Samplers draw views, backends render them.

A view rescales the image isotropically so that its shorter side is S (training) or Q (testing), cuts a window out of
the result, mirrors it or not, and shifts its colours. A random training crop, a centre crop, one of 50 test crops and
the whole uncropped image of dense evaluation are all views; a backend does not know which one it renders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_BY_ROW = ("image", "size", "rescaled", "corner", "flip", "shift")


@dataclass(frozen=True)
class Views:
    """N views, as arrays; the windows of one Views all have the same shape, so that they make one tensor."""

    image: Ints
    """(N,) rows of the split."""
    size: Ints
    """(N, 2) height and width of the image as it is, px."""
    rescaled: Ints
    """(N, 2) height and width of the whole image after rescaling, px."""
    corner: Ints
    """(N, 2) top and left of the window in the rescaled image, px."""
    shape: tuple[int, int]
    """Height and width of every window, px."""
    flip: NDArray[np.bool_]
    """(N,) whether the window is mirrored left to right."""
    shift: NDArray[np.float32]
    """(N, 3) grey levels added to R, G, B."""
    replacement: Callable[[int, int], Views] | None = None
    """replacement(row, attempt), attempt = 1, 2, ...: a view to take the place of a row whose image has gone bad."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Views:
        """Some rows, without spares."""
        return replace(self, replacement=None, **{name: getattr(self, name)[rows] for name in _BY_ROW})

    def source_window(self) -> NDArray[np.float64]:
        """(N, 4) the windows in the images' own pixels: top, left, bottom, right, fractions allowed."""
        scale = self.size / self.rescaled
        window = np.concatenate([self.corner, self.corner + np.array(self.shape)], axis=1)
        return window * np.tile(scale, 2)

    def boxes_in_window(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (N, ..., 4) of the images, moved as their pixels are: rescaled, cut out with the window, mirrored.

        Left, top, right, bottom; from px of the image as it is to px of the window, beyond which a box may reach.
        """
        scale, corner, flip = self._as_boxes(boxes.ndim)
        moved = boxes * scale - corner
        return np.where(flip, _mirrored(moved, self.shape[1]), moved)

    def boxes_in_image(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of :meth:`boxes_in_window`."""
        scale, corner, flip = self._as_boxes(boxes.ndim)
        return (np.where(flip, _mirrored(boxes, self.shape[1]), boxes) + corner) / scale

    def _as_boxes(self, ndim: int) -> tuple[NDArray[np.float64], Ints, NDArray[np.bool_]]:
        """(scale, corner, flip) in the order of a box's edges, to be broadcast against boxes of so many dimensions."""
        rows = (len(self), *[1] * (ndim - 2))
        edges = [1, 0, 1, 0]  # x stands before y in boxes, and behind it in views
        scale, corner = (self.rescaled / self.size)[:, edges], self.corner[:, edges]
        return scale.reshape(*rows, 4), corner.reshape(*rows, 4), self.flip.reshape(*rows, 1)

    def with_row(self, row: int, other: Views) -> Views:
        """These views with one row replaced by the only row of `other`."""
        changed = {name: getattr(self, name).copy() for name in _BY_ROW}
        for name in _BY_ROW:
            changed[name][row] = getattr(other, name)[0]
        return replace(self, **changed)

    def decode_boxes(self) -> tuple[Ints, Ints, NDArray[np.intp]]:
        """Images, each once; for each the box that holds all of its views' decode boxes; and each view's number."""
        images, which = np.unique(self.image, return_inverse=True)
        box = self.decode_box()
        union = np.tile(np.array([np.iinfo(np.int64).max] * 2 + [0] * 2), (len(images), 1))
        np.minimum.at(union[:, :2], which, box[:, :2])
        np.maximum.at(union[:, 2:], which, box[:, 2:])
        return images, union, which

    def decode_box(self) -> Ints:
        """(N, 4) the pixels that resampling reads: top, left, bottom, right of the smallest whole-pixel box.

        An anti-aliased bilinear filter reaches max(1, scale) source pixels beyond the window; without them the border
        would be resampled from a replicated edge that the rescaled image does not have.
        """
        window = self.source_window()
        reach = np.tile(np.maximum(self.size / self.rescaled, 1.0) + 1.0, 2)
        low = np.maximum(np.floor(window[:, :2] - reach[:, :2]), 0)
        high = np.minimum(np.ceil(window[:, 2:] + reach[:, 2:]), self.size)
        return np.concatenate([low, high], axis=1).astype(np.int64)


def _mirrored(boxes: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Boxes in a window of this width, px, mirrored left to right."""
    return np.array([width, 0, width, 0]) + boxes[..., [2, 1, 0, 3]] * np.array([-1, 1, -1, 1])


def rescaled_size(size: Ints, short_side: Ints | int) -> Ints:
    """(N, 2) height and width of images rescaled isotropically to a shorter side, px.

    The longer side is rounded to the nearest pixel, halves up (the paper is silent).
    """
    short = size.min(axis=1)
    target = np.broadcast_to(np.asarray(short_side, np.int64), short.shape)
    return (2 * size * target[:, None] + short[:, None]) // (2 * short[:, None])


def plain(image: Ints, size: Ints, rescaled: Ints, corner: Ints, shape: tuple[int, int]) -> Views:
    """Views that are neither mirrored nor colour-shifted, as testing shows them."""
    n = len(image)
    return Views(image, size, rescaled, corner, shape, np.zeros(n, np.bool_), np.zeros((n, 3), np.float32))


def whole(image: Ints, size: Ints, rescaled: Ints) -> Views:
    """The whole uncropped images, which must share one rescaled shape (Section 3.2, dense evaluation)."""
    height, width = rescaled[0]
    return plain(image, size, rescaled, np.zeros_like(rescaled), (int(height), int(width)))


def region_shape(size: Ints, boxes: NDArray[np.float64], short_side: int) -> tuple[Ints, Ints]:
    """(N, 4) top, left, bottom, right of boxes in whole px, and (N, 2) their shapes rescaled to a shorter side.

    Boxes (N, 4) are left, top, right, bottom in px of the images of (N, 2) `size`; they are taken outwards, and are at
    least one pixel large.
    """
    low = np.clip(np.floor(boxes[:, [1, 0]]).astype(np.int64), 0, size - 1)
    high = np.clip(np.ceil(boxes[:, [3, 2]]).astype(np.int64), low + 1, size)
    return np.concatenate([low, high], axis=1), rescaled_size(high - low, short_side)


def region(image: Ints, size: Ints, edges: Ints, shape: tuple[int, int]) -> Views:
    """Parts of images, (N, 4) top, left, bottom, right in px, each rescaled to the same shape."""
    low, high = edges[:, :2], edges[:, 2:]
    scale = np.array(shape) / (high - low)
    corner = np.rint(low * scale).astype(np.int64)
    rescaled = np.maximum(np.rint(size * scale).astype(np.int64), corner + shape)
    return plain(image, size, rescaled, corner, shape)


def centre(image: Ints, size: Ints, short_side: int, crop: int) -> Views:
    """The centre crop of the image rescaled to a shorter side."""
    rescaled = rescaled_size(size, short_side)
    return plain(image, size, rescaled, (rescaled - crop) // 2, (crop, crop))
