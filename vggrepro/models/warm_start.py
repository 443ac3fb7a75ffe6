"""Starting a net from a trained one: the deeper nets from A, or a scale from another (Section 3.1)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True)
class LayerMap:
    """All layers of the child that have parameters, in order."""

    layers: tuple[Inherited, ...]

    def table(self) -> list[str]:
        """Printable lines: child, parent or "random", parameters."""
        return [f"{layer.child:<8} {layer.parent or 'random':<8} {layer.parameters:>13,}" for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: {"layers": [{"child", "parent", "parameters"}, ...]}."""
        return asdict(self)


@torch.no_grad()
def warm_start(net: VGG, parent_state: Mapping[str, Tensor], parent: Architecture) -> LayerMap:
    """Copy a trained parent's layers into ``net`` and say which; what is not copied keeps its random start.

    From the same layers (S=384 from S=256, the jitter from S=384) everything is copied, but for the last layer where
    one net predicts boxes and the other does not (Appendix A: it is trained from scratch). Otherwise the paper's rule
    holds: the first four convolutions of A and the three fully-connected layers. The first four of a deeper net have
    other shapes, so they are taken by place in their block: conv1_1, conv2_1, conv3_1 and conv3_2. Batch norm goes
    along with its convolution where both nets have it. Nothing is copied if anything does not fit.

    Args:
        net: the child, already initialised.
        parent_state: the parent's state dict, with the keys of ``VGG``.
        parent: the parent's architecture.

    Raises:
        UserError: a layer has another shape in the parent (another width, crop or number of classes), or the state dict
            lacks it; or a net that predicts boxes has other convolutions than its parent.
    """
    child_state = net.state_dict()
    parents = {layer.name: layer for layer in parent.layers()}
    everything = parent.blocks == net.architecture.blocks
    same_outputs = parent.regression == net.architecture.regression
    if not everything and not same_outputs:
        raise UserError(
            f"a net {net.architecture.name} that predicts boxes starts from a net {net.architecture.name} that "
            f"predicts classes; parent {parent.name} has other layers"
        )
    copies: dict[str, Tensor] = {}
    rows = []
    for layer in net.architecture.layers():
        if not layer.parameters:
            continue
        inherits = everything or layer.name.replace("bn", "conv") in value("warm_start_layers")
        source = parents.get(layer.name) if inherits and (same_outputs or layer.name != "fc8") else None
        rows.append(Inherited(layer.name, source.name if source else None, layer.parameters))
        if source is None:
            continue
        for key, own in child_state.items():
            module, _, tensor = key.rpartition(".")
            if module != layer.key:
                continue
            theirs = parent_state.get(f"{source.key}.{tensor}")
            if theirs is None:
                raise UserError(
                    f"parent weights: {source.key}.{tensor} ({layer.name} of {parent.name}) is missing; "
                    f"give the checkpoint of a net {parent.name}"
                )
            if theirs.shape != own.shape:
                raise UserError(
                    f"{layer.name}: {tuple(theirs.shape)} in the parent {parent.name}, {tuple(own.shape)} in the child "
                    f"{net.architecture.name}; give both nets the same layers, width, crop and classes"
                )
            copies[key] = theirs
    for key, theirs in copies.items():
        child_state[key].copy_(theirs)
    return LayerMap(tuple(rows))
