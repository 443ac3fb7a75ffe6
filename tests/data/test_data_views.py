"""Geometry of views: sizes after rescaling, positions of windows, and pixels that the filter reads."""

import numpy as np
import pytest

from vggrepro.data.views import Views, centre, rescaled_size, unaugmented, uncropped


def view(size: tuple[int, int], rescaled: tuple[int, int], corner: tuple[int, int], shape: tuple[int, int]) -> Views:
    image, *rest = (np.array([row]) for row in (0, size, rescaled, corner))
    return unaugmented(image, *rest, shape)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((400, 500), 256, (256, 320)),
        ((500, 400), 256, (320, 256)),
        ((375, 500), 256, (256, 341)),  # 341.33
        ((333, 500), 256, (256, 384)),  # 384.38
        ((4, 5), 2, (2, 3)),  # 2.5: halves go up
        ((300, 300), 256, (256, 256)),
        ((100, 5000), 224, (224, 11200)),
        ((1, 1), 224, (224, 224)),
    ],
)
def test_rescaled_size(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert rescaled_size(np.array([size]), short).tolist() == [list(expected)]


def test_rescaled_size_takes_a_short_side_for_each_image() -> None:
    assert rescaled_size(np.array([(10, 20), (10, 20)]), np.array([5, 20])).tolist() == [[5, 10], [20, 40]]


def test_source_window_of_an_uncropped_image_is_the_image() -> None:
    views = uncropped(np.arange(2), np.array([(375, 500), (376, 501)]), np.array([(256, 341), (256, 341)]))
    assert views.shape == (256, 341)
    assert np.allclose(views.source_window(), [[0, 0, 375, 500], [0, 0, 376, 501]])
    assert views.decode_box().tolist() == [[0, 0, 375, 500], [0, 0, 376, 501]]


def test_source_window_of_a_crop() -> None:
    views = view((100, 200), (50, 100), (10, 20), (30, 40))  # everything is halved
    assert np.allclose(views.source_window(), [[20, 40, 80, 120]])


@pytest.mark.parametrize("rescaled", [(37, 56), (120, 180), (111, 167), (400, 600)])
def test_decode_box_contains_every_pixel_the_filter_reads(rescaled: tuple[int, int]) -> None:
    """Compares the box with the support of the triangle filter, computed pixel by pixel."""
    size, shape = (120, 180), (32, 24)
    for corner in [(0, 0), (5, 32), (rescaled[0] - 32, rescaled[1] - 24), (3, 0)]:
        views = view(size, rescaled, corner, shape)
        top, left, bottom, right = views.decode_box()[0]
        for axis, (low, high) in enumerate(((top, bottom), (left, right))):
            scale = size[axis] / rescaled[axis]
            centres = (np.arange(corner[axis], corner[axis] + shape[axis]) + 0.5) * scale
            pixels = np.arange(size[axis]) + 0.5
            read = (np.abs(pixels - centres[:, None]) < max(1.0, scale)).any(axis=0).nonzero()[0]
            assert 0 <= low <= read[0]
            assert read[-1] < high <= size[axis]


def test_centre_crop_is_in_the_middle() -> None:
    views = centre(np.arange(2), np.array([(300, 400), (401, 300)]), 256, 224)
    assert views.rescaled.tolist() == [[256, 341], [342, 256]]
    assert views.corner.tolist() == [[16, 58], [59, 16]]
    assert not views.flip.any()
    assert not views.shift.any()


def test_slices_of_views_are_views() -> None:
    views = centre(np.arange(5), np.full((5, 2), 300), 256, 224)
    assert len(views[1:3]) == 2
    assert views[1:3].image.tolist() == [1, 2]
    assert views[1:3].shape == views.shape
