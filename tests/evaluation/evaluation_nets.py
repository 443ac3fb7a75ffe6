"""A tiny net with distinct scores, and settings, for the tests of evaluation."""

import torch
from nets import tiny_vgg, with_biases

from vggrepro.models.vgg import VGG

CLASSES = ("cat", "dog", "eel")
SETTINGS = (
    *("run.device=cpu", "data.backend=torchvision", "data.workers=1"),
    *("evaluation.batch=2048", "tracking.mlflow=false"),
)


def tiny_net(seed: int = 0, *, net: str = "A", classes: int = len(CLASSES)) -> VGG:
    """Returns a net of crop 32, so that fc6 is 1x1, with clearly different scores for different images."""
    built = with_biases(tiny_vgg(net, seed=seed, classes=classes), seed)
    with torch.no_grad():
        built.named_layers()["fc8"].weight.mul_(100)  # type: ignore[operator]
    return built
