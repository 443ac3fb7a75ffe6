"""Data set of a few dozen images, and a stage that trains a net of a few thousand weights on it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.register_assert_rewrite("training_runs")

from training_runs import CLASSES, write_stage  # noqa: E402

TRAIN_IMAGES, VAL_IMAGES = 39, 12  # 39 images and a batch of 8: steps straddle epochs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-style folder in which each class has a colour."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for number in range(count):
            label = number % len(CLASSES)
            pixels = random.integers(0, 120, (36, 40, 3)) + 120 * (np.arange(3) == label)
            file = root / split / CLASSES[label] / f"{number:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(file, quality=95)
    return root


@pytest.fixture
def stage_file(images: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns `write_stage` for this test's folder."""
    return partial(write_stage, tmp_path, images)
