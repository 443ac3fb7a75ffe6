"""Boxes as a net predicts them: centre, width and height in place of edges (Appendix A), and the loss on them.

The net sees a window of crop x crop px, and all that it says of a box is in this window's frame. A number v of its
last layer stands for crop * (v + 1) / 2 px, so that the window reaches from -1 to 1 in both directions and a box that
fills it has width and height 1. (The paper does not say how it normalises coordinates.) A box may reach beyond the
window, of which the net then sees a part.
"""

import torch
from torch import Tensor

from vggrepro.models.table1 import BOX_NUMBERS


def encode(edges: Tensor, crop: int) -> Tensor:
    """(..., 4) centre x, centre y, width, height as a net of this crop predicts them, of boxes (..., 4) in px.

    Boxes are left, top, right, bottom, from the left upper corner of the window.
    """
    low, high = edges[..., :2], edges[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1) * (2 / crop) - 1


def decode(numbers: Tensor, crop: int) -> Tensor:
    """(..., 4) left, top, right, bottom in px of the window, of what a net predicts; the inverse of :func:`encode`.

    A width or a height below zero, which a net may predict, becomes zero.
    """
    px = (numbers + 1) * (crop / 2)
    centre, half = px[..., :2], px[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def of_classes(outputs: Tensor, classes: Tensor) -> Tensor:
    """(N, K, 4, ...) the boxes of K classes each, from a last layer's outputs (N, 4 or 4 * classes, ...).

    `classes` (N, K) are class numbers, which a net that predicts one box for all (SCR) takes no notice of. Behind the
    second, both may have the same places of a map.
    """
    boxes = outputs.unflatten(1, (-1, BOX_NUMBERS))
    if boxes.shape[1] == 1:
        return boxes.expand(-1, classes.shape[1], *boxes.shape[2:])
    rows = torch.arange(len(boxes), device=boxes.device)[:, None]
    return boxes[rows, classes]


def euclidean_loss(outputs: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Sum over N images of half the squared distance between a box (4 numbers) and what is predicted for its class.

    Args:
        outputs: (N, 4) or, with a box for each class, (N, 4 * classes); the other classes' boxes do not count.
        targets: (N, 4) as of :func:`encode`.
        labels: (N,) class numbers.
    """
    predicted = of_classes(outputs, labels[:, None])[:, 0]
    return (predicted - targets).square().sum() / 2
