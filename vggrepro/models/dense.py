"""Application to uncropped images: fully-connected layers become convolutions with the same weights (Section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggrepro.errors import UserError
from vggrepro.models.table1 import require_class_scores
from vggrepro.models.vgg import VGG


def score_map(net: VGG, images_NCHW: Tensor, *, ceil: bool = False, pixels_at_once: int | None = None) -> Tensor:
    """Computes class scores (logits) at every position of the images.

    fc6 becomes an unpadded convolution of ``fc6_kernel`` x ``fc6_kernel`` (7x7 in the paper), fc7 and fc8 of 1x1, whose
    weights are views of the net's.

    Args:
        net: Network in eval mode.
        images_NCHW: Images of shape (N, 3, H, W), with H and W at least ``crop``.
        ceil: Whether pooling rounds up, as in Caffe, so that a single last row or column is pooled as well.
        pixels_at_once: Limit on N * H * W. Above it, the convolutions run on overlapping strips of the longer side,
            which give the same maps up to rounding in less memory. A strip has at least a position with its receptive
            field.

    Returns:
        Scores of shape (N, classes, H // stride - fc6_kernel + 1, W // stride - fc6_kernel + 1); with ``ceil``, a
        remainder adds one.

    Raises:
        UserError: an image side is smaller than ``crop``, or the net has no fully-connected layers.
    """
    require_class_scores(net.architecture)
    features = feature_map(net, images_NCHW, ceil=ceil, pixels_at_once=pixels_at_once)
    return _as_convolution(net.named_layers()["fc8"], features, 1)


def feature_map(net: VGG, images_NCHW: Tensor, *, ceil: bool = False, pixels_at_once: int | None = None) -> Tensor:
    """Computes the activations of the last hidden layer at every position (Appendix B); see ``score_map``.

    Returns:
        fc7 after its ReLU, shape (N, fc_units, h, w) with the score map's h and w. For a net without fully-connected
        layers the last pooling map, shape (N, channels, H // stride, W // stride).

    Raises:
        UserError: an image is too small.
    """
    assert not net.training, "dense evaluation of a net in training mode"
    smallest, kernel = net.architecture.smallest_side, net.architecture.fc6_kernel
    height, width = images_NCHW.shape[-2:]
    if min(height, width) < smallest:
        what = "crop" if net.architecture.fully_connected else "stride"
        raise UserError(
            f"images of {height}x{width} pixels are smaller than the net's {what} of {smallest}; rescale to "
            f"Q >= {smallest}"
        )
    if pixels_at_once is None or len(images_NCHW) * height * width <= pixels_at_once:
        maps = _features(net, images_NCHW, ceil)
    else:
        maps = _features_in_strips(net, images_NCHW, ceil, pixels_at_once)
    if not net.architecture.fully_connected:
        return maps
    layers = net.named_layers()
    maps = F.relu(_as_convolution(layers["fc6"], maps, kernel), inplace=True)
    return F.relu(_as_convolution(layers["fc7"], maps, 1), inplace=True)


def class_scores(net: VGG, images_NCHW: Tensor, *, ceil: bool = False, pixels_at_once: int | None = None) -> Tensor:
    """Computes the spatial mean of the score map: logits of shape (N, classes). See ``score_map``."""
    return score_map(net, images_NCHW, ceil=ceil, pixels_at_once=pixels_at_once).mean(dim=(2, 3))


def _features(net: VGG, images_NCHW: Tensor, ceil: bool) -> Tensor:
    if not ceil:
        return net.features(images_NCHW)
    maps = images_NCHW
    for layer in net.features:
        maps = F.max_pool2d(maps, 2, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(maps)
    return maps


def _features_in_strips(net: VGG, images_NCHW: Tensor, ceil: bool, pixels_at_once: int) -> Tensor:
    """Computes the last pooling map from strips that contain the full receptive field of their positions."""
    stride = net.architecture.stride
    across, along = sorted(images_NCHW.shape[-2:])
    axis = 2 if images_NCHW.shape[2] == along else 3
    positions = -(-along // stride) if ceil else along // stride
    low, high = net.architecture.receptive_field(0, 0)
    margin = high - low + stride  # both sides, and the alignment of the strip's start
    step = max(1, (pixels_at_once // (len(images_NCHW) * across) - margin) // stride)
    strips = []
    for first in range(0, positions, step):
        last = min(first + step, positions) - 1
        low, high = net.architecture.receptive_field(first, last)
        start = max(0, low // stride * stride)  # aligns pooling windows with those of the full image
        stop = along if last == positions - 1 else min(along, high + 1)
        maps = _features(net, images_NCHW.narrow(axis, start, stop - start), ceil)
        strips.append(maps.narrow(axis, first - start // stride, last - first + 1))
    return torch.cat(strips, dim=axis)


def _as_convolution(fc: nn.Module, maps: Tensor, kernel: int) -> Tensor:
    assert isinstance(fc, nn.Linear)
    return F.conv2d(maps, fc.weight.view(fc.out_features, -1, kernel, kernel), fc.bias)
