"""The page's values equal the stored ones, and each position of a map is where its window is."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from nets import tiny_vgg
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.measure import NetResults
from vggrepro.models.vgg import VGG
from vggrepro.pipeline.pretrained import Pretrained
from vggrepro.show.charts import LONGER_SIDE, class_map, limits_of
from vggrepro.show.exhibit import Exhibit
from vggrepro.show.views import Place, ScoredImage, alone, guesses, see, sides_in
from vggrepro.storage.directory import RunDirectory

Pixels = NDArray[np.uint8]
POINTWISE = (("conv1-16",), ("conv1-24",))
"""A block each: no place depends on what lies outside its window."""


def pretrained(net: VGG) -> Pretrained:
    return Pretrained(net, (120.0, 110.0, 100.0), (1.0, 1.0, 1.0), None, "0" * 64, "made here", (32, 40, 48), True)


def random_pixels(height: int, width: int) -> Pixels:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seen(net: VGG, pixels: Pixels, Q: int, *, flip: bool = False) -> ScoredImage:
    return see(pretrained(net), pixels, [Q], Q, flip=flip).at_Q[0]


def test_posteriors_are_those_that_evaluation_has_stored(shown_run: RunDirectory, exhibit: Exhibit) -> None:
    data = shown_run.read_json("dataset.json")["fingerprint"]
    results, (centre_Q,) = NetResults(shown_run, exhibit.net.weights, data, exhibit.stage.evaluation), (37,)
    multi_Q, flip = exhibit.stage.multi_Q, exhibit.stage.evaluation.flip
    assert (multi_Q, flip, exhibit.net.Q) == ((37, 72, 110), True, (37, 72, 110))
    stored: dict[Any, NDArray[np.float32]] = {}
    for name, method, Q in [
        *(("dense", "dense", (side,)) for side in multi_Q),
        ("mean", "dense", multi_Q),
        ("centre", "centre", (centre_Q,)),
    ]:
        found = results.scored(method, Q)
        assert found is not None
        stored[name, Q] = found.values
    assert exhibit.images is not None
    assert len(exhibit.images) == 12
    largest = 0.0
    for image in range(12):
        sight = see(exhibit.net, exhibit.pixels(image), multi_Q, centre_Q, flip=flip)
        ours = {("dense", (scored.Q,)): scored.posteriors for scored in sight.at_Q}
        ours |= {("mean", multi_Q): sight.average, ("centre", (centre_Q,)): sight.centre}
        assert ours.keys() == stored.keys()
        largest = max(largest, *(float(np.abs(stored[key][image] - ours[key]).max()) for key in ours))
    assert largest < 1e-6
    spread = np.abs(stored["dense", (37,)] - stored["dense", (110,)]).max()
    print(f"largest difference from stored posteriors: {largest:.1e}, between two Q: {spread:.1e}")
    assert spread > 1e-5, "the tests must differ, or this test could not fail"


def test_the_softmax_of_a_maps_mean_is_the_dense_test() -> None:
    net = tiny_vgg("A", blocks=3)
    net.named_layers()["fc8"].weight.data.mul_(30)  # type: ignore[operator, union-attr]
    pixels = random_pixels(61, 90)
    scored = seen(net, pixels, 48)
    means = scored.scores.astype(np.float64).mean(axis=(1, 2))
    posteriors = np.exp(means) / np.exp(means).sum()
    assert np.abs(posteriors - scored.posteriors).max() < 1e-6
    assert np.abs(scored.posteriors - pretrained(net).predict([pixels], [48], flip=False)[0]).max() < 1e-6
    assert np.abs(scored.local.sum(axis=0) - 1).max() < 1e-6
    mirrored = seen(net, pixels, 48, flip=True)
    assert np.abs(mirrored.scores - scored.scores).max() < 1e-4, "the map is of the image as it is"
    assert np.abs(mirrored.posteriors - pretrained(net).predict([pixels], [48], flip=True)[0]).max() < 1e-6
    assert np.abs(mirrored.posteriors - scored.posteriors).max() > 1e-4


def test_a_place_is_the_net_on_its_window() -> None:
    """Of 1x1 convolutions a place depends on its window only: each must be the net on exactly these pixels."""
    net = tiny_vgg("own", layers=POINTWISE, crop=32, width=0.25)
    scored = seen(net, random_pixels(57, 83), 57)
    assert scored.shape == ((57 // 4) - 8 + 1, (83 // 4) - 8 + 1) == (7, 13)
    assert len(scored.places()) == 7 * 13
    largest = 0.0
    for place in scored.places():
        cut = alone(pretrained(net), scored.crop(place))
        largest = max(largest, float(np.abs(cut - scored.local[:, place.row, place.column]).max()))
        assert scored.field_of_view(place) == scored.window(place)
    assert largest < 1e-6
    assert scored.local.std(axis=(1, 2)).max() > 1e-4, "places must differ"


def test_a_place_sees_more_than_its_window_and_no_more_than_its_field_of_view() -> None:
    net = tiny_vgg("A", blocks=2, crop=32)
    pixels = random_pixels(80, 90)
    scored, place = seen(net, pixels, 80), Place(4, 7)
    assert scored.window(place) == (28, 16, 60, 48)
    left, top, right, bottom = scored.field_of_view(place)
    assert (left, top, right, bottom) == (25, 13, 63, 51)
    assert right - left == net.architecture.field_of_view
    score = scored.scores[:, place.row, place.column]

    def changed_outside(box: tuple[int, int, int, int]) -> float:
        others = 255 - pixels
        x0, y0, x1, y1 = box
        others[y0:y1, x0:x1] = pixels[y0:y1, x0:x1]
        return float(np.abs(seen(net, others, 80).scores[:, place.row, place.column] - score).max())

    assert changed_outside((left, top, right, bottom)) < 1e-6
    assert changed_outside(scored.window(place)) > 1e-4
    assert changed_outside((left + 1, top + 1, right - 1, bottom - 1)) > 1e-7
    assert scored.field_of_view(Place(0, 0)) == (0, 0, 35, 35), "it ends where the image does"


def test_cells_lie_in_the_middle_of_their_windows_and_tile() -> None:
    scored = seen(tiny_vgg("A", blocks=3), random_pixels(50, 75), 50)
    rows, columns = scored.shape
    covered = np.zeros((50, 75), int)
    for place in scored.places():
        (a, b, c, d), (left, top, right, bottom) = scored.cell(place), scored.window(place)
        assert (a + c, b + d) == (left + right, top + bottom)
        covered[b:d, a:c] += 1
        assert right <= 75
        assert bottom <= 50
    assert covered.max() == 1
    assert covered.sum() == rows * columns * 8 * 8
    assert scored.best_place(3) == Place(*map(int, np.unravel_index(scored.scores[3].argmax(), scored.shape)))


def test_the_drawing_has_the_images_proportions_and_each_value_in_its_cell() -> None:
    scored = seen(tiny_vgg("A", blocks=3), random_pixels(50, 75), 50)
    chart = class_map(scored, scored.scores[2], "score", limits_of([scored.scores[2]]), Place(1, 2)).to_dict()
    assert (chart["width"], chart["height"]) == (LONGER_SIDE, round(LONGER_SIDE * 50 / 75))
    assert chart["autosize"]["type"] == "pad", "else the colour bar takes its height from the image"
    image, cells, seen_from, _, window = chart["layer"]
    for layer in chart["layer"]:
        assert layer["encoding"]["x"]["scale"]["domain"] == [0, 75]
        assert layer["encoding"]["y"]["scale"]["domain"] == [50, 0], "y grows downwards"
    edges = ("left", "top", "right", "bottom")
    assert [image["data"]["values"][0][edge] for edge in edges] == [0, 0, 75, 50]
    assert len(cells["data"]["values"]) == len(scored.places())
    for row in cells["data"]["values"]:
        place = Place(row["row"] - 1, row["column"] - 1)
        assert tuple(row[edge] for edge in edges) == scored.cell(place)
        assert row["value"] == pytest.approx(float(scored.scores[2, place.row, place.column]), abs=1e-4)
    assert tuple(window["data"]["values"][0][edge] for edge in edges) == scored.window(Place(1, 2))
    assert tuple(seen_from["data"]["values"][0][edge] for edge in edges) == scored.field_of_view(Place(1, 2))
    assert len(class_map(scored, scored.scores[2], "score", (0, 1), None).to_dict()["layer"]) == 2


def test_a_colour_bar_has_two_ends() -> None:
    assert limits_of([np.array([[1.0, 4.0]]), np.array([[-2.0]])]) == (-2, 4)
    assert limits_of([np.array([[3.0]])]) == (2.5, 3.5)


@pytest.mark.parametrize("text", ["", "x", "31", "32, 129", "40.5", "-40", "40;48"])
def test_q_must_be_whole_numbers_from_the_crop_on(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"Q {text!r}: expected whole numbers from 32 (the crop) to 128")):
        sides_in(text, 32)


def test_q_is_read_as_people_write_it() -> None:
    assert sides_in(" 48,32  40, 40", 32) == (32, 40, 48)


def test_a_strip_of_film_is_turned_away() -> None:
    with pytest.raises(UserError, match=r"image of 10000x2 px is 160000x32 px at Q=32, which is too much"):
        seen(tiny_vgg(), random_pixels(2, 10_000), 32)
    with pytest.raises(UserError, match=r"is 32000x32 px at Q=32, which is too much"):
        seen(tiny_vgg(blocks=1), random_pixels(2, 2000), 32)
    assert seen(tiny_vgg(), random_pixels(2, 30), 32).shape == (1, 480 // 32)


def test_guesses_are_five_best_first() -> None:
    assert guesses(np.array([0.1, 0.3, 0.1, 0.2, 0.05, 0.25], np.float32)) == [1, 5, 3, 0, 2]
    assert guesses(np.array([0.4, 0.6], np.float32)) == [1, 0]


def test_the_cut_out_window_is_the_net_on_the_crop() -> None:
    net, crop = tiny_vgg(), random_pixels(32, 32)
    with torch.inference_mode():
        expected = net(pretrained(net).normalise(torch.from_numpy(crop).permute(2, 0, 1)[None])).softmax(dim=1)[0]
    assert np.abs(alone(pretrained(net), crop) - expected.numpy()).max() < 1e-7
