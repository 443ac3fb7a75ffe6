"""Warm start of a net from a trained one: deeper nets from A, or one scale from another (Section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.table1 import Architecture
from vggrepro.models.vgg import VGG
from vggrepro.paper import value


@dataclass(frozen=True)
class Inherited:
    """Origin of a layer of the child; ``parent`` is None for a layer that keeps its random initialisation."""

    child: str
    parent: str | None
    parameters: int

    def __str__(self) -> str:
        return f"{self.child:<8} {self.parent or 'random':<8} {self.parameters:>13,}"


@torch.no_grad()
def warm_start(net: VGG, parent_state: Mapping[str, Tensor], parent: Architecture) -> list[Inherited]:
    """Copies layers of a trained parent into ``net``; the other layers keep their random initialisation.

    If both nets have the same layers (S=384 from S=256, the jitter from S=384), all are copied, except the last one if
    only one of the nets predicts boxes (Appendix A trains it from scratch). Otherwise the paper's rule applies: the
    first four convolutions of A and the three fully-connected layers. The first four of a deeper net have other shapes,
    so layers are matched by name: conv1_1, conv2_1, conv3_1 and conv3_2. Batch norm is copied with its convolution if
    both nets have it. Nothing is copied if anything does not match.

    Args:
        net: The child, already initialised.
        parent_state: State dict of the parent, with the keys of ``VGG``.
        parent: Architecture of the parent.

    Returns:
        The origin of each layer of the child that has parameters, in order.

    Raises:
        UserError: the parent has another number of blocks, a layer has another shape (width, crop or classes) or is
            missing in the state dict, or a net that predicts boxes has other convolutions than its parent.
    """
    parents = {layer.name: layer for layer in parent.layers()}
    same_layers = (parent.blocks, parent.width) == (net.architecture.blocks, net.architecture.width)
    same_outputs = parent.regression == net.architecture.regression
    if not same_layers and not same_outputs:
        raise UserError(
            f"a net {net.architecture.name} that predicts boxes starts from a net {net.architecture.name} that "
            f"predicts classes; parent {parent.name} has other layers"
        )
    if len(parent.blocks) != len(net.architecture.blocks):  # fc6 may have the same shape nevertheless
        raise UserError(
            f"parent {parent.name} has {len(parent.blocks)} blocks, child {net.architecture.name} has "
            f"{len(net.architecture.blocks)}; give both nets the same number, model.blocks"
        )
    copies: list[tuple[Tensor, Tensor]] = []
    inherited = []
    for layer in net.architecture.layers():
        if not layer.parameters:
            continue
        inherits = same_layers or layer.name.replace("bn", "conv") in value("warm_start_layers")
        source = parents.get(layer.name) if inherits and (same_outputs or layer.name != "fc8") else None
        inherited.append(Inherited(layer.name, source.name if source else None, layer.parameters))
        if source is None:
            continue
        for key, tensor in net.get_submodule(layer.key).state_dict().items():
            parent_tensor = parent_state.get(f"{source.key}.{key}")
            if parent_tensor is None:
                raise UserError(
                    f"parent weights: {source.key}.{key} ({layer.name} of {parent.name}) is missing; "
                    f"give the checkpoint of a net {parent.name}"
                )
            if parent_tensor.shape != tensor.shape:
                raise UserError(
                    f"{layer.name} has shape {tuple(parent_tensor.shape)} in the parent {parent.name} and "
                    f"{tuple(tensor.shape)} in the child {net.architecture.name}; give both nets the same layers, "
                    f"width, crop and classes"
                )
            copies.append((tensor, parent_tensor))
    for tensor, parent_tensor in copies:
        tensor.copy_(parent_tensor)
    return inherited
