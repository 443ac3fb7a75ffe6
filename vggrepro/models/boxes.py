"""The box encoding of localisation nets (Appendix A): centre, width and height instead of edges, and the loss on it.

The net sees a window of crop x crop px, which is the frame of its boxes. An output v stands for crop * (v + 1) / 2 px,
so the window spans -1 to 1 in both directions and a box that fills it has width and height 1. (The paper does not
define its normalisation.) A box may extend beyond the window.
"""

import torch
from torch import Tensor

from vggrepro.models.table1 import BOX_NUMBERS


def encode(edges: Tensor, crop: int) -> Tensor:
    """Encodes edges in px of the window as (centre x, centre y, width, height), shape (..., 4)."""
    low, high = edges[..., :2], edges[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1) * (2 / crop) - 1


def decode(numbers: Tensor, crop: int) -> Tensor:
    """Decodes outputs (..., 4) to (left, top, right, bottom) in px of the window; the inverse of :func:`encode`.

    Negative widths and heights become zero.
    """
    px = (numbers + 1) * (crop / 2)
    centre, half = px[..., :2], px[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def of_classes(outputs: Tensor, classes: Tensor) -> Tensor:
    """Selects the boxes of K classes per image, shape (N, K, 4, ...), from outputs (N, 4 or 4 * classes, ...).

    `classes` (N, K) are class numbers, which are ignored if all classes share a box (SCR). Trailing axes are kept.
    """
    boxes = outputs.unflatten(1, (-1, BOX_NUMBERS))
    if boxes.shape[1] == 1:
        return boxes.expand(-1, classes.shape[1], *boxes.shape[2:])
    rows = torch.arange(len(boxes), device=boxes.device)[:, None]
    return boxes[rows, classes]


def euclidean_loss(outputs: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Computes half the squared distance between encoded boxes (N, 4) and outputs, summed over N images.

    Outputs have shape (N, 4) or (N, 4 * classes), of which only the boxes of the labels (N,) count.
    """
    predicted = of_classes(outputs, labels[:, None])[:, 0]
    return (predicted - targets).square().sum() / 2
