"""PIL's anti-aliased bilinear resampling as two matrix products an image, for pixels that are on a GPU already.

`decode.resample` on the device: the same windows of the same regions, the same filter (a triangle as wide as the
reduction, renormalised where the image ends), and the same rounding to 8 bits after each of the two passes. The
window's borders are taken in double precision, so this is rescaling the whole image and cropping it, to a grey level.
Like PIL it computes with weights in fixed point.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.data.decode import Region
from vggrepro.data.loading.prefetch import to_device
from vggrepro.data.views import Ints

_MOST_VALUES = 2**27
"""Padded grey levels in one product: half a gigabyte in float32."""

_STEPS = 2**16
"""To a grey level. Weights are multiples of its inverse, so that a sum of grey levels times weights fits float32's 24
bits: it is exact in whatever order a product adds, and an image does not depend on those that share its batch. TF32,
which has 11 of them, would spoil it: where nets are trained in TF32, products here are of float64 and the same."""


def resample_on_device(
    regions: Sequence[Region], boxes: Ints, windows: NDArray[np.float64], flips: NDArray[np.bool_], out: Tensor
) -> None:
    """Fills `out` (N, h, w, 3) uint8 with the windows of N images, on its device.

    Args:
        regions: a decoded part of each image, its pixels a tensor there or a PIL image.
        boxes: (N, 4) top, left, bottom, right of the pixels that the filter reads, as of `Views.decode_box`.
        windows: (N, 4) the windows in the images' own pixels, as of `Views.source_window`.
        flips: (N,) whether a window is mirrored left to right.
    """
    origin = np.tile([(region.top, region.left) for region in regions], 2)
    box, window = boxes - origin, windows - boxes[:, [0, 1, 0, 1]]
    extent = box[:, 2:] - box[:, :2]
    exact = torch.float64 if torch.backends.cuda.matmul.allow_tf32 else torch.float32
    for rows in _pieces(extent):
        high, wide = extent[rows].max(axis=0)
        padded = torch.zeros((len(rows), high, wide, 3), dtype=torch.uint8, device=out.device)
        for place, row in enumerate(rows):
            top, left, bottom, right = box[row]
            part = _pixels(regions[row], out.device)[top:bottom, left:right]
            padded[place, : bottom - top, : right - left] = part
        vertical = _weights(window[rows][:, [0, 2]], extent[rows, 0], int(high), out.shape[1], out.device).to(exact)
        horizontal = _weights(window[rows][:, [1, 3]], extent[rows, 1], int(wide), out.shape[2], out.device).to(exact)
        mirrored = to_device(torch.from_numpy(flips[rows]), out.device)
        horizontal = torch.where(mirrored[:, None, None], horizontal.flip(1), horizontal)
        # channels before columns, so that each pass is one product an image
        planes = padded.permute(0, 1, 3, 2).reshape(len(rows), -1, int(wide)).to(exact)
        narrowed = _rounded(planes @ horizontal.transpose(1, 2)).view(len(rows), int(high), -1)
        shown = _rounded(vertical @ narrowed).view(len(rows), out.shape[1], 3, out.shape[2])
        out[to_device(torch.from_numpy(rows), out.device)] = shown.permute(0, 1, 3, 2).to(torch.uint8)


def _pieces(extent: Ints) -> Iterator[NDArray[np.intp]]:
    """All rows, those of like size together, so that little is padded and the memory is bounded."""
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


def _pixels(region: Region, device: torch.device) -> Tensor:
    """(h, w, 3) uint8."""
    if isinstance(region.image, Tensor):
        return region.image
    return to_device(torch.from_numpy(np.array(region.image)), device)


def _weights(edges: NDArray[np.float64], extent: Ints, columns: int, out: int, device: torch.device) -> Tensor:
    """(N, out, columns) float64: what each source pixel adds to each output pixel along one axis.

    `edges` (N, 2) are where the windows begin and end, `extent` (N,) how many of the columns hold pixels.
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
