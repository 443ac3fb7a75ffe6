"""PIL's anti-aliased bilinear resampling as two matrix products per image, for pixels that are already on a GPU.

This is `decode.resample` on a device: the same filter (a triangle as wide as the reduction, renormalised at the edges
of the image), the same fixed-point weights, and the same rounding to 8 bits after each of the two passes. The borders
of the window are in double precision, so the result equals rescaling the full image and cropping it, to a grey level.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.data.decode import Region
from vggrepro.data.loading.prefetch import to_device
from vggrepro.data.views import Ints

_MOST_VALUES = 2**27  # maximum number of padded grey levels in a product: half a gigabyte in float32

_STEPS = 2**16
"""Fixed-point steps per grey level. Weights are multiples of its inverse, so that a sum of grey levels times weights
fits the 24-bit significand of float32. The sum is then exact in any order of summation, and an image does not depend on
the others in its batch. TF32 has only 11 bits, so if nets are trained in TF32, these products use float64."""


def resample_on_device(
    regions: Sequence[Region], boxes: Ints, windows: NDArray[np.float64], flips: NDArray[np.bool_], out: Tensor
) -> None:
    """Resamples windows of N images into `out`, on its device.

    Args:
        regions: A decoded part of each image, as a tensor on the device or a PIL image.
        boxes: Pixels that the filter reads, as of `Views.decode_box`, shape (N, 4).
        windows: Windows in pixels of the stored images, as of `Views.source_window`, shape (N, 4).
        flips: Whether a window is mirrored left to right, shape (N,).
        out: Grey levels, uint8, shape (N, h, w, 3).
    """
    origin = np.tile([(region.top, region.left) for region in regions], 2)
    box, window = boxes - origin, windows - boxes[:, [0, 1, 0, 1]]
    extent = box[:, 2:] - box[:, :2]
    exact = torch.float64 if torch.backends.cuda.matmul.allow_tf32 else torch.float32
    for rows in _pieces(extent):
        high, wide = extent[rows].max(axis=0)
        padded = torch.zeros((len(rows), high, wide, 3), dtype=torch.uint8, device=out.device)
        for pixels, row in zip(padded, rows, strict=True):
            top, left, bottom, right = box[row]
            image = regions[row].image
            part = image if isinstance(image, Tensor) else to_device(torch.from_numpy(np.array(image)), out.device)
            pixels[: bottom - top, : right - left] = part[top:bottom, left:right]
        vertical = _weights(window[rows][:, [0, 2]], extent[rows, 0], int(high), out.shape[1], out.device).to(exact)
        horizontal = _weights(window[rows][:, [1, 3]], extent[rows, 1], int(wide), out.shape[2], out.device).to(exact)
        mirrored = to_device(torch.from_numpy(flips[rows]), out.device)
        horizontal = torch.where(mirrored[:, None, None], horizontal.flip(1), horizontal)
        # channels before columns, so that each pass is a single product per image
        planes = padded.permute(0, 1, 3, 2).reshape(len(rows), -1, int(wide)).to(exact)
        narrowed = _rounded(planes @ horizontal.transpose(1, 2)).view(len(rows), int(high), -1)
        shown = _rounded(vertical @ narrowed).view(len(rows), out.shape[1], 3, out.shape[2])
        out[to_device(torch.from_numpy(rows), out.device)] = shown.permute(0, 1, 3, 2).to(torch.uint8)


def _pieces(extent: Ints) -> Iterator[NDArray[np.intp]]:
    """Groups rows of similar size, so that padding is small and memory is bounded."""
    rows = np.argsort(extent.prod(axis=1), kind="stable")
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows):
            values = 3 * (stop + 1 - start) * extent[rows[start : stop + 1]].max(axis=0).prod()
            if values > _MOST_VALUES:
                break
            stop += 1
        yield rows[start:stop]
        start = stop


def _weights(edges: NDArray[np.float64], extent: Ints, columns: int, out: int, device: torch.device) -> Tensor:
    """Weight of each source pixel in each output pixel along an axis, float64, shape (N, out, columns).

    `edges` are the start and end of each window, px, shape (N, 2); `extent` the number of columns with pixels, (N,).
    """
    begin, end = to_device(torch.from_numpy(np.ascontiguousarray(edges.T)), device)
    scale = (end - begin) / out
    support = scale.clamp(min=1.0)[:, None, None]
    centre = begin[:, None] + (torch.arange(out, device=device) + 0.5) * scale[:, None]
    place = torch.arange(columns, device=device) + 0.5
    weights = (1 - (place - centre[:, :, None]).abs() / support).clamp(min=0.0)
    inside = place < to_device(torch.from_numpy(extent), device)[:, None]
    weights = weights * inside[:, None]
    return (weights / weights.sum(dim=2, keepdim=True) * _STEPS).round() / _STEPS


def _rounded(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor_()
