"""Views, posteriors and errors of a whole split against a picture-by-picture reference in NumPy and PIL."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_nets import tiny_net
from PIL import Image

from vggrepro.config import Data
from vggrepro.data.index import Index, Split
from vggrepro.data.loader import Loader
from vggrepro.distributed import Topology
from vggrepro.evaluation.methods import centre_error, centre_views, dense_posteriors, dense_views
from vggrepro.models.vgg import VGG

Q = 40


def quiet(done: int, note: str) -> None:
    pass


def rescaled(split: Split, row: int, side: int) -> np.ndarray:
    """The picture as the paper has it: whole, shorter side Q, RGB 0-255 minus mean; (h, w, 3)."""
    image = Image.open(io.BytesIO(split.read(row))).convert("RGB")
    scale = side / min(image.size)
    size = tuple(int(np.floor(length * scale + 0.5 + 1e-9)) for length in image.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return pixels - np.array(Data().mean, np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


@torch.inference_mode()
def one_dense(net: VGG, pixels: np.ndarray) -> np.ndarray:
    """Softmax of the mean over every window of the last pooling map, one window at a time."""
    maps = net.features(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None])
    kernel = net.architecture.fc6_kernel
    scores = [
        net.classifier(maps[:, :, y : y + kernel, x : x + kernel].flatten(1))[0].numpy().astype(np.float64)
        for y in range(maps.shape[2] - kernel + 1)
        for x in range(maps.shape[3] - kernel + 1)
    ]
    return softmax(np.mean(scores, axis=0))


def dense_reference(net: VGG, split: Split, side: int, *, flip: bool) -> np.ndarray:
    rows = []
    for row in range(len(split)):
        pixels = rescaled(split, row, side)
        own = one_dense(net, pixels)
        rows.append((own + one_dense(net, pixels[:, ::-1])) / 2 if flip else own)
    return np.stack(rows)


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("side", [32, 40, 64])
def test_dense_views_show_every_picture_once_whole_and_within_the_memory(
    odd_pictures: Split, batch: int, side: int
) -> None:
    views = dense_views(odd_pictures, side, batch, 32)
    shown = np.concatenate([one.picture for one in views])
    assert sorted(shown.tolist()) == list(range(len(odd_pictures)))
    for one in views:
        height, width = one.shape
        assert min(height, width) == side
        assert np.array_equal(one.corner, np.zeros_like(one.corner))
        assert np.array_equal(one.rescaled, np.tile(one.shape, (len(one), 1))), "padded or cropped"
        np.testing.assert_allclose(one.source_window()[:, 2:], odd_pictures.size[one.picture])
        assert len(one) == 1 or len(one) * height * width <= batch * 32**2
    lengths = [len(one) for one in views]
    assert lengths == sorted(lengths, reverse=True), "backends need the longest batch first"


def test_dense_views_fill_their_batches(odd_pictures: Split) -> None:
    """Three pictures of 48x64 and two each of 64x48 and 50x50 go together."""
    lengths = [len(one) for one in dense_views(odd_pictures, Q, 64, 32)]
    assert lengths == [3, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("flip", [True, False])
def test_dense_posteriors_against_the_reference(net: VGG, loader: Loader, odd_pictures: Split, flip: bool) -> None:
    found = dense_posteriors(net, loader, odd_pictures, Q, batch=8, flip=flip, here=Topology(), update=quiet)
    assert found is not None
    assert found.dtype == np.float32
    expected = dense_reference(net, odd_pictures, Q, flip=flip)
    assert expected.std(axis=0).min() > 0.01, "the pictures must differ, or this shows nothing"
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_flips_matter(net: VGG, odd_pictures: Split) -> None:
    with_flip, without = (dense_reference(net, odd_pictures, Q, flip=flip) for flip in (True, False))
    assert np.abs(with_flip - without).max() > 1e-3


def test_centre_error_against_a_direct_computation(loader: Loader, odd_pictures: Split) -> None:
    net, side = tiny_net(3, classes=7), 48
    rank = []
    for row in range(len(odd_pictures)):
        pixels = rescaled(odd_pictures, row, side)
        top, left = (pixels.shape[0] - 32) // 2, (pixels.shape[1] - 32) // 2
        crop = torch.from_numpy(pixels[top : top + 32, left : left + 32].transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            order = np.argsort(-net(crop)[0].numpy())
        rank.append(order.tolist().index(odd_pictures.label[row]))
    net.train()
    errors = centre_error(net, loader, odd_pictures, side, batch=4, here=Topology())
    assert net.training, "the caller's mode is restored"
    assert errors[1].wrong == sum(place >= 1 for place in rank)
    assert errors[5].wrong == sum(place >= 5 for place in rank)
    assert errors[1].n == errors[5].n == len(odd_pictures)
    assert 0 < errors[1].wrong < len(odd_pictures)


def test_centre_views_show_every_picture_once(odd_pictures: Split) -> None:
    views = centre_views(odd_pictures, 48, 4, 32)
    assert np.concatenate([one.picture for one in views]).tolist() == list(range(len(odd_pictures)))
    assert {one.shape for one in views} == {(32, 32)}


RANK = """
import sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from evaluation_nets import tiny_net
from vggrepro.config import Data
from vggrepro.data.index import load
from vggrepro.data.loader import make_loader
from vggrepro.distributed import process_group, topology
from vggrepro.evaluation.methods import centre_error, dense_posteriors
import os
here, device = topology(os.environ), torch.device("cpu")
torch.set_num_threads(1)
split = load(Path(sys.argv[2])).split("val")
loader = make_loader(Data(backend="torchvision", workers=1), device, 1)
with process_group(here, device):
    quiet = lambda done, note: None
    found = dense_posteriors(tiny_net(), loader, split, 40, batch=4, flip=True, here=here, update=quiet)
    errors = centre_error(tiny_net(), loader, split, 48, batch=3, here=here)
    assert (found is None) == (here.rank > 0)
    if found is not None:
        np.savez(sys.argv[3], found=found, wrong=[errors[1].wrong, errors[5].wrong])
"""


def test_one_two_and_three_ranks_give_identical_posteriors(odd_index: Index, tmp_path: Path) -> None:
    odd_index.save(tmp_path / "index.arrow")
    (tmp_path / "rank.py").write_text(RANK)
    results = []
    for world in (1, 2, 3):
        out = tmp_path / f"{world}.npz"
        program = [str(tmp_path / "rank.py"), str(Path(__file__).parent), str(tmp_path / "index.arrow"), str(out)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        subprocess.run([sys.executable, *launcher, *program], check=True, timeout=300, capture_output=True)
        with np.load(out) as content:
            results.append((content["found"], content["wrong"]))
    for found, wrong in results[1:]:
        np.testing.assert_array_equal(found, results[0][0])
        np.testing.assert_array_equal(wrong, results[0][1])
