"""Boxes are rescaled, cropped and mirrored like their pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import Views, unaugmented, uncropped

CROP = 48
IMAGES = 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray]:
    """Black images of many shapes with a white box each, and the boxes, shape (images, 4), in index order."""
    root = tmp_path_factory.mktemp("drawn")
    random = np.random.default_rng(0)
    boxes = []
    for number in range(IMAGES):
        height, width = random.integers(50, 140, 2)
        top, left = (int(random.integers(0, side - 20)) for side in (height, width))
        bottom = int(random.integers(top + 12, height + 1))
        right = int(random.integers(left + 12, width + 1))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        boxes.append((left, top, right, bottom))
        for split in ("train", "val"):
            file = root / split / "box" / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return scan_folder(root), np.array(boxes, float)


def seen(image: torch.Tensor) -> tuple[float, float, float, float]:
    """Finds left, top, right and bottom, px, of the white area in grey levels, shape (3, h, w)."""
    rows, columns = np.nonzero(image[0].numpy() > 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def assert_visible_in_place(index: Index, views: Views, boxes: np.ndarray) -> int:
    """Renders the views and compares each visible box; returns the number of visible boxes."""
    split = index.split("train")
    loader = Loader("torchvision", (0.0, 0.0, 0.0), 1, torch.device("cpu"))
    (batch,) = loader.batches(split, [views])
    height, width = views.shape
    expected = views.boxes_in_window(boxes[views.image]).clip(0, [width, height, width, height])
    found = 0
    for image, box in zip(batch.images, expected, strict=True):
        if (box[2:] - box[:2] < 3).any():  # hardly any part of it is in the window
            continue
        found += 1
        np.testing.assert_allclose(seen(image), box, atol=1.0)  # px: an edge is between two
    return found


@pytest.mark.parametrize("S", [48, 64, (50, 120)])
@pytest.mark.parametrize("around", [False, True], ids=["anywhere", "around the box"])
def test_a_box_follows_its_object_in_training_crops(
    drawn: tuple[Index, np.ndarray], S: int | tuple[int, int], around: bool
) -> None:
    index, boxes = drawn
    data = Data(S=S, colour_shift=ColourShift(mode="off"))
    sampler = TrainingSampler(index.split("train").size, data, CROP, seed=1, boxes=boxes if around else None)
    views = sampler.views(0, 5 * IMAGES)
    assert views.flip.any()
    assert not views.flip.all()
    assert assert_visible_in_place(index, views, boxes) > (4.5 if around else 3) * IMAGES


def test_a_box_follows_its_object_in_uncropped_images(drawn: tuple[Index, np.ndarray]) -> None:
    index, boxes = drawn
    size = index.split("train").size
    for row in range(IMAGES):
        views = uncropped(np.array([row]), size[[row]], 2 * size[[row]])
        assert assert_visible_in_place(index, views, boxes) == 1


def test_boxes_survive_the_round_trip() -> None:
    random = np.random.default_rng(2)
    sizes = random.integers(40, 500, (300, 2))
    views = TrainingSampler(sizes, Data(S=(64, 200)), 64, seed=0).views(0, 300)
    for shape in ((4,), (6, 4), (3, 5, 4)):
        boxes = random.uniform(-50, 600, (300, *shape))
        np.testing.assert_allclose(views.boxes_in_image(views.boxes_in_window(boxes)), boxes, atol=1e-9)


def test_boxes_computed_by_hand() -> None:
    """An image is rescaled to half its size, cropped, and mirrored."""
    views = unaugmented(np.array([0]), np.array([[100, 200]]), np.array([[50, 100]]), np.array([[10, 20]]), (30, 40))
    box = np.array([[60.0, 40.0, 100.0, 60.0]])
    assert views.boxes_in_window(box).tolist() == [[10, 10, 30, 20]]
    mirrored = Views(**vars(views) | {"flip": np.array([True])})
    assert mirrored.boxes_in_window(box).tolist() == [[10, 10, 30, 20]]  # in the middle: 40 - 30, 40 - 10
    box[0, 2] = 80
    assert mirrored.boxes_in_window(box).tolist() == [[20, 10, 30, 20]]


def test_crops_are_uniform_among_those_with_the_centre_of_the_box() -> None:
    sizes = np.full((1000, 2), (60, 90))
    boxes = np.tile([[50.0, 10.0, 70.0, 30.0]], (1000, 1))  # its centre at x = 60, y = 20
    views = TrainingSampler(sizes, Data(S=60), 32, seed=0, boxes=boxes).views(0, 40_000)
    centre = np.array([20, 60])
    assert (views.corner <= centre).all()
    assert (views.corner + 32 >= centre).all()
    for axis, places in enumerate((range(21), range(28, 59))):
        drawn = np.bincount(views.corner[:, axis])
        assert set(np.flatnonzero(drawn)) == set(places)
        counts = drawn[list(places)]
        assert counts.min() > 0.8 * counts.mean()  # uniformly


def test_a_centre_on_the_border_of_the_image_permits_crops() -> None:
    sizes = np.array([(40, 40)] * 4)
    boxes = np.array([(0, 0, 0.5, 0.5), (39.5, 39.5, 40, 40), (0, 39, 40, 40), (39, 0, 40, 40)], float)
    views = TrainingSampler(sizes, Data(S=40), 32, seed=0, boxes=boxes).views(0, 400)
    assert (views.corner >= 0).all()
    assert (views.corner + 32 <= 40).all()
    assert (views.corner[views.image == 0] == 0).all()


def test_boxes_do_not_change_other_draws() -> None:
    """Mirroring, colours and the order of the images are the same with boxes."""
    sizes = np.random.default_rng(1).integers(40, 90, (50, 2))
    boxes = np.tile([[5.0, 5.0, 20.0, 20.0]], (50, 1))
    reference_fc7, around = (
        TrainingSampler(sizes, Data(S=40), 32, seed=5, boxes=given).views(100, 60) for given in (None, boxes)
    )
    for name in ("image", "flip", "shift", "rescaled"):
        np.testing.assert_array_equal(getattr(reference_fc7, name), getattr(around, name))
    assert not np.array_equal(reference_fc7.corner, around.corner)
