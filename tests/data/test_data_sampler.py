"""The sampler: its draws, their uniformity, and their dependence on nothing but seed and position."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data.sampler import TrainingSampler, colour_components, dropout_masks, permutation
from vggrepro.data.views import Views, rescaled_size

FIELDS = ("image", "size", "rescaled", "corner", "flip", "shift")


def sampler(images: int = 50, seed: int = 0, **data: object) -> TrainingSampler:
    sizes = np.random.default_rng(1).integers(40, 90, (images, 2))
    return TrainingSampler(sizes, Data(**{"S": (32, 64)} | data), crop=32, seed=seed)


def same(left: Views, right: Views) -> bool:
    return left.shape == right.shape and all(np.array_equal(getattr(left, f), getattr(right, f)) for f in FIELDS)


def drawn_S(views: Views) -> NDArray[np.int64]:
    return views.rescaled.min(axis=1)


@pytest.mark.parametrize("images", [1, 3, 4, 7, 1000])
def test_each_epoch_shows_every_image_once(images: int) -> None:
    order = sampler(images).order(np.arange(3 * images)).reshape(3, images)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(images), (3, 1)))


def test_a_batch_may_straddle_epochs() -> None:
    views = sampler(50).views(45, 10)
    assert np.array_equal(views.image, np.concatenate([permutation(0, 0, 50)[45:], permutation(0, 1, 50)[:5]]))


@pytest.mark.parametrize("splits", [[20, 20, 20, 20], [1] * 80, [7, 33, 40], [80]])
def test_views_do_not_depend_on_how_they_are_requested(splits: list[int]) -> None:
    complete = sampler(50).views(13, 80)
    first = 0
    for count in splits:
        assert same(sampler(50).views(13 + first, count), complete[first : first + count])
        first += count


def test_large_ordinals_are_cheap_and_distinct() -> None:
    far = sampler(50).views(10**12, 5)
    assert not same(far, sampler(50).views(0, 5))
    assert same(far[2:], sampler(50).views(10**12 + 2, 3))


def test_draws_are_in_range() -> None:
    of = sampler(50)
    views = of.views(0, 5000)
    assert drawn_S(views).min() == 32
    assert drawn_S(views).max() == 64
    assert np.array_equal(views.size, of.sizes[views.image])
    assert np.array_equal(views.rescaled, rescaled_size(views.size, drawn_S(views)))
    assert (views.corner >= 0).all()
    assert (views.corner + 32 <= views.rescaled).all()
    assert (views.corner + 32 == views.rescaled).any()  # the last position is drawn, too
    assert views.shape == (32, 32)


def test_S_is_uniform_on_the_integers_of_its_range() -> None:
    counts = np.bincount(drawn_S(sampler(1000).views(0, 66_000)) - 32, minlength=33)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_corners_are_uniform_on_the_positions_that_fit() -> None:
    sizes = np.full((1000, 2), (40, 50))
    views = TrainingSampler(sizes, Data(S=40), crop=32, seed=0).views(0, 40_000)
    assert np.array_equal(views.rescaled, sizes[views.image])
    rows, columns = views.corner.T
    counts = np.bincount(rows * 19 + columns, minlength=9 * 19)  # jointly: 9 tops times 19 lefts
    assert len(counts) == 9 * 19
    assert stats.chisquare(counts).pvalue > 1e-4


def test_half_of_the_images_are_flipped_unless_flips_are_off() -> None:
    flips = sampler(1000).views(0, 40_000).flip
    assert stats.binomtest(int(flips.sum()), len(flips)).pvalue > 1e-4
    assert not sampler(flip=False).views(0, 1000).flip.any()


def test_colour_shifts_follow_the_components_of_the_paper() -> None:
    shift = sampler(1000).views(0, 40_000).shift
    components = colour_components(ColourShift())
    normals = shift @ np.linalg.inv(components)
    for axis in range(3):
        assert stats.kstest(normals[:, axis], "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(normals.T) - np.eye(3)).max() < 0.03
    assert np.allclose(np.cov(shift.T), components.T @ components, rtol=0.05)
    assert np.isclose(np.linalg.norm(components[0]), 0.1 * 121.780, rtol=1e-3)  # sigma times the first root eigenvalue
    assert not sampler(colour_shift=ColourShift(mode="off")).views(0, 100).shift.any()


def test_lambda_mode_follows_krizhevskys_text() -> None:
    sqrt, by_lambda = (np.linalg.norm(colour_components(ColourShift(mode=m)), axis=1) for m in ("sqrt", "lambda"))
    assert np.allclose(by_lambda, 0.1 * 255 * (sqrt / 0.1 / 255) ** 2, rtol=1e-3)


@pytest.mark.parametrize("other", ["seed", "epoch"])
def test_seeds_and_epochs_are_independent(other: str) -> None:
    """Draws and orders for two seeds, or for two epochs, are uncorrelated."""
    n = 20_000
    first = sampler(n).views(0, n)
    second = sampler(n, seed=1).views(0, n) if other == "seed" else sampler(n).views(n, n)
    assert not np.array_equal(first.image, second.image)
    left, right = np.argsort(first.image), np.argsort(second.image)
    limit = 4.5 / np.sqrt(n)  # 4.5 standard errors of a correlation
    assert abs(np.corrcoef(left, right)[0, 1]) < limit
    columns = [np.column_stack([drawn_S(v), v.flip, v.shift])[rows] for v, rows in ((first, left), (second, right))]
    across = np.corrcoef(np.concatenate(columns, axis=1).T)[:5, 5:]
    assert np.abs(across).max() < limit


def test_orders_of_few_images_are_uniform() -> None:
    orders = [tuple(permutation(seed, epoch, 4)) for seed in range(60) for epoch in range(40)]
    assert len(set(orders)) == 24
    assert stats.chisquare([orders.count(order) for order in set(orders)]).pvalue > 1e-4


def test_dropout_masks_of_rows_are_rows_of_the_batchs_masks() -> None:
    units = (64, 37)
    complete = dropout_masks(3, 17, 24, slice(0, 24), units, 0.5)
    for rows in (slice(0, 8), slice(8, 24), slice(23, 24), slice(None)):
        for part, all_rows in zip(dropout_masks(3, 17, 24, rows, units, 0.5), complete, strict=True):
            assert np.array_equal(part, all_rows[rows])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_dropout_has_its_rate_and_differs_between_steps(rate: float) -> None:
    first, second = (dropout_masks(0, step, 64, slice(0, 64), (4096, 4096), rate) for step in (0, 1))
    retained = np.concatenate(first)
    sigma = np.sqrt(rate * (1 - rate) / retained.size)
    assert abs(1 - rate - retained.mean()) <= 5 * sigma
    if rate:
        assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.01
        assert abs(np.corrcoef(first[0].ravel(), second[0].ravel())[0, 1]) < 0.01


def test_the_stream_is_pinned() -> None:
    """Pinned values must never change: a run resumed by a later version must see the same images."""
    sizes = np.array([[400, 500], [333, 500], [500, 375], [256, 256], [1200, 600]])
    views = TrainingSampler(sizes, Data(S=(256, 512)), crop=224, seed=2014).views(3, 4)
    assert views.image.tolist() == [0, 2, 4, 3]
    assert views.rescaled.tolist() == [[488, 610], [525, 394], [586, 293], [318, 318]]
    assert views.corner.tolist() == [[175, 377], [35, 151], [335, 41], [40, 13]]
    assert views.flip.tolist() == [False, True, True, True]
    assert np.allclose(
        views.shift,
        [
            [2.3678321, 2.8107438, 6.3253279],
            [5.4228868, 3.7636046, 4.3083224],
            [1.0047773, -1.4837801, -4.1409411],
            [-15.233542, -10.777689, -10.689856],
        ],
        rtol=1e-6,
    )
    assert permutation(2014, 5, 10).tolist() == [6, 7, 3, 9, 0, 8, 2, 5, 1, 4]
    masks = dropout_masks(2014, 9, 4, slice(1, 3), (12, 20), 0.5)
    assert [np.packbits(mask).tolist() for mask in masks] == [[167, 76, 215], [120, 54, 40, 149, 51]]
