"""Images of odd sizes, a tiny net and a loader, for the tests of evaluation."""

import numpy as np
import pytest
import torch
from evaluation_nets import CLASSES, tiny_net
from PIL import Image

from vggrepro.config.settings import Data
from vggrepro.data.images.index import Index, Split
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Loader, make_loader
from vggrepro.models.vgg import VGG

# height, width; among them portrait and landscape, squares, one small enough to be enlarged, one very long, and repeats
SIZES = [(48, 64), (64, 48), (48, 64), (50, 50), (20, 31), (27, 800), (40, 41), (48, 64), (33, 97), (50, 50), (64, 48)]
MODES = {3: "L", 6: "CMYK"}  # image number: another mode than RGB


@pytest.fixture(scope="session", autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def odd_index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Real JPEG files: SIZES in `val`, one image a class in `train`."""
    root = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC).convert(MODES.get(number, "RGB"))
        splits = ["val"] + ["train"] * (number < len(CLASSES))
        for split in splits:
            file = root / split / CLASSES[number % len(CLASSES)] / f"{number:02}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, quality=95)
    return scan_folder(root)


@pytest.fixture(scope="session")
def odd_images(odd_index: Index) -> Split:
    return odd_index.split("val")


@pytest.fixture(scope="session")
def loader() -> Loader:
    return make_loader(Data(backend="torchvision", workers=1), torch.device("cpu"))


@pytest.fixture(scope="session")
def net() -> VGG:
    return tiny_net()
