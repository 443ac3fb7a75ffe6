"""A data set of a few dozen images, and a stage that trains a net of a few thousand weights on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.register_assert_rewrite("training_runs")

from training_runs import BATCH, CLASSES  # noqa: E402

TRAIN_IMAGES, VAL_IMAGES = 39, 12  # 39 images and a batch of 8: steps straddle epochs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-style folder; a class is a colour, so that there is something to learn."""
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
    """Writes a stage file for a tiny net; keyword arguments replace or add settings, section by section."""

    def write(name: str = "A", **sections: dict[str, Any]) -> Path:
        tree: dict[str, dict[str, Any]] = {
            "run": {"name": name, "experiment": "test", "root": str(tmp_path / "runs"), "device": "cpu", "seed": 3},
            "model": {"net": "A", "classes": len(CLASSES), "crop": 32, "width": 0.0625, "init": "kaiming"},
            "data": {"root": str(images), "S": 34, "backend": "torchvision", "workers": 1},
            "train": {"batch": BATCH, "iterations": 12, "log_every": 1, "checkpoint_every": 4, "keep": 100},
            "evaluation": {"single_Q": [34], "multi_Q": [34], "batch": 8},
            "tracking": {"mlflow": False},
        }
        for section, settings in sections.items():
            tree[section] = tree.get(section, {}) | settings
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return file

    return write
