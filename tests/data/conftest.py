"""Photographs to test on: made from scikit-learn's two images, and the shared ones where they are."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny import shared

from vggrepro.data.index import Split
from vggrepro.data.scan import scan_folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-style folder of 24 + 8 photographs of two classes, of many sizes, cut from two real ones."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            label = number % 2
            whole = Image.fromarray(load_sample_images().images[label])
            scale = random.uniform(0.3, 1.0)
            width, height = (int(side * scale * random.uniform(0.6, 1.0)) for side in whole.size)
            left, top = (
                int(random.uniform(0, side - cut)) for side, cut in zip(whole.size, (width, height), strict=True)
            )
            file = root / split / ("church", "flower")[label] / f"{number:03d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            # both chroma subsamplings that are common in the wild
            whole.crop((left, top, left + width, top + height)).save(file, quality=92, subsampling=2 * (number % 2))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where indices of data sets are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def train_split(photographs: Path) -> Split:
    return scan_folder(photographs).split("train")


@pytest.fixture(scope="session")
def val_split(photographs: Path) -> Split:
    return scan_folder(photographs).split("val")


@pytest.fixture(params=["dali", "torchvision"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def unpacked(name: str, folder: Path) -> Path:
    """A shared archive, unpacked; skips the test where it is absent."""
    with tarfile.open(shared(name)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def clothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,249 phone photographs of ten classes, shorter side 400 px."""
    return unpacked("clothing10-400-cc0-1k.tar", tmp_path_factory.mktemp("clothing"))


@pytest.fixture(scope="session")
def hard_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """248 files that trouble decoders, with a manifest of what is wrong with them."""
    return unpacked("hard-files.tar", tmp_path_factory.mktemp("hard_files"))
