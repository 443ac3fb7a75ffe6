"""The built-in sample set: reproducible bytes, and images that fit the configuration."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggrepro.data.images import sample_set
from vggrepro.data.images.sample_set import TRAIN_IMAGES, VAL_IMAGES, ensure
from vggrepro.data.images.scan import scan_folder


def digest(root: Path, names: set[str] | None = None) -> str:
    """Hashes all images below a folder, or some."""
    files = sorted(file for file in root.rglob("*.JPEG") if names is None or str(file.relative_to(root)) in names)
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_counts_classes_and_sizes(digits: Path) -> None:
    index = scan_folder(digits)
    assert index.classes == tuple("0123456789")
    assert (TRAIN_IMAGES, VAL_IMAGES) == (8000, 3000), "the fixture makes the first of them"
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


def test_the_set_is_reproducible_byte_for_byte(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_set, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(sample_set, "VAL_IMAGES", 50)
    repeated = ensure(tmp_path)
    names = {str(file.relative_to(repeated)) for file in repeated.rglob("*.JPEG")}
    assert len(names) == 250
    assert repeated != digits
    assert digest(repeated) == digest(digits, names)


def test_the_set_is_made_once(digits: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in digits.rglob("*.JPEG")}
    assert ensure(digits.parent) == digits
    assert {file: file.stat().st_mtime_ns for file in digits.rglob("*.JPEG")} == before


def test_digits_are_legible(digits: Path) -> None:
    """Digits are visible: no image is nearly uniform."""
    spread = [np.asarray(Image.open(file).convert("L")).std() for file in sorted((digits / "val").rglob("*.JPEG"))]
    assert min(spread) > 8
