"""The box encoding, and the loss on it."""

import numpy as np
import pytest
import torch

from vggrepro.errors import UserError
from vggrepro.models.boxes import decode, encode, euclidean_loss, of_classes
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.warm_start import warm_start

SMALL = {"layers": [["conv3-4"], ["conv3-8"]], "classes": 3, "crop": 16, "width": 0.01}


@pytest.mark.parametrize(
    ("edges", "numbers"),
    [
        ((0, 0, 32, 32), (0, 0, 1, 1)),  # the whole window
        ((8, 8, 24, 24), (0, 0, 0, 0)),  # its middle
        ((0, 0, 16, 8), (-0.5, -0.75, 0, -0.5)),
        ((-16, 0, 48, 32), (0, 0, 3, 1)),  # beyond the window
    ],
)
def test_a_windows_box_by_hand(edges: tuple[float, ...], numbers: tuple[float, ...]) -> None:
    encoded = encode(torch.tensor(edges, dtype=torch.float64), 32)
    torch.testing.assert_close(encoded, torch.tensor(numbers, dtype=torch.float64))


def test_decoding_undoes_encoding() -> None:
    low = torch.rand(100, 2, 2, dtype=torch.float64) * 40 - 20
    edges = torch.cat([low, low + torch.rand(100, 2, 2, dtype=torch.float64) * 50], dim=-1)
    torch.testing.assert_close(decode(encode(edges, 24), 24), edges)


def test_a_width_below_zero_becomes_zero() -> None:
    left, top, right, bottom = decode(torch.tensor([0.0, 0.0, -3.0, 0.0]), 32).tolist()
    assert (left, right) == (16, 16)
    assert (top, bottom) == (8, 24)


def test_the_boxes_of_some_classes_in_a_map() -> None:
    outputs = torch.arange(2 * 12 * 3 * 2).view(2, 12, 3, 2).float()  # 3 classes, 3 x 2 places
    classes = torch.tensor([[2, 0], [1, 1]])
    found = of_classes(outputs, classes)
    assert found.shape == (2, 2, 4, 3, 2)
    for image in range(2):
        for number in range(2):
            first = 4 * int(classes[image, number])
            torch.testing.assert_close(found[image, number], outputs[image, first : first + 4])
    shared_box = of_classes(outputs[:, :4], classes)
    torch.testing.assert_close(shared_box, outputs[:, None, :4].expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize("regression", ["SCR", "PCR"])
def test_the_loss_against_a_loop(regression: str) -> None:
    random = np.random.default_rng(0)
    labels = np.array([2, 0, 1, 2])
    outputs = random.normal(size=(4, 4 if regression == "SCR" else 12))
    targets = random.normal(size=(4, 4))
    expected = 0.0
    for image, label in enumerate(labels):
        box = outputs[image] if regression == "SCR" else outputs[image, 4 * label : 4 * label + 4]
        expected += sum((p - t) ** 2 for p, t in zip(box, targets[image], strict=True)) / 2
    loss = euclidean_loss(torch.from_numpy(outputs), torch.from_numpy(targets), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(expected)


def test_boxes_of_other_classes_get_no_gradient() -> None:
    outputs = torch.zeros(2, 12, requires_grad=True)
    euclidean_loss(outputs, torch.ones(2, 4), torch.tensor([1, 2])).backward()
    assert outputs.grad is not None
    assert outputs.grad.view(2, 3, 4).abs().sum(dim=2).bool().tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize(("regression", "units"), [(None, 3), ("SCR", 4), ("PCR", 12)])
def test_units_of_the_last_layer(regression: None, units: int) -> None:
    net = VGG(architecture("mine", regression=regression, **SMALL))  # type: ignore[arg-type]
    assert net(torch.zeros(1, 3, 16, 16)).shape == (1, units)
    assert net.architecture.layers()[-1].shape == (units,)


def test_a_localisation_net_inherits_all_but_the_last_layer_of_a_classifier() -> None:
    parent = VGG(architecture("mine", **SMALL))  # type: ignore[arg-type]
    init_weights(parent, "kaiming", 0)
    net = VGG(architecture("mine", regression="SCR", **SMALL))  # type: ignore[arg-type]
    init_weights(net, "kaiming", 1)
    before = net.state_dict()["classifier.6.weight"].clone()
    layers = warm_start(net, parent.state_dict(), parent.architecture)
    assert [layer.child for layer in layers if layer.parent is None] == ["fc8"]
    for name, tensor in net.state_dict().items():
        expected = before if name == "classifier.6.weight" else parent.state_dict()[name]
        if not name.startswith("classifier.6.bias"):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_a_localisation_net_with_other_layers_is_refused() -> None:
    parent = VGG(architecture("A", classes=3, crop=32, width=0.01))
    net = VGG(architecture("D", regression="PCR", classes=3, crop=32, width=0.01))
    with pytest.raises(UserError, match=r"a net D that predicts boxes starts from a net D .*; parent A has other"):
        warm_start(net, parent.state_dict(), parent.architecture)


def test_frozen_convolutions_get_no_gradient() -> None:
    net = VGG(architecture("mine", regression="SCR", **SMALL))  # type: ignore[arg-type]
    net.features.requires_grad_(False)
    net(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is None for parameter in net.features.parameters())
    assert all(parameter.grad is not None for parameter in net.classifier.parameters())
