"""Starting a net from a trained one: the deeper nets from A, or a scale from another (Section 3.1)."""

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
    """Where one layer of the child comes from; ``parent`` is None for a layer that keeps its random start."""

    child: str
    parent: str | None
    parameters: int

    def __str__(self) -> str:
        return f"{self.child:<8} {self.parent or 'random':<8} {self.parameters:>13,}"


@torch.no_grad()
def warm_start(net: VGG, parent_state: Mapping[str, Tensor], parent: Architecture) -> list[Inherited]:
    """Copy a trained parent's layers into ``net``; what is not copied keeps its random start.

    From the same layers (S=384 from S=256, the jitter from S=384) everything is copied, but for the last layer where
    one net predicts boxes and the other does not (Appendix A: it is trained from scratch). Otherwise the paper's rule
    holds: the first four convolutions of A and the three fully-connected layers. The first four of a deeper net have
    other shapes, so they are taken by place in their block: conv1_1, conv2_1, conv3_1 and conv3_2. Batch norm goes
    along with its convolution where both nets have it. Nothing is copied if anything does not fit.

    Args:
        net: the child, already initialised.
        parent_state: the parent's state dict, with the keys of ``VGG``.
        parent: the parent's architecture.

    Returns:
        All layers of the child that have parameters, in order.

    Raises:
        UserError: the parent has another number of blocks, a layer another shape in it (another width, crop or number
            of classes), or the state dict lacks it; a net that predicts boxes has other convolutions than its parent.
    """
    parents = {layer.name: layer for layer in parent.layers()}
    everything = (parent.blocks, parent.width) == (net.architecture.blocks, net.architecture.width)
    same_outputs = parent.regression == net.architecture.regression
    if not everything and not same_outputs:
        raise UserError(
            f"a net {net.architecture.name} that predicts boxes starts from a net {net.architecture.name} that "
            f"predicts classes; parent {parent.name} has other layers"
        )
    if len(parent.blocks) != len(net.architecture.blocks):  # of which fc6 may be of one shape
        raise UserError(
            f"parent {parent.name} has {len(parent.blocks)} blocks, child {net.architecture.name} has "
            f"{len(net.architecture.blocks)}; give both nets the same number, model.blocks"
        )
    copies: list[tuple[Tensor, Tensor]] = []
    inherited = []
    for layer in net.architecture.layers():
        if not layer.parameters:
            continue
        inherits = everything or layer.name.replace("bn", "conv") in value("warm_start_layers")
        source = parents.get(layer.name) if inherits and (same_outputs or layer.name != "fc8") else None
        inherited.append(Inherited(layer.name, source.name if source else None, layer.parameters))
        if source is None:
            continue
        for key, tensor in net.get_submodule(layer.key).state_dict().items():
            theirs = parent_state.get(f"{source.key}.{key}")
            if theirs is None:
                raise UserError(
                    f"parent weights: {source.key}.{key} ({layer.name} of {parent.name}) is missing; "
                    f"give the checkpoint of a net {parent.name}"
                )
            if theirs.shape != tensor.shape:
                raise UserError(
                    f"{layer.name}: {tuple(theirs.shape)} in the parent {parent.name}, {tuple(tensor.shape)} in the "
                    f"child {net.architecture.name}; give both nets the same layers, width, crop and classes"
                )
            copies.append((tensor, theirs))
    for tensor, theirs in copies:
        tensor.copy_(theirs)
    return inherited
