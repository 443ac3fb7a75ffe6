"""Where the repository is, and settings under which nets are small; not in conftest.py, of which there are several."""

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
# For the demo, which drops the learning rate after more steps than these.
TWO_STEPS = ("train.schedule.kind=plateau", "train.schedule.drops_at=[]", "train.iterations=2")

PublicPredictions = tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]
"""Labels, (images,), and guesses by net, (images, 5)."""


def set_words(*settings: str) -> list[str]:
    """Settings as words of a command line."""
    return [word for setting in settings for word in ("--set", setting)]


def tiny_graph(recipe: str, images: Path, runs: Path, *changes: str) -> Graph:
    """A recipe of configs/ made small, on these images; runs go to `runs`."""
    return load_graph(CONFIGS / recipe, [*TINY, f"data.root={images}", f"run.root={runs}", *changes])


def link_digits(digits: Path, *folders: Path) -> None:
    """Puts the sample set into folders where it would be made."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digits.name).symlink_to(digits)


def shared(name: str) -> Path:
    """A file of real images or answers beside the checkout; the test is skipped where it is absent."""
    file = REPOSITORY.parent / "shared" / "data" / name
    if not file.exists():
        pytest.skip(f"{name} is not beside the checkout")
    return file
