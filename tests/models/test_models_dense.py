"""The dense form against the plain net slid over the last pooling map, window by window."""

import pytest
import torch
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.dense import class_scores, score_map
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG


def built(net: str = "A", **options: object) -> VGG:
    module = VGG(architecture(net, **{"crop": 64, "width": 0.0625, "classes": 10} | options)).eval()
    init_weights(module, "glorot_uniform", seed=0)
    with torch.no_grad():
        for layer in module.named_layers().values():
            layer.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    return module


def pictures(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def windows_one_by_one(net: VGG, images: Tensor) -> Tensor:
    """(N, classes, rows, columns): every window of the last pooling map through the plain fully-connected layers."""
    k = net.architecture.fc6_kernel
    maps = net.features(images)
    rows, columns = maps.shape[2] - k + 1, maps.shape[3] - k + 1
    scores = [net.classifier(maps[:, :, y : y + k, x : x + k].flatten(1)) for y in range(rows) for x in range(columns)]
    return torch.stack(scores, dim=-1).unflatten(-1, (rows, columns))


@pytest.mark.parametrize("net", ["A", "A-LRN", "C"])
@torch.inference_mode()
def test_equals_the_plain_net_at_the_crop(net: str) -> None:
    module, images = built(net), pictures(64, 64)
    assert score_map(module, images).shape == (2, 10, 1, 1)
    torch.testing.assert_close(class_scores(module, images), module(images))


@pytest.mark.parametrize(("height", "width"), [(97, 131), (64, 150), (150, 64), (65, 95), (128, 191), (200, 257)])
@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"crop": 32}, {"layers": [["conv3-64"], ["conv5-99"]]}])
@torch.inference_mode()
def test_equals_the_windows_one_by_one(options: dict, height: int, width: int) -> None:
    net, images = built(**options), pictures(height, width)
    stride, k = net.architecture.stride, net.architecture.fc6_kernel
    expected = windows_one_by_one(net, images)
    scores = score_map(net, images)
    assert scores.shape == (2, 10, height // stride - k + 1, width // stride - k + 1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(class_scores(net, images), expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_works_in_channels_last() -> None:
    net, images = built(), pictures(97, 131)
    expected = class_scores(net, images)
    net.to(memory_format=torch.channels_last)
    scores = class_scores(net, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_shares_the_nets_weights() -> None:
    net = built()
    with torch.no_grad():
        for layer in net.named_layers().values():
            layer.weight.zero_()
        net.named_layers()["fc8"].bias.copy_(torch.arange(10))
        assert torch.equal(class_scores(net, pictures(97, 131, n=1))[0], torch.arange(10.0))


@pytest.mark.parametrize(("height", "width"), [(63, 200), (200, 63)])
def test_too_small_a_picture_is_named(height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"images of {height}x{width} pixels: smaller than this net's crop of 64"):
        score_map(built(), pictures(height, width))


def test_training_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match="training mode"):
        score_map(built().train(), pictures(64, 64))
