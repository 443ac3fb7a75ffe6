"""Table 1: the layers of a net, their output shapes, parameters and multiply-adds. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from vggrepro.errors import UserError
from vggrepro.paper import Regression, facts, value

if TYPE_CHECKING:
    from vggrepro.config.settings import Config

IMAGE_CHANNELS = 3
TORCHVISION_NAMES: Mapping[str, str] = MappingProxyType({"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"})
"""Names of the columns in torchvision and timm; with batch normalisation, `_bn` follows."""
LayerKind = Literal["conv", "bn", "lrn", "pool", "fc"]
BOX_NUMBERS = 4
"""Numbers of a predicted box: centre x and y, width, height (Appendix A)."""


@dataclass(frozen=True)
class Layer:
    """A layer of a net."""

    name: str
    kind: LayerKind
    key: str
    """Path of the module in ``VGG``, the prefix of its state-dict keys, e.g. ``features.0``."""
    kernel: int | None
    shape: tuple[int, ...]
    """Output per image: (channels, height, width), or (units,) for a fully-connected layer."""
    parameters: int = 0
    multiply_adds: int = 0
    """Multiplications, each with its addition; those of biases, batch norm, LRN and pooling are not counted."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of a column of Table 1 or a similar net; build one with :func:`architecture`.

    ``blocks`` are the layers between the max-pools in Table 1's notation, before multiplication by ``width``. The other
    fields are arguments of the function.

    Raises:
        UserError: a layer cannot be parsed, has an even kernel, or a value is out of range.
    """

    name: str
    blocks: tuple[tuple[str, ...], ...]
    batch_norm: bool
    classes: int
    crop: int
    width: float
    dropout: float
    regression: Regression | None = None
    fully_connected: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise UserError(f"width {self.width} must be a finite number above 0; 1.0 is the paper's")
        if not self.blocks:
            raise UserError("layers [] must have at least one block, e.g. [[conv3-64]]")
        self.layers()
        if self.crop <= 0 or self.crop % self.stride:
            raise UserError(
                f"crop {self.crop} must be a positive multiple of {self.stride}, because {len(self.blocks)} max-pools "
                f"halve it; use {max(1, round(self.crop / self.stride)) * self.stride}"
            )
        if self.classes < 1:
            raise UserError(f"classes {self.classes} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout} must be in [0, 1); the paper's is {value('dropout')}")

    @property
    def stride(self) -> int:
        """Input pixels per step of the last pooling map; the max-pool of each block halves the resolution."""
        return 2 ** len(self.blocks)

    @property
    def fc6_kernel(self) -> int:
        """Side of the last pooling map at ``crop``: fc6's kernel as a convolution (Section 3.2); 7 in the paper."""
        return self.crop // self.stride

    def places(self, height: int, width: int) -> int:
        """Returns the number of positions in the score map of an uncropped image, sides in px (Section 3.2)."""
        return math.prod(side // self.stride - self.fc6_kernel + 1 for side in (height, width))

    def receptive_field(self, first: int, last: int) -> tuple[int, int]:
        """Returns the first and last input pixel, along an axis, that affect a range of the last pooling map.

        Both may be outside the image, in the padding.
        """
        for layer in reversed(self.layers()):
            if layer.kind == "pool":
                first, last = 2 * first, 2 * last + 1
            elif layer.kernel:
                first, last = first - layer.kernel // 2, last + layer.kernel // 2
        return first, last

    @property
    def field_of_view(self) -> int:
        """Side of the receptive field of the last layer, padding included, px; 404 for net D in the paper.

        A training crop fills ``crop`` of it, with zeros around; in the dense test, the image continues there.
        """
        first, last = self.receptive_field(0, self.fc6_kernel - 1 if self.fully_connected else 0)
        return last - first + 1

    @property
    def smallest_side(self) -> int:
        """Smallest side of an image for dense application, px: a single position of the last layer."""
        return self.crop if self.fully_connected else self.stride

    @property
    def feature_layer(self) -> str:
        """Name of the layer before the class scores, whose activations are the net's features (Appendix B)."""
        return "fc7" if self.fully_connected else f"pool{len(self.blocks)}"

    @property
    def fc_units(self) -> int:
        """Units of fc6 and fc7; 4096 in the paper."""
        return self._scaled(value("fc_units"))

    @property
    def outputs(self) -> int:
        """Units of fc8: class scores, or the numbers of a box or of a box per class."""
        return {None: self.classes, "SCR": BOX_NUMBERS, "PCR": BOX_NUMBERS * self.classes}[self.regression]

    @property
    def parameters(self) -> int:
        """Number of weights and biases, including batch norm's scales and shifts (Table 2)."""
        return sum(layer.parameters for layer in self.layers())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass over an image of ``crop`` x ``crop``, without biases."""
        return sum(layer.multiply_adds for layer in self.layers())

    @property
    def weight_layers(self) -> int:
        """Number of convolutional and fully-connected layers, as in the names VGG-16 and VGG-19."""
        return sum(layer.kind in ("conv", "fc") for layer in self.layers())

    def layers(self) -> list[Layer]:
        """Returns the layers conv1_1, [bn1_1], [lrn1_1], ..., pool1, ..., fc6, fc7, fc8, without ReLU and dropout.

        The fully-connected layers are named fc6 to fc8 for any number of blocks.
        """
        rows: list[Layer] = []
        index = 0  # in VGG.features
        channels, side = IMAGE_CHANNELS, self.crop

        def add(
            name: str, kind: LayerKind, kernel: int | None = None, parameters: int = 0, multiply_adds: int = 0
        ) -> None:
            nonlocal index
            shape = channels, side, side
            rows.append(Layer(name, kind, f"features.{index}", kernel, shape, parameters, multiply_adds))
            index += 1

        for b, block in enumerate(self.blocks, start=1):
            if not block:
                raise UserError("layers [] must have at least one convolution per block, e.g. [conv3-64]")
            place = 0
            for before, text in pairwise(("", *block)):
                if text == "LRN":
                    if before in ("", "LRN"):
                        raise UserError(f"layers {list(block)} must have a convolution directly before LRN")
                    add(f"lrn{b}_{place}", "lrn")
                    continue
                place += 1
                kernel, out = _kernel_and_channels(text)
                weights = channels * self._scaled(out) * kernel**2
                channels = self._scaled(out)
                add(f"conv{b}_{place}", "conv", kernel, weights + channels, weights * side**2)
                if self.batch_norm:
                    add(f"bn{b}_{place}", "bn", None, 2 * channels)
                index += 1  # past the ReLU
            side //= 2
            add(f"pool{b}", "pool", 2)
        if not self.fully_connected:
            return rows
        units = channels * side**2
        heads = {"fc6": (0, self.fc_units), "fc7": (3, self.fc_units), "fc8": (6, self.outputs)}
        for name, (position, out) in heads.items():
            weights = units * out
            rows.append(Layer(name, "fc", f"classifier.{position}", None, (out,), weights + out, weights))
            units = out
        return rows

    def _scaled(self, count: int) -> int:
        return max(1, round(count * self.width))


def architecture(
    net: str,
    *,
    layers: Sequence[Sequence[str]] | None = None,
    blocks: int | None = None,
    batch_norm: bool = False,
    classes: int = value("classes"),
    crop: int = value("crop"),
    width: float = 1.0,
    dropout: float = value("dropout"),
    regression: Regression | None = None,
    fully_connected: bool = True,
) -> Architecture:
    """Returns the architecture of a column of Table 1 or of a custom net; the defaults are the paper's.

    Args:
        net: A, A-LRN, B, C, D or E; with ``layers``, any name.
        layers: Blocks of a custom net in Table 1's notation, e.g. ``[["conv3-64", "LRN"], ["conv5-128"]]``.
        blocks: Number of blocks to use, counted from the image. Default: all, 5 in Table 1.
        batch_norm: Whether to normalise between each convolution and its ReLU (not in the paper).
        classes: Number of classes; the units of fc8 unless it predicts boxes.
        crop: Side of the square input in px, a multiple of 2 ** blocks.
        width: Factor of all channels and of the units of fc6 and fc7 (rounded, at least 1).
        dropout: Fraction of units dropped after fc6 and fc7.
        regression: Whether fc8 predicts a box for all classes (SCR) or a box per class (PCR) instead of class scores.
        fully_connected: Whether the net has fc6, fc7 and fc8; without them, it gives features only.

    Raises:
        UserError: the column is unknown or has fewer blocks, a layer cannot be parsed or has an even kernel, or a value
            is out of range.
    """
    columns = facts().architectures
    if layers is None and net not in columns:
        near = get_close_matches(net.upper(), columns, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"net {net!r} is not in Table 1; {hint}choose from {', '.join(columns)}, or give layers")
    available = tuple(map(tuple, columns[net] if layers is None else layers))
    if blocks is not None and not 0 < blocks <= len(available):
        raise UserError(f"blocks {blocks} must be from 1 to {len(available)}, the blocks of net {net}")
    return Architecture(net, available[:blocks], batch_norm, classes, crop, width, dropout, regression, fully_connected)


def require_class_scores(architecture: Architecture) -> None:
    """Raises UserError for a net without fully-connected layers."""
    if not architecture.fully_connected:
        raise UserError(
            f"net {architecture.name} has no fully-connected layers (model.fully_connected=false) and no class scores; "
            f"compute its features with `vggrepro features`"
        )


def architecture_of(config: Config) -> Architecture:
    """Returns the architecture of a configuration's net. Raises UserError."""
    regression = config.localisation.regression if config.localisation else None
    return architecture(**config.model.model_dump(exclude={"init"}), regression=regression)


def _kernel_and_channels(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"conv(\d+)-(\d+)", text)
    if match is None:
        raise UserError(f"layer {text!r} cannot be read; write conv<kernel>-<channels>, e.g. conv3-64, or LRN")
    kernel, channels = int(match[1]), int(match[2])
    if kernel % 2 == 0:
        raise UserError(f"layer {text!r} needs an odd kernel to keep the resolution; use conv{kernel + 1}-{channels}")
    if channels == 0:
        raise UserError(f"layer {text!r} has no channels; write e.g. conv{kernel}-64")
    return kernel, channels
