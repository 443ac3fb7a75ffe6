"""Photographs for tests: cut from scikit-learn's two images, and the shared ones if present."""

import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from layouts_as_files import WNIDS
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny import shared

from vggrepro.data.decode import BadImageError, patiently
from vggrepro.data.images.archive_members import Member
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.images.verify import Finding, How, inspect


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-style folder of 24 + 8 photographs of two classes and many sizes, cut from two real ones."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            label = number % 2
            photo = Image.fromarray(load_sample_images().images[label])
            scale = random.uniform(0.3, 1.0)
            width, height = (int(side * scale * random.uniform(0.6, 1.0)) for side in photo.size)
            left, top = (
                int(random.uniform(0, side - cut)) for side, cut in zip(photo.size, (width, height), strict=True)
            )
            file = root / split / ("church", "flower")[label] / f"{number:03d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            # both chroma subsamplings that are common in the wild
            photo.crop((left, top, left + width, top + height)).save(file, quality=92, subsampling=2 * (number % 2))
    return root


@pytest.fixture(scope="session")
def folders(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the photographs with ILSVRC's names, train/<wnid>/<wnid>_<n> and val/<wnid>/ILSVRC2012_val_<n>."""
    root = tmp_path_factory.mktemp("folders")
    for source in sorted(photographs.rglob("*.JPEG")):
        split, wnid, number = source.parts[-3], WNIDS[source.parts[-2]], int(source.stem)
        name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}"
        file = root / split / wnid / f"{name}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, file)
    return root


@pytest.fixture
def inspected_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspects images in this process, because tests of names and labels do not need worker processes."""

    def inspected(image: Member, how: How) -> Finding:
        try:
            return patiently(image.file, partial(inspect, image, how, False), archive=image.offset > 0)
        except BadImageError as error:
            return Finding(0, 0, "", f"rejected: {error}")

    def verify(chunks: Iterable[Sequence[Member]], how: How, **_: object) -> Iterator[list[Finding]]:
        return ([inspected(image, how) for image in chunk] for chunk in chunks)

    monkeypatch.setattr("vggrepro.data.images.scan.verify", verify)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for cached indices."""
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
    """Unpacks a shared archive; skips the test if it is absent."""
    with tarfile.open(shared(name)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def clothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 1,249 phone photographs of ten classes, shorter side 400 px."""
    return unpacked("clothing10-400-cc0-1k.tar", tmp_path_factory.mktemp("clothing"))


@pytest.fixture(scope="session")
def hard_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 248 files that trouble decoders, with a manifest of their defects."""
    return unpacked("hard-files.tar", tmp_path_factory.mktemp("hard_files"))
