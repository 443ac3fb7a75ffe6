"""The six nets for torch.hub: `torch.hub.load(CHECKOUT, "vgg_d", source="local", weights=...)` (docs/publish.md).

A net with weights expects the input of their training: for nets of this program, RGB grey levels 0-255 minus the mean,
not torchvision's input. `pretrained` returns the net with its preprocessing and the paper's test.
"""

from typing import Any as _Any

from vggrepro.api import VGG as _VGG
from vggrepro.api import Pretrained as _Pretrained
from vggrepro.api import UserError as _UserError
from vggrepro.api import load as _load
from vggrepro.api import vgg as _vgg

dependencies = ["torch", "numpy", "PIL", "pydantic", "safetensors", "yaml"]
"""Packages that torch.hub checks before it calls an entry point."""


def vgg_a(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net A of Table 1, 11 weight layers (torchvision's vgg11); arguments of `vgg_d`."""
    return _net("A", weights, geometry)


def vgg_a_lrn(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net A-LRN of Table 1: A with local response normalisation; arguments of `vgg_d`."""
    return _net("A-LRN", weights, geometry)


def vgg_b(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net B of Table 1, 13 weight layers (torchvision's vgg13); arguments of `vgg_d`."""
    return _net("B", weights, geometry)


def vgg_c(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net C of Table 1, 16 weight layers, three of them 1x1 convolutions; arguments of `vgg_d`."""
    return _net("C", weights, geometry)


def vgg_d(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net D of Table 1, 16 weight layers (torchvision's vgg16): images (N, 3, crop, crop) to class scores (N, classes).

    Args:
        weights: a run directory, a checkpoint, a weight file, a folder of `vggrepro publish`, or `hf:owner/name`. The
            net is then in evaluation mode and takes images as its training did, mostly RGB grey levels 0-255 minus
            (123.68, 116.779, 103.939); `pretrained` does that for you. Without weights it is untrained, in training
            mode.
        geometry: geometry of an untrained net: classes, crop (px), width (factor of all channels), blocks, init, seed.

    Raises:
        vggrepro.UserError: the weights are of another column, or cannot be read.
    """
    return _net("D", weights, geometry)


def vgg_e(weights: str | None = None, **geometry: _Any) -> _VGG:
    """Net E of Table 1, 19 weight layers (torchvision's vgg19); arguments of `vgg_d`."""
    return _net("E", weights, geometry)


def pretrained(weights: str, device: str = "cpu") -> _Pretrained:
    """A trained net of any column with its preprocessing and class names (`vggrepro.load`); weights as in `vgg_d`.

    Call it with images of one size, (N, 3, H, W), RGB grey levels 0-255, for posteriors of one dense pass; its
    `predict` is the paper's test of images of any sizes (Section 3.2); `.net` is the net alone, `.mean` and `.std` its
    input's.
    """
    return _load(weights, device=device)


def _net(column: str, weights: str | None, geometry: dict[str, _Any]) -> _VGG:
    if weights is None:
        return _vgg(column, **geometry)
    if geometry:
        name = next(iter(geometry))
        raise _UserError(
            f"{name}={geometry[name]} with weights {weights}: the weights determine it; remove one of the two"
        )
    return _load(weights, net=column).net
