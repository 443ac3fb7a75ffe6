"""The built-in sample set: the same bytes everywhere, and images like those the configuration speaks of."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggrepro.data.sample_set import TRAIN_IMAGES, VAL_IMAGES, ensure
from vggrepro.data.scan import scan_folder


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("sample_set"))


def digest(root: Path) -> str:
    files = sorted(root.rglob("*.JPEG"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_counts_classes_and_sizes(sample_set: Path) -> None:
    index = scan_folder(sample_set)
    assert index.classes == tuple("0123456789")
    assert (TRAIN_IMAGES, VAL_IMAGES) == (2000, 500)
    assert index.summary()["splits"] == {"train": 2000, "val": 500}
    assert index.summary()["odd"] == index.summary()["rejected"] == 0
    for name in ("train", "val"):
        split = index.split(name)
        short = split.size.min(axis=1)
        assert short.min() == 80
        assert short.max() == 160
        assert (split.size.max(axis=1) <= 1.5 * short).all()
        counts = Counter(split.label.tolist())
        assert min(counts.values()) > 0.08 * len(split)  # no class is rare


def test_made_again_it_has_the_same_bytes(sample_set: Path, tmp_path: Path) -> None:
    again = ensure(tmp_path)
    assert again != sample_set
    assert digest(again) == digest(sample_set)


def test_it_is_made_once(sample_set: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in sample_set.rglob("*.JPEG")}
    assert ensure(sample_set.parent) == sample_set
    assert {file: file.stat().st_mtime_ns for file in sample_set.rglob("*.JPEG")} == before


def test_digits_stand_out(sample_set: Path) -> None:
    """The digits must be visible: no image is near-uniform."""
    spread = [np.asarray(Image.open(file).convert("L")).std() for file in sorted((sample_set / "val").rglob("*.JPEG"))]
    assert min(spread) > 8
