"""The dense form against the plain net slid over the last pooling map, window by window."""

import pytest
import torch
from nets import tiny_vgg, with_biases
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.dense import class_scores, score_map
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG


def built(net: str = "A", **options: object) -> VGG:
    return with_biases(tiny_vgg(net, "glorot_uniform", **{"crop": 64, "classes": 10} | options))


def random_images(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def scores_by_window(net: VGG, images: Tensor) -> Tensor:
    """Applies the plain FC layers to all windows of the last pooling map: (N, classes, rows, columns)."""
    k = net.architecture.fc6_kernel
    maps = net.features(images)
    rows, columns = maps.shape[2] - k + 1, maps.shape[3] - k + 1
    scores = [net.classifier(maps[:, :, y : y + k, x : x + k].flatten(1)) for y in range(rows) for x in range(columns)]
    return torch.stack(scores, dim=-1).unflatten(-1, (rows, columns))


@pytest.mark.parametrize("net", ["A", "A-LRN", "C"])
@torch.inference_mode()
def test_equals_the_plain_net_at_the_crop(net: str) -> None:
    module, images = built(net), random_images(64, 64)
    assert score_map(module, images).shape == (2, 10, 1, 1)
    torch.testing.assert_close(class_scores(module, images), module(images))


@pytest.mark.parametrize(("height", "width"), [(97, 131), (64, 150), (150, 64), (65, 95), (128, 191), (200, 257)])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_norm": True}, {"crop": 32}, {"layers": [["conv3-64"], ["conv5-99"]]}, {"blocks": 3, "crop": 56}],
)
@torch.inference_mode()
def test_equals_the_windows_in_turn(options: dict, height: int, width: int) -> None:
    net, images = built(**options), random_images(height, width)
    stride, k = net.architecture.stride, net.architecture.fc6_kernel
    expected = scores_by_window(net, images)
    scores = score_map(net, images)
    assert scores.shape == (2, 10, height // stride - k + 1, width // stride - k + 1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(class_scores(net, images), expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_works_in_channels_last() -> None:
    net, images = built(), random_images(97, 131)
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
        assert torch.equal(class_scores(net, random_images(97, 131, n=1))[0], torch.arange(10.0))


@pytest.mark.parametrize(("height", "width"), [(63, 200), (200, 63)])
def test_too_small_an_image_is_named(height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"images of {height}x{width} pixels are smaller than the net's crop of 64"):
        score_map(built(), random_images(height, width))


def test_training_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match="training mode"):
        score_map(built().train(), random_images(64, 64))


@pytest.mark.parametrize(("height", "width"), [(64, 700), (701, 65), (97, 333), (129, 130)])
@pytest.mark.parametrize("options", [{"net": "E"}, {"net": "C"}, {"net": "A-LRN"}, {"net": "D", "blocks": 3}])
@pytest.mark.parametrize("ceil", [False, True])
@torch.inference_mode()
def test_strips_equal_the_full_map(options: dict, height: int, width: int, ceil: bool) -> None:
    net, images = built(**options), random_images(height, width, n=1)
    expected = score_map(net, images, ceil=ceil)
    for pixels in (1, 64 * 256, 64 * 400):
        strips = score_map(net, images, ceil=ceil, pixels_at_once=pixels)
        torch.testing.assert_close(strips, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_strips_bound_the_pixels_of_a_pass() -> None:
    net, images, seen = built(net="D"), random_images(64, 3000, n=1), []
    net.features[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].numel() // 3))
    score_map(net, images, pixels_at_once=64 * 600)
    assert max(seen) <= 64 * 600
    assert len(seen) <= 9  # of which a whole image would fill five: the strips overlap, but not much


def test_receptive_field_is_the_extent_of_gradients() -> None:
    net = built(net="D")
    images = random_images(64, 640, n=1).requires_grad_()
    maps = net.features(images)
    maps[0, :, :, 9:11].sum().backward()
    assert images.grad is not None
    reached = images.grad[0].abs().sum(dim=(0, 1)).nonzero().flatten()
    first, last = net.architecture.receptive_field(9, 10)
    assert first <= int(reached.min())
    assert int(reached.max()) <= last
    assert last - first + 1 == 212 + 32  # VGG-16's known field, and one more place
    paper, small = architecture("D"), architecture("D", blocks=3, crop=56)
    assert (paper.field_of_view, small.field_of_view) == (212 + 6 * 32, 44 + 6 * 8)


@torch.inference_mode()
def test_ceil_pools_the_remainder() -> None:
    net, images = built(net="A"), random_images(64, 97)
    with_remainder = score_map(net, images, ceil=True)
    assert (score_map(net, images).shape[3], with_remainder.shape[3]) == (2, 3)
    maps = images
    for layer in net.features:
        maps = torch.nn.MaxPool2d(2, 2, ceil_mode=True)(maps) if isinstance(layer, torch.nn.MaxPool2d) else layer(maps)
    expected = [net.classifier(maps[:, :, :, x : x + 2].flatten(1)) for x in range(3)]
    torch.testing.assert_close(with_remainder[:, :, 0], torch.stack(expected, dim=2), rtol=1e-4, atol=1e-5)
