"""The net on whole, uncropped images: fully-connected layers as convolutions over the same weights (Section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggrepro.errors import UserError
from vggrepro.models.table1 import require_class_scores
from vggrepro.models.vgg import VGG


def score_map(net: VGG, images_NCHW: Tensor, *, ceil: bool = False, pixels_at_once: int | None = None) -> Tensor:
    """Class scores (logits) at every place of the images; the net must be in eval mode.

    fc6 becomes a convolution of ``fc6_kernel`` x ``fc6_kernel`` (7x7 in the paper), fc7 and fc8 of 1x1, none padded.
    Their weights are views of the net's own.

    Args:
        net: the network.
        images_NCHW: (N, 3, H, W) with H and W at least ``crop``.
        ceil: pooling rounds up, as Caffe's does: a last single row or column is pooled too. Otherwise it rounds down.
        pixels_at_once: most N * H * W for which the convolutions run in one piece. Above it they run in overlapping
            strips of the images' longer side, which give the same maps up to rounding in bounded memory. A strip
            holds at least one place with its receptive field, whatever the bound.

    Returns:
        (N, classes, H // stride - fc6_kernel + 1, W // stride - fc6_kernel + 1), or larger by one where ``ceil`` pools
        a remainder.

    Raises:
        UserError: an image side is smaller than ``crop``, or the net has no fully-connected layers.
    """
    require_class_scores(net.architecture)
    features = feature_map(net, images_NCHW, ceil=ceil, pixels_at_once=pixels_at_once)
    return _as_convolution(net.named_layers()["fc8"], features, 1)


def feature_map(net: VGG, images_NCHW: Tensor, *, ceil: bool = False, pixels_at_once: int | None = None) -> Tensor:
    """The activations of the last hidden layer at every place (Appendix B): fc7's, after its ReLU.

    (N, fc_units, h, w) of the score map's h and w; of a net without fully-connected layers the last pooling map,
    (N, channels, H // stride, W // stride). Raises UserError for an image that is too small; see ``score_map``.
    """
    assert not net.training, "dense evaluation of a net in training mode"
    smallest, kernel = net.architecture.smallest_side, net.architecture.fc6_kernel
    height, width = images_NCHW.shape[-2:]
    if min(height, width) < smallest:
        what = f"this net's crop of {smallest}" if net.architecture.fully_connected else f"its stride of {smallest}"
        raise UserError(f"images of {height}x{width} pixels: smaller than {what}; rescale to Q >= {smallest}")
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
    """The score map's spatial mean: logits of shape (N, classes), of which the caller takes the softmax.

    Raises:
        UserError: as ``score_map``, which also explains the arguments.
    """
    return score_map(net, images_NCHW, ceil=ceil, pixels_at_once=pixels_at_once).mean(dim=(2, 3))


def _features(net: VGG, images_NCHW: Tensor, ceil: bool) -> Tensor:
    if not ceil:
        return net.features(images_NCHW)
    maps = images_NCHW
    for layer in net.features:
        maps = F.max_pool2d(maps, 2, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(maps)
    return maps


def _features_in_strips(net: VGG, images_NCHW: Tensor, ceil: bool, pixels_at_once: int) -> Tensor:
    """The last pooling map, computed from strips that each hold the whole receptive field of their places."""
    stride = net.architecture.stride
    across, along = sorted(images_NCHW.shape[-2:])
    axis = 2 if images_NCHW.shape[2] == along else 3
    places = -(-along // stride) if ceil else along // stride
    low, high = net.architecture.receptive_field(0, 0)
    margin = high - low + stride  # both sides, and the alignment of the strip's start
    step = max(1, (pixels_at_once // (len(images_NCHW) * across) - margin) // stride)
    strips = []
    for first in range(0, places, step):
        last = min(first + step, places) - 1
        low, high = net.architecture.receptive_field(first, last)
        start = max(0, low // stride * stride)  # pooling windows must lie as in the whole image
        stop = along if last == places - 1 else min(along, high + 1)
        maps = _features(net, images_NCHW.narrow(axis, start, stop - start), ceil)
        strips.append(maps.narrow(axis, first - start // stride, last - first + 1))
    return torch.cat(strips, dim=axis)


def _as_convolution(fc: nn.Module, maps: Tensor, kernel: int) -> Tensor:
    assert isinstance(fc, nn.Linear)
    return F.conv2d(maps, fc.weight.view(fc.out_features, -1, kernel, kernel), fc.bias)
