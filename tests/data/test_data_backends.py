"""Compares the backends with PIL's "rescale the full image, then crop", and with each other."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading import loader
from vggrepro.data.loading.loader import Batch, Loader, make_loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import Views, centre, rescaled_size, uncropped
from vggrepro.errors import UserError

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
# dali_gpu on a CPU: everything except the decoder, which is libjpeg-turbo there
BACKENDS = [pytest.param("dali", marks=needs_dali), pytest.param("dali_gpu", marks=needs_dali), "torchvision"]
Backend = Literal["dali", "dali_gpu", "torchvision"]
NO_MEAN = (0.0, 0.0, 0.0)
MEAN = (123.68, 116.779, 103.939)


def loaded(
    split: Split,
    stream: Sequence[Views],
    backend: Backend,
    mean: tuple[float, float, float] = NO_MEAN,
    workers: int = 2,
) -> list[Batch]:
    return list(Loader(backend, mean, workers, torch.device("cpu")).batches(split, stream))


def rescaled_then_cropped(split: Split, views: Views) -> NDArray[np.float32]:
    """Renders views by definition, without colour shift, shape (N, h, w, 3)."""
    crops = []
    for row, size, (top, left), flip in zip(views.image, views.rescaled, views.corner, views.flip, strict=True):
        with Image.open(split.name_of(row)) as encoded:
            image = encoded.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)[top : top + views.shape[0], left : left + views.shape[1]]
        crops.append(pixels[:, ::-1] if flip else pixels)
    return np.stack(crops).astype(np.float32)


def pixels(batch: Batch) -> NDArray[np.float32]:
    """Pixels of a batch, shape (N, h, w, 3)."""
    return batch.images.permute(0, 2, 3, 1).cpu().numpy()


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Allows a grey level, and more for 1 pixel in 100,000: PIL takes a window's borders in single precision."""
    error = np.abs(found - expected)
    assert error.mean() < 0.05
    assert error.max() <= 2.001
    assert (error > 1.001).mean() < 1e-5


def training_views(split: Split, count: int, batch: int, S: tuple[int, int], crop: int, **data: object) -> list[Views]:
    sampler = TrainingSampler(
        split.size, Data(**{"S": S, "colour_shift": ColourShift(mode="off")} | data), crop, seed=3
    )
    return [sampler.views(first, min(batch, count - first)) for first in range(0, count, batch)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("S", "crop"), [((64, 128), 64), ((224, 512), 224), ((400, 800), 64)])
def test_training_crops_are_plain_crops(train_split: Split, backend: Backend, S: tuple[int, int], crop: int) -> None:
    stream = training_views(train_split, 48, 16, S, crop)
    for views, batch in zip(stream, loaded(train_split, stream, backend), strict=True):
        assert batch.images.shape == (len(views), 3, crop, crop)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert_close(pixels(batch), rescaled_then_cropped(train_split, views))


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_borders_are_as_exact_as_the_middle(train_split: Split, backend: Backend) -> None:
    """Crops at the corners of strongly reduced images, where a missing margin shows most."""
    image = np.repeat(np.arange(4), 5)
    size = train_split.size[image]
    rescaled = rescaled_size(size, 48)
    far = rescaled - 32
    corner = np.concatenate([[(0, 0), (0, w), (h, 0), (h, w), (h // 2, w // 2)] for h, w in far[::5]])
    n = len(image)
    views = Views(image, size, rescaled, corner, (32, 32), np.zeros(n, bool), np.zeros((n, 3), np.float32))
    (batch,) = loaded(train_split, [views], backend)
    assert_close(pixels(batch), rescaled_then_cropped(train_split, views))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_views_are_uncropped_rescaled_images(val_split: Split, backend: Backend) -> None:
    rescaled = rescaled_size(val_split.size, 96)
    shapes = sorted({(int(h), int(w)) for h, w in rescaled})
    assert len(shapes) > 2
    assert any(side % 2 for shape in shapes for side in shape)
    of_shape = [(rescaled == shape).all(axis=1).nonzero()[0] for shape in shapes]
    stream = [uncropped(rows, val_split.size[rows], rescaled[rows]) for rows in sorted(of_shape, key=len, reverse=True)]
    batches = loaded(val_split, stream, backend)
    for views, batch in zip(stream, batches, strict=True):
        assert batch.images.shape[2:] == views.shape
        assert_close(pixels(batch), rescaled_then_cropped(val_split, views))
    seen = np.concatenate([batch.views.image for batch in batches])
    assert np.array_equal(np.sort(seen), np.arange(len(val_split)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_flips_mirror_left_to_right(val_split: Split, backend: Backend) -> None:
    straight = centre(np.arange(4), val_split.size[:4], 80, 64)
    views = Views(*(getattr(straight, f) for f in ("image", "size", "rescaled", "corner", "shape")),
                  np.array([True, False, True, False]), straight.shift)  # fmt: skip
    (flipped,), (plain,) = loaded(val_split, [views], backend), loaded(val_split, [straight], backend)
    for row, mirrored in enumerate(views.flip):
        expected = plain.images[row].flip(-1) if mirrored else plain.images[row]
        assert torch.equal(flipped.images[row], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_is_subtracted_and_colours_are_shifted_without_clipping(val_split: Split, backend: Backend) -> None:
    bare = centre(np.arange(8), val_split.size, 80, 64)
    shift = np.random.default_rng(0).normal(0, 30, (8, 3)).astype(np.float32)
    views = Views(bare.image, bare.size, bare.rescaled, bare.corner, bare.shape, bare.flip, shift)
    (shifted,), (plain,) = loaded(val_split, [views], backend, MEAN), loaded(val_split, [bare], backend)
    expected = pixels(plain) - np.array(MEAN, np.float32) + shift[:, None, None, :]
    assert np.allclose(pixels(shifted), expected, atol=1e-3)
    assert expected.min() < -124  # beyond what clipped grey levels could give


@needs_dali
@pytest.mark.parametrize("backend", ["dali", "dali_gpu"])
def test_backends_agree(train_split: Split, backend: Backend) -> None:
    stream = training_views(train_split, 48, 16, (64, 160), 64, colour_shift=ColourShift())
    for left, right in zip(
        loaded(train_split, stream, backend, MEAN), loaded(train_split, stream, "torchvision", MEAN), strict=True
    ):
        assert torch.equal(left.labels, right.labels)
        assert np.array_equal(left.labels.numpy(), train_split.label[left.views.image])
        if backend == "dali":
            assert torch.equal(left.images, right.images)
        else:
            assert_close(pixels(left), pixels(right))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(train_split: Split, backend: Backend) -> None:
    stream = training_views(train_split, 8, 8, (64, 128), 64)
    (plain,) = loaded(train_split, stream, backend, MEAN)
    loader = Loader(backend, MEAN, 2, torch.device("cpu"), dtype=torch.bfloat16)
    (half,) = loader.batches(train_split, stream)
    assert half.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half.images, plain.images.bfloat16())


@needs_dali
@pytest.mark.gpu
@pytest.mark.parametrize(("S", "crop"), [((64, 128), 64), ((224, 512), 224)])
def test_decoded_on_a_gpu_crops_are_plain_crops(train_split: Split, S: tuple[int, int], crop: int) -> None:
    """The GPU's decoder rounds, and interpolates chroma at edges of colour, differently."""
    stream = training_views(train_split, 48, 16, S, crop)
    batches = list(Loader("dali_gpu", NO_MEAN, 2, torch.device("cuda", 0)).batches(train_split, stream))
    for views, batch in zip(stream, batches, strict=True):
        assert batch.images.is_cuda
        error = np.abs(pixels(batch) - rescaled_then_cropped(train_split, views))
        assert error.mean() < 1
        assert (error > 8).mean() < 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_do_not_depend_on_batch_split_or_threads(train_split: Split, backend: Backend) -> None:
    unsplit = loaded(train_split, training_views(train_split, 40, 40, (64, 128), 64), backend, workers=1)
    in_parts = loaded(train_split, training_views(train_split, 40, 16, (64, 128), 64), backend, workers=3)
    assert torch.equal(torch.cat([b.images for b in unsplit]), torch.cat([b.images for b in in_parts]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_may_be_abandoned_or_empty(train_split: Split, backend: Backend) -> None:
    stream = training_views(train_split, 480, 16, (64, 128), 64)
    batches = Loader(backend, MEAN, 2, torch.device("cpu")).batches(train_split, stream)
    first = next(batches)
    del batches
    (repeated,) = loaded(train_split, stream[:1], backend, MEAN)
    assert torch.equal(first.images, repeated.images)
    assert loaded(train_split, [], backend) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_crops_of_real_photographs_are_plain_crops(clothing: Path, backend: Backend) -> None:
    split = scan_folder(clothing).split("train")
    stream = training_views(split, 96, 32, (256, 512), 224)
    for views, batch in zip(stream, loaded(split, stream, backend), strict=True):
        assert_close(pixels(batch), rescaled_then_cropped(split, views))


@needs_dali
def test_pixels_do_not_depend_on_the_precision_of_training(train_split: Split) -> None:
    """Sums in double precision, which the TF32 setting does not affect, are as exact as in float32."""
    stream = training_views(train_split, 16, 8, (64, 128), 64)
    plain = loaded(train_split, stream, "dali_gpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        doubled = loaded(train_split, stream, "dali_gpu")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert all(torch.equal(first.images, second.images) for first, second in zip(plain, doubled, strict=True))


@needs_dali
def test_dali_is_not_used_without_docstrings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DALI extends its docstrings on import, but `python -OO` removes them."""
    monkeypatch.setattr(loader, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    loader._note_stripped.cache_clear()
    cpu = torch.device("cpu")
    assert [make_loader(Data(), cpu).backend for _ in range(2)] == ["torchvision"] * 2
    line = capsys.readouterr().err
    assert (line.count("\n"), "DALI cannot be used under python -OO" in line) == (1, True)
    assert make_loader(Data(backend="torchvision"), cpu).backend == "torchvision"
    with pytest.raises(UserError, match=r"data.backend=dali, but DALI cannot .* set data.backend=torchvision"):
        make_loader(Data(backend="dali"), cpu)
    assert capsys.readouterr().err == ""
