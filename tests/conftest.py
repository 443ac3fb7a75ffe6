"""What tests of several rooms share: small images in ImageNet's layout, and settings under which nets are small."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import REPOSITORY, TINY


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a launcher around the tests must not reach them."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "VGGREPRO_ATTEMPT")
    for name in (*launchers, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 8 + 4 JPEGs each, 40 to 90 px: blotches of one colour a class."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("n01", "n02", "n03")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([label, number, count])
                height, width = random.integers(40, 91, 2)
                pixels = random.integers(0, 100, (height, width, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{number}.JPEG", quality=92)
    return root


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> list[str]:
    """Overrides that make any configuration small and point it at `images`; runs go to `tmp_path`."""
    return [*TINY, f"data.root={images}", f"run.root={tmp_path / 'runs'}"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of fabricated runs."""
    return tmp_path / "runs"


@pytest.fixture
def paper_of_2000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on 2,000 images of 10 classes count as the paper's data set: 50,000 x 1,000 are too many for a test."""
    from vggrepro.paper import value
    from vggrepro.reporting import runs

    other = {"classes": 10, "val_images": 2000}
    monkeypatch.setattr(runs, "value", lambda name: other.get(name) or value(name))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; tests that need it are skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared images beside the checkout")
    return folder


@pytest.fixture(scope="session")
def quiet_threads() -> dict[str, str]:
    """Environment of a subprocess that shares few cores with others."""
    return os.environ | {"OMP_NUM_THREADS": "1"}
