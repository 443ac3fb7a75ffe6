"""Table 1 as a table: what a net is made of, its output shapes, parameters and multiply-adds. No torch."""

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
"""What torchvision and timm call the columns that they have; `_bn` follows with batch normalisation."""
LayerKind = Literal["conv", "bn", "lrn", "pool", "fc"]


BOX_NUMBERS = 4
"""Of a predicted box: centre x and y, width, height (Appendix A)."""


@dataclass(frozen=True)
class Layer:
    """One row of a net's summary.

    ``shape`` is the output's, per image: (channels, height, width), or (units,) for a fully-connected layer.
    ``key`` is the module's place in ``VGG`` and so the prefix of its state-dict keys, e.g. ``features.0``.
    ``multiply_adds`` counts one multiplication with its addition as one; biases, batch norm, LRN and pooling as none.
    """

    name: str
    kind: LayerKind
    key: str
    kernel: int | None
    shape: tuple[int, ...]
    parameters: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Architecture:
    """A column of Table 1, or a net in its manner; build one with ``architecture()``.

    ``blocks`` are the layers between the max-pools in Table 1's notation, with channels not yet multiplied by
    ``width``; the other fields are the function's arguments. Without ``fully_connected``, as in files of convolutions
    alone, the net gives features only.

    Raises:
        UserError: a layer text that cannot be read, an even kernel, or a value out of range.
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
            raise UserError(f"width {self.width}: must be a number above 0; 1.0 is the paper's")
        if not self.blocks:
            raise UserError("layers []: a net needs at least one block, e.g. [[conv3-64]]")
        self.layers()
        if self.crop <= 0 or self.crop % self.stride:
            raise UserError(
                f"crop {self.crop}: {len(self.blocks)} max-pools each halve it, so it must be a positive multiple of "
                f"{self.stride}; use {max(1, round(self.crop / self.stride)) * self.stride}"
            )
        if self.classes < 1:
            raise UserError(f"classes {self.classes}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout}: must be in [0, 1); the paper's is {value('dropout')}")

    @property
    def stride(self) -> int:
        """Input pixels per step of the last pooling map: each block ends in a max-pool that halves the resolution."""
        return 2 ** len(self.blocks)

    @property
    def fc6_kernel(self) -> int:
        """Side of the last pooling map at ``crop``, so of fc6 seen as a convolution (Section 3.2); 7 in the paper."""
        return self.crop // self.stride

    def places(self, height: int, width: int) -> int:
        """Places of the score map of a whole image of these sides, px (Section 3.2)."""
        return math.prod(side // self.stride - self.fc6_kernel + 1 for side in (height, width))

    def receptive_field(self, first: int, last: int) -> tuple[int, int]:
        """The first and last input pixel, along one axis, on which places first..last of the last pooling map depend.

        They may lie outside the image, in the padding.
        """
        for layer in reversed(self.layers()):
            if layer.kind == "pool":
                first, last = 2 * first, 2 * last + 1
            elif layer.kernel:
                first, last = first - layer.kernel // 2, last + layer.kernel // 2
        return first, last

    @property
    def field_of_view(self) -> int:
        """Side of what one place of the last layer depends on, padding included, px; 404 for net D in the paper.

        Of it a training crop shows ``crop``, and zeros around; in the dense test the image goes on there.
        """
        first, last = self.receptive_field(0, self.fc6_kernel - 1 if self.fully_connected else 0)
        return last - first + 1

    @property
    def smallest_side(self) -> int:
        """Of an image to which the net is densely applied, px: one place of the last layer."""
        return self.crop if self.fully_connected else self.stride

    @property
    def feature_layer(self) -> str:
        """The layer whose activations are the net's features: the last before class scores (Appendix B)."""
        return "fc7" if self.fully_connected else f"pool{len(self.blocks)}"

    @property
    def fc_units(self) -> int:
        """Units of fc6 and of fc7; 4096 in the paper."""
        return self._scaled(value("fc_units"))

    @property
    def outputs(self) -> int:
        """Units of fc8: class scores, or the numbers of one box or of one for each class."""
        return {None: self.classes, "SCR": BOX_NUMBERS, "PCR": BOX_NUMBERS * self.classes}[self.regression]

    @property
    def parameters(self) -> int:
        """Weights and biases, with batch norm's scales and shifts (Table 2)."""
        return sum(layer.parameters for layer in self.layers())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass over one image of ``crop`` x ``crop``, without biases."""
        return sum(layer.multiply_adds for layer in self.layers())

    @property
    def weight_layers(self) -> int:
        """Convolutional and fully-connected layers: the number in the names VGG-16 and VGG-19."""
        return sum(layer.kind in ("conv", "fc") for layer in self.layers())

    def layers(self) -> list[Layer]:
        """The layers in order: conv1_1, [bn1_1], [lrn1_1], ..., pool1, ..., fc6, fc7, fc8 (ReLU and dropout left out).

        The fully-connected layers keep the names fc6-fc8, which the paper's five blocks gave them, in every net.
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
                raise UserError("layers []: a block needs at least one convolution, e.g. [conv3-64]")
            place = 0
            for before, text in pairwise(("", *block)):
                if text == "LRN":
                    if before in ("", "LRN"):
                        raise UserError(
                            f"layers {list(block)}: LRN must stand directly after a convolution of its block"
                        )
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
    """A column of Table 1 (``net`` is A, A-LRN, B, C, D or E), or a net of your own; the defaults are the paper's.

    Args:
        net: the column; with ``layers``, any name.
        layers: blocks in Table 1's notation, e.g. ``[["conv3-64", "LRN"], ["conv5-128"]]``, in place of a column.
        blocks: number of blocks, counted from the image; the last ones are left out. Default: all, 5 in Table 1.
        batch_norm: batch normalisation between each convolution and its ReLU (not in the paper).
        classes: how many there are; units of fc8 unless it predicts boxes.
        crop: side of the square input in pixels, a multiple of 2 ** blocks.
        width: multiplies all channels and the units of fc6 and fc7 (rounded, at least 1).
        dropout: share of units dropped after fc6 and fc7.
        regression: fc8 predicts one box for all classes (SCR) or one for each (PCR) in place of class scores.
        fully_connected: whether there are fc6, fc7 and fc8.

    Raises:
        UserError: no such column, more blocks than it has, a layer text that cannot be read, an even kernel, or a value
            out of range.
    """
    columns = facts().architectures
    if layers is None and net not in columns:
        near = get_close_matches(net.upper(), columns, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"net {net!r}: not in Table 1; {hint}choose from {', '.join(columns)}, or give layers")
    every = tuple(map(tuple, columns[net] if layers is None else layers))
    if blocks is not None and not 0 < blocks <= len(every):
        raise UserError(f"blocks {blocks}: net {net} has {len(every)}; choose a number from 1 to {len(every)}")
    return Architecture(net, every[:blocks], batch_norm, classes, crop, width, dropout, regression, fully_connected)


def require_class_scores(architecture: Architecture) -> None:
    """Raises UserError for a net without fully-connected layers."""
    if not architecture.fully_connected:
        raise UserError(
            f"net {architecture.name} has no fully-connected layers (model.fully_connected=false), and so no class "
            f"scores; it gives features: `vggrepro features`"
        )


def architecture_of(config: Config) -> Architecture:
    """The net a configuration describes. Raises UserError."""
    regression = config.localisation.regression if config.localisation else None
    return architecture(**config.model.model_dump(exclude={"init"}), regression=regression)


def _kernel_and_channels(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"conv(\d+)-(\d+)", text)
    if match is None:
        raise UserError(f"layer {text!r}: cannot be read; write conv<kernel>-<channels>, e.g. conv3-64, or LRN")
    kernel, channels = int(match[1]), int(match[2])
    if kernel % 2 == 0:
        raise UserError(f"layer {text!r}: an even kernel cannot keep the resolution; use conv{kernel + 1}-{channels}")
    if channels == 0:
        raise UserError(f"layer {text!r}: has no channels; write e.g. conv{kernel}-64")
    return kernel, channels
