"""The net on whole, uncropped images: fully-connected layers as convolutions over the same weights (Section 3.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG


def score_map(net: VGG, images_NCHW: Tensor) -> Tensor:
    """Class scores (logits) at every place of the images; the net must be in eval mode.

    fc6 becomes a convolution of ``fc6_kernel`` x ``fc6_kernel`` (7x7 in the paper), fc7 and fc8 of 1x1, none padded.
    Their weights are views of the net's own. Pooling rounds down: a remainder of the map below 2 is not pooled.

    Args:
        net: the network.
        images_NCHW: (N, 3, H, W) with H and W at least ``crop``.

    Returns:
        (N, classes, H // stride - fc6_kernel + 1, W // stride - fc6_kernel + 1)

    Raises:
        UserError: an image side is smaller than ``crop``.
    """
    assert not net.training, "dense evaluation of a net in training mode"
    crop, kernel = net.architecture.crop, net.architecture.fc6_kernel
    height, width = images_NCHW.shape[-2:]
    if min(height, width) < crop:
        raise UserError(
            f"images of {height}x{width} pixels: smaller than this net's crop of {crop}; rescale to Q >= {crop}"
        )
    layers = net.named_layers()
    maps = net.features(images_NCHW)
    maps = F.relu(_as_convolution(layers["fc6"], maps, kernel), inplace=True)
    maps = F.relu(_as_convolution(layers["fc7"], maps, 1), inplace=True)
    return _as_convolution(layers["fc8"], maps, 1)


def class_scores(net: VGG, images_NCHW: Tensor) -> Tensor:
    """The score map's spatial mean: logits of shape (N, classes), of which the caller takes the softmax.

    Raises:
        UserError: as ``score_map``.
    """
    return score_map(net, images_NCHW).mean(dim=(2, 3))


def _as_convolution(fc: nn.Module, maps: Tensor, kernel: int) -> Tensor:
    assert isinstance(fc, nn.Linear)
    return F.conv2d(maps, fc.weight.view(fc.out_features, -1, kernel, kernel), fc.bias)
