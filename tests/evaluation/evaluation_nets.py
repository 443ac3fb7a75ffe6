"""A tiny net with opinions, for the tests of evaluation."""

import torch

from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG

CLASSES = ("cat", "dog", "eel")


def tiny_net(seed: int = 0, *, net: str = "A", classes: int = len(CLASSES)) -> VGG:
    """Crop 32, so that fc6 is 1x1, with scores that differ plainly between images."""
    built = VGG(architecture(net, classes=classes, crop=32, width=0.0625)).eval()
    init_weights(built, "kaiming", seed)
    with torch.no_grad():
        for layer in built.named_layers().values():
            layer.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator, union-attr]
        fc8 = built.named_layers()["fc8"]
        fc8.weight.mul_(100)  # type: ignore[operator]
    return built
