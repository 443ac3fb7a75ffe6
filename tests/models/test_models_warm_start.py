"""Inheritance from a trained parent, and its errors."""

import json
from dataclasses import asdict

import pytest
import torch
from nets import tiny_vgg
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG
from vggrepro.models.warm_start import warm_start

INHERITED = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"]


def built(net: str, seed: int, **options: object) -> VGG:
    module = tiny_vgg(net, "paper", seed, **{"classes": 10} | options)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(seed)  # biases and batch norm of different seeds differ too
    return module


def copy_of(net: VGG) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("blocks", [None, 3])
@pytest.mark.parametrize("net", ["A-LRN", "B", "C", "D", "E"])
def test_deeper_nets_inherit_by_block(net: str, blocks: int | None, batch_norm: bool) -> None:
    """Three blocks of A have four convolutions, and all are inherited."""
    parent, child = (built(name, seed, batch_norm=batch_norm, blocks=blocks) for name, seed in (("A", 1), (net, 2)))
    before = copy_of(child)
    inherited = warm_start(child, parent.state_dict(), parent.architecture)
    after, theirs = child.state_dict(), parent.state_dict()
    parent_keys = {layer.name: layer.key for layer in parent.architecture.layers()}
    rows = {row.child: row for row in inherited}
    assert list(rows) == list(child.named_layers())
    for layer in child.architecture.layers():
        if not layer.parameters:
            continue
        inherits = layer.name.replace("bn", "conv") in INHERITED
        assert rows[layer.name].parent == (layer.name if inherits else None)
        assert rows[layer.name].parameters == layer.parameters
        for key in (key for key in after if key.startswith(f"{layer.key}.")):
            source = theirs[parent_keys[layer.name] + key.removeprefix(layer.key)] if inherits else before[key]
            assert torch.equal(after[key], source), key


def test_the_same_net_inherits_everything() -> None:
    parent, child = built("C", 1, batch_norm=True), built("C", 2, batch_norm=True, dropout=0.1)
    inherited = warm_start(child, parent.state_dict(), parent.architecture)
    assert all(row.child == row.parent for row in inherited)
    for key, tensor in parent.state_dict().items():
        assert torch.equal(child.state_dict()[key], tensor)


def test_batch_norm_is_unchanged_if_only_the_child_has_it() -> None:
    parent, child = built("A", 1), built("B", 2, batch_norm=True)
    rows = {row.child: row.parent for row in warm_start(child, parent.state_dict(), parent.architecture)}
    assert (rows["conv1_1"], rows["bn1_1"], rows["conv1_2"]) == ("conv1_1", None, None)
    assert torch.equal(child.named_layers()["conv3_2"].weight, parent.named_layers()["conv3_2"].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.125}, r"conv1_1 has shape \(4, 3, 3, 3\) in the parent A and \(8, 3, 3, 3\) in the child D"),
        ({"crop": 64}, r"fc6 has shape \(256, 32\) in the parent A and \(256, 128\) in the child D"),
        ({"blocks": 4, "crop": 16}, "parent A has 5 blocks, child D has 4; give both nets the same number"),
        ({"classes": 11}, r"fc8 has shape \(10, 256\) in the parent A and \(11, 256\) in the child D"),
    ],
)
def test_a_mismatch_is_refused_and_nothing_is_copied(options: dict, message: str) -> None:
    parent, child = built("A", 1), built("D", 2, **options)
    before = copy_of(child)
    with pytest.raises(UserError, match=message):
        warm_start(child, parent.state_dict(), parent.architecture)
    assert all(torch.equal(tensor, before[key]) for key, tensor in child.state_dict().items())


def test_a_missing_tensor_is_named() -> None:
    parent, child = built("A", 1), built("B", 2)
    state = parent.state_dict()
    del state["features.3.bias"]
    with pytest.raises(UserError, match=r"features.3.bias \(conv2_1 of A\) is missing"):
        warm_start(child, state, parent.architecture)


def test_inherited_layers_print_and_serialise() -> None:
    parent, child = built("A", 1), built("B", 2)
    inherited = warm_start(child, parent.state_dict(), parent.architecture)
    first, second = inherited[:2]
    assert str(first).split() == ["conv1_1", "conv1_1", "112"]
    assert str(second).split() == ["conv1_2", "random", "148"]
    assert json.loads(json.dumps(asdict(second))) == {"child": "conv1_2", "parent": None, "parameters": 148}
