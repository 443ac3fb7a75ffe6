"""Views, posteriors and errors of a full split against an image-by-image reference in NumPy and PIL."""

import io

import numpy as np
import pytest
import torch
from evaluation_nets import tiny_net
from PIL import Image

from vggrepro.config.settings import Data, Evaluation
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Loader
from vggrepro.evaluation.methods import METHODS, centre_error, centre_views, grid, uncropped_views
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.models.vgg import VGG
from vggrepro.ranks.watch import Watch

Q = 40


def rescaled(split: Split, row: int, side: int) -> np.ndarray:
    """Returns the uncropped image at shorter side Q, RGB 0-255 minus the mean, shape (h, w, 3)."""
    image = Image.open(io.BytesIO(split.read(row))).convert("RGB")
    scale = side / min(image.size)
    size = tuple(int(np.floor(length * scale + 0.5 + 1e-9)) for length in image.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return pixels - np.array(Data().mean, np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


@torch.inference_mode()
def dense_of_image(net: VGG, pixels: np.ndarray) -> np.ndarray:
    """Returns the softmax of the mean over all windows of the last pooling map, a window at a time."""
    maps = net.features(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None])
    kernel = net.architecture.fc6_kernel
    scores = [
        net.classifier(maps[:, :, y : y + kernel, x : x + kernel].flatten(1))[0].numpy().astype(np.float64)
        for y in range(maps.shape[2] - kernel + 1)
        for x in range(maps.shape[3] - kernel + 1)
    ]
    return softmax(np.mean(scores, axis=0))


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("side", [32, 40, 64])
def test_uncropped_views_show_every_image_once_within_the_memory(odd_images: Split, batch: int, side: int) -> None:
    views = uncropped_views(odd_images, side, batch, 32)
    shown = np.concatenate([view.image for view in views])
    assert sorted(shown.tolist()) == list(range(len(odd_images)))
    for view in views:
        height, width = view.shape
        assert min(height, width) == side
        assert np.array_equal(view.corner, np.zeros_like(view.corner))
        assert np.array_equal(view.rescaled, np.tile(view.shape, (len(view), 1))), "padded or cropped"
        np.testing.assert_allclose(view.source_window()[:, 2:], odd_images.size[view.image])
        assert len(view) == 1 or len(view) * height * width <= batch * 32**2
    lengths = [len(view) for view in views]
    assert lengths == sorted(lengths, reverse=True), "backends need the longest batch first"


def test_uncropped_views_fill_their_batches(odd_images: Split) -> None:
    """Three images of 48x64 and two each of 64x48 and 50x50 share batches."""
    lengths = [len(view) for view in uncropped_views(odd_images, Q, 64, 32)]
    assert lengths == [3, 2, 2, 1, 1, 1, 1]


@torch.inference_mode()
def posterior_of_crop(net: VGG, crop: np.ndarray) -> np.ndarray:
    scores = net(torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None])
    return softmax(scores[0].numpy().astype(np.float64))


def multicrop_reference(net: VGG, pixels: np.ndarray, *, flip: bool) -> np.ndarray:
    """Crops cut by hand: corners, borders and middle, each with its mirror image."""
    height, width, _ = pixels.shape
    crops = []
    for i in range(5):
        for j in range(5):
            top, left = (int(np.floor(part * (side - 32) / 4 + 0.5)) for part, side in ((i, height), (j, width)))
            crop = pixels[top : top + 32, left : left + 32]
            crops += [crop, crop[:, ::-1]] if flip else [crop]
    assert len(crops) == (50 if flip else 25)
    return np.mean([posterior_of_crop(net, crop) for crop in crops], axis=0)


def reference(method: str, net: VGG, pixels: np.ndarray, *, flip: bool) -> np.ndarray:
    if method == "multicrop":
        return multicrop_reference(net, pixels, flip=flip)
    if method == "centre":
        top, left = (pixels.shape[0] - 32) // 2, (pixels.shape[1] - 32) // 2
        return posterior_of_crop(net, pixels[top : top + 32, left : left + 32])
    apply = {"dense": dense_of_image, "dense-softmax-first": dense_softmax_first_of_image}[method]
    return (apply(net, pixels) + apply(net, pixels[:, ::-1])) / 2 if flip else apply(net, pixels)


@torch.inference_mode()
def dense_softmax_first_of_image(net: VGG, pixels: np.ndarray) -> np.ndarray:
    maps = net.features(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None])
    places = maps[0].flatten(1).T  # crop 32: fc6 covers one place
    return np.mean([softmax(score.astype(np.float64)) for score in net.classifier(places).numpy()], axis=0)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("method", ["centre", "dense", "dense-softmax-first", "multicrop"])
def test_methods_against_the_reference(net: VGG, loader: Loader, odd_images: Split, method: str, flip: bool) -> None:
    found = np.empty((len(odd_images), 3), np.float32)
    with torch.inference_mode():
        for batch in loader.batches(odd_images, uncropped_views(odd_images, Q, 8, 32)):
            found[batch.views.image] = METHODS[method](net, batch.images, Evaluation(flip=flip, batch=8)).numpy()
    expected = np.stack(
        [reference(method, net, rescaled(odd_images, row, Q), flip=flip) for row in range(len(odd_images))]
    )
    assert expected.std(axis=0).min() > 0.01, "the images must differ, or this shows nothing"
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_the_reference_distinguishes_the_methods(net: VGG) -> None:
    """The test above could not fail otherwise."""
    pixels = (np.random.default_rng(0).random((40, 118, 3)) * 255 - 110).astype(np.float32)
    variants = [(method, flip) for method in ("dense", "dense-softmax-first", "multicrop") for flip in (False, True)]
    posteriors = [reference(method, net, pixels, flip=flip) for method, flip in [("centre", False), *variants]]
    for number, values in enumerate(posteriors):
        for other in posteriors[:number]:
            assert np.abs(values - other).max() > 1e-5


def test_ceil_differs_only_with_a_remainder(net: VGG) -> None:
    random = torch.Generator().manual_seed(0)
    settings = Evaluation(flip=False, batch=8)
    with torch.inference_mode():
        even, odd = (torch.randn(1, 3, 32, width, generator=random) * 60 for width in (96, 95))
        assert torch.equal(METHODS["dense"](net, even, settings), METHODS["dense-ceil"](net, even, settings))
        assert not torch.allclose(METHODS["dense"](net, odd, settings), METHODS["dense-ceil"](net, odd, settings))


@pytest.mark.parametrize(
    ("side", "corners"),
    [(224, [0, 0, 0, 0, 0]), (256, [0, 8, 16, 24, 32]), (225, [0, 0, 1, 1, 1]), (226, [0, 1, 1, 2, 2])],
)
def test_grid(side: int, corners: list[int]) -> None:
    assert grid(side, 224) == corners


def test_centre_error_against_a_direct_computation(loader: Loader, odd_images: Split) -> None:
    net, side = tiny_net(3, classes=7), 48
    rank = []
    for row in range(len(odd_images)):
        pixels = rescaled(odd_images, row, side)
        top, left = (pixels.shape[0] - 32) // 2, (pixels.shape[1] - 32) // 2
        crop = torch.from_numpy(pixels[top : top + 32, left : left + 32].transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            order = np.argsort(-net(crop)[0].numpy())
        rank.append(order.tolist().index(odd_images.label[row]))
    net.train()
    errors = centre_error(net, SplitPass(odd_images, loader, Watch(), "fp32"), side, 4)
    assert net.training, "the caller's mode is restored"
    assert errors[1].wrong == sum(place >= 1 for place in rank)
    assert errors[5].wrong == sum(place >= 5 for place in rank)
    assert errors[1].n == errors[5].n == len(odd_images)
    assert 0 < errors[1].wrong < len(odd_images)


def test_centre_views_show_every_image_once(odd_images: Split) -> None:
    views = centre_views(odd_images, 48, 4, 32)
    assert np.concatenate([view.image for view in views]).tolist() == list(range(len(odd_images)))
    assert {view.shape for view in views} == {(32, 32)}
