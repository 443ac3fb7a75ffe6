"""Paths of the repository and settings that make nets small; not in conftest.py, because there are several."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vggrepro.config.recipes import Graph, load_graph

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"

# Nets, images and steps small enough that a stage takes a second.
TINY = (
    "model.classes=3",
    "model.crop=32",
    "model.width=0.0625",
    "model.init=glorot_uniform",
    "data.S=37",
    "data.processes=0",
    "evaluation.multi_Q=[]",
    "train.batch=8",
    "train.iterations=6",
    "train.log_every=1",
    "evaluation.batch=8",
    "tracking.mlflow=false",
    "run.device=cpu",
)
# The demo drops the learning rate after more steps than these.
TWO_STEPS = ("train.schedule.kind=plateau", "train.schedule.drops_at=[]", "train.iterations=2")

PublicPredictions = tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]
"""Labels, (images,), and guesses by net, (images, 5)."""


def set_words(*settings: str) -> list[str]:
    """Command-line options that set these settings."""
    return [word for setting in settings for word in ("--set", setting)]


def tiny_graph(recipe: str, images: Path, runs: Path, *changes: str) -> Graph:
    """Small version of a recipe in configs/ on these images; runs go to `runs`."""
    return load_graph(CONFIGS / recipe, [*TINY, f"data.root={images}", f"run.root={runs}", *changes])


def link_digits(digits: Path, *folders: Path) -> None:
    """Links the sample set into folders, in place of making it there."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digits.name).symlink_to(digits)


def shared(name: str) -> Path:
    """File of real images or results beside the checkout; skips the test if it is missing."""
    file = REPOSITORY.parent / "shared" / "data" / name
    if not file.exists():
        pytest.skip(f"{name} is not beside the checkout")
    return file
