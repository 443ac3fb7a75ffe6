"""The network of Section 2, in torch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vggrepro.errors import UserError
from vggrepro.models.table1 import IMAGE_CHANNELS, Architecture, require_class_scores
from vggrepro.paper import value

DropoutMasks = tuple[Tensor, Tensor]
"""Dropout masks of fc6 and fc7: bool tensors of shape (N, FC units), True for units to keep."""


class VGG(nn.Module):
    """A net of Table 1, with ReLU after every hidden layer and dropout after fc6 and fc7 (Sections 2.1, 3.1).

    A, B, D and E have the state-dict keys of torchvision's vgg11, vgg13, vgg16 and vgg19 (``_bn`` with batch norm).
    Weights are torch's defaults until ``init_weights`` or ``load_state_dict`` sets them.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.features, self.classifier = nn.Sequential(), nn.Sequential()
        inputs: tuple[int, ...] = (IMAGE_CHANNELS,)
        for layer in architecture.layers():
            channels = layer.shape[0]
            if layer.kind == "fc":
                self.classifier.append(nn.Linear(math.prod(inputs), channels))
                if layer.name != "fc8":
                    self.classifier.extend([nn.ReLU(inplace=True), nn.Dropout(architecture.dropout)])
            elif layer.kind == "pool":
                self.features.append(nn.MaxPool2d(kernel_size=2, stride=2))
            elif layer.kind == "lrn":
                n, alpha, beta, k = (value(f"lrn_{name}") for name in ("n", "alpha", "beta", "k"))
                # The paper's alpha multiplies the sum over n channels, torch's their mean (pytorch/pytorch#4667).
                self.features.append(nn.LocalResponseNorm(n, alpha * n, beta, k))
            elif layer.kind == "bn":
                self.features.append(nn.BatchNorm2d(channels))
            elif layer.kernel:
                # Padding that keeps the resolution: none for the 1x1 convolutions of C (Section 2.1).
                self.features.append(nn.Conv2d(inputs[0], channels, layer.kernel, padding=layer.kernel // 2))
            if layer.kind == ("bn" if architecture.batch_norm else "conv"):
                self.features.append(nn.ReLU(inplace=True))
            inputs = layer.shape

    @property
    def fc_widths(self) -> tuple[int, int]:
        """Units of fc6 and fc7, the widths of the dropout masks."""
        return self.architecture.fc_units, self.architecture.fc_units

    def named_layers(self) -> dict[str, nn.Module]:
        """Returns the layers with parameters by the paper's names: conv1_1, [bn1_1], ..., fc6, fc7, fc8."""
        return {layer.name: self.get_submodule(layer.key) for layer in self.architecture.layers() if layer.parameters}

    def compile_features(self, **options: Any) -> None:
        """Compiles the convolutional layers for training, with a graph per shape of images.

        The FC layers are not compiled: their hooks would break the graph, and their gradients are exchanged during the
        backward pass of the compiled part. Options are torch.compile's.
        """
        self._compiled = torch.compile(self.features.forward, dynamic=False, **options)

    def forward(self, images_NCHW: Tensor, dropout_masks: DropoutMasks | None = None) -> Tensor:
        """Computes class scores or boxes.

        Args:
            images_NCHW: Images of shape (N, 3, crop, crop).
            dropout_masks: Masks to use in training mode instead of nn.Dropout's draws. Drawn for the global batch, they
                make the trajectory independent of the number of ranks.

        Returns:
            Logits of shape (N, classes), or boxes as in ``vggrepro.models.boxes``.

        Raises:
            UserError: the images have another size (``vggrepro.models.dense`` accepts larger ones), or the net has no
                fully-connected layers.
        """
        require_class_scores(self.architecture)
        crop = self.architecture.crop
        height, width = images_NCHW.shape[-2:]
        if (height, width) != (crop, crop):
            raise UserError(f"images of {height}x{width} pixels must be {crop}x{crop}; crop them, or evaluate densely")
        features = self._compiled if self.training and self._compiled else self.features
        maps = torch.flatten(features(images_NCHW), 1)
        if dropout_masks is None or not self.training:
            return self.classifier(maps)
        fc6, relu6, _, fc7, relu7, _, fc8 = self.classifier
        hidden6 = self._drop(relu6(fc6(maps)), dropout_masks[0])
        hidden7 = self._drop(relu7(fc7(hidden6)), dropout_masks[1])
        return fc8(hidden7)

    def _drop(self, hidden: Tensor, keep: Tensor) -> Tensor:
        assert keep.shape == hidden.shape, f"dropout mask {tuple(keep.shape)} for units {tuple(hidden.shape)}"
        return hidden * keep * (1 / (1 - self.architecture.dropout))
