"""Nets of a few thousand weights."""

from typing import Any

import torch

from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG

GEOMETRY: dict[str, Any] = {"classes": 7, "crop": 64, "width": 0.0625}
"""Options of `architecture` for which fc6 is 2x2."""


def tiny_vgg(net: str = "A", scheme: str = "kaiming", seed: int = 0, **options: Any) -> VGG:
    """Initialised net in evaluation mode; by default with a crop of 32, so that fc6 is 1x1."""
    built = VGG(architecture(net, **{"classes": 7, "crop": 32, "width": 0.0625} | options)).eval()
    init_weights(built, scheme, seed)
    return built


def with_biases(net: VGG, seed: int = 0) -> VGG:
    """Sets the biases to values other than zero, equal for layers of the same width; returns the net."""
    with torch.no_grad():
        for layer in net.named_layers().values():
            layer.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator, union-attr]
    return net
