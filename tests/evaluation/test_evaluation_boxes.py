"""Boxes: overlap, merging and the rule of five guesses, by hand and against slow independent versions."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vggrepro.data.boxes.box_set import Boxes
from vggrepro.evaluation import box_store
from vggrepro.evaluation.box_store import Places, merge_places
from vggrepro.evaluation.boxes import Found, Truth, error_of, iou
from vggrepro.evaluation.merging import distance, merge

Box = tuple[float, float, float, float]


def slow_iou(a: Box, b: Box) -> float:
    """Counts the unit squares of boxes with integer edges."""
    cells = [
        {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))} for box in (a, b)
    ]
    either = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(either) if either else 0.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # edge to edge
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((0, 0, 10, 10), (5, 5, 5, 9), 0.0),  # no width
        ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),
    ],
)
def test_iou_by_hand(a: Box, b: Box, expected: float) -> None:
    assert float(iou(np.array(a, float), np.array(b, float))) == pytest.approx(expected)


def test_iou_against_counting() -> None:
    random = np.random.default_rng(0)
    corners = np.sort(random.integers(0, 12, (300, 2, 2, 2)), axis=2)  # (pair, box, low or high, axis)
    boxes = corners.reshape(300, 2, 4).astype(float)
    expected = [slow_iou(tuple(a), tuple(b)) for a, b in boxes]
    np.testing.assert_allclose(iou(boxes[:, 0], boxes[:, 1]), expected)


def slow_merge(boxes: NDArray[Any], scores: NDArray[Any], below: float) -> tuple[list[float], float]:
    """Merges greedily with a list of clusters and recomputes everything at each step."""
    clusters = [[number] for number in range(len(boxes))]

    def mean(cluster: list[int]) -> NDArray[Any]:
        return np.mean([boxes[member] for member in cluster], axis=0)

    def badness(a: NDArray[Any], b: NDArray[Any]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
        shared = width * height
        union = sum(areas) - shared
        centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
        side = max((math.sqrt(areas[0]) + math.sqrt(areas[1])) / 2, 1e-9)
        return math.dist(*centres) / side + 1 - (shared / union if shared else 0.0)

    while True:
        pairs = [
            (badness(mean(clusters[i]), mean(clusters[j])), i, j) for i, j in combinations(range(len(clusters)), 2)
        ]
        worst, i, j = min(pairs, default=(math.inf, 0, 0))
        if worst >= below:
            break
        clusters[i] += clusters.pop(j)
    sums = [sum(scores[member] for member in cluster) for cluster in clusters]
    best = max(range(len(clusters)), key=sums.__getitem__)
    return list(mean(clusters[best])), sums[best]


def test_merging_by_hand() -> None:
    """Two boxes that nearly coincide outweigh a single one with a higher score, and merge to their mean."""
    boxes = np.array([[[0, 0, 10, 10], [50, 50, 60, 60], [1, 0, 11, 10]]], float)
    scores = np.array([[0.4, 0.7, 0.5]])
    best, score = merge(boxes, scores, below=0.5)
    np.testing.assert_allclose(best, [[0.5, 0, 10.5, 10]])
    np.testing.assert_allclose(score, [0.9])
    best, score = merge(boxes, scores, below=0.0)  # nothing is merged
    np.testing.assert_allclose(best, [[50, 50, 60, 60]])
    np.testing.assert_allclose(score, [0.7])
    best, score = merge(boxes, scores, below=1e9)  # everything is: the mean of all three, each counted once
    np.testing.assert_allclose(best, [boxes[0].mean(axis=0)])
    np.testing.assert_allclose(score, [1.6])


def test_the_distance_is_0_for_equal_boxes_and_has_no_unit() -> None:
    box = np.array([3.0, 4.0, 9.0, 12.0])
    assert distance(box, box) == pytest.approx(0)
    shifted = box + np.array([3, 0, 3, 0])  # by half the width
    assert distance(box, shifted) == pytest.approx(distance(7 * box, 7 * shifted))
    assert distance(np.array([0.0, 0, 10, 10]), np.array([5.0, 0, 15, 10])) == pytest.approx(0.5 + 1 - 1 / 3)


@pytest.mark.parametrize("below", [0.0, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_merging_against_the_slow_version(count: int, below: float) -> None:
    random = np.random.default_rng(count)
    corners = np.sort(random.random((40, count, 2, 2)) * 20, axis=2)
    boxes = corners.reshape(40, count, 4)
    boxes[0] = boxes[0, :1]  # all alike
    boxes[1, :, 2] = boxes[1, :, 0]  # without width
    scores = random.random((40, count))
    best, score = merge(boxes, scores, below)
    for row in range(40):
        expected, summed = slow_merge(boxes[row], scores[row], below)
        np.testing.assert_allclose(best[row], expected, err_msg=f"set {row}")
        np.testing.assert_allclose(score[row], summed)


def test_merging_leaves_its_input_alone() -> None:
    boxes = np.array([[[0, 0, 10, 10], [1, 0, 11, 10]]], float)
    scores = np.array([[0.4, 0.5]])
    original = boxes.copy(), scores.copy()
    merge(boxes, scores, below=1.0)
    np.testing.assert_array_equal(boxes, original[0])
    np.testing.assert_array_equal(scores, original[1])


@pytest.mark.parametrize("at_once", [1, 2, 1024])
def test_places_of_several_nets_and_images_of_several_shapes_are_pooled(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """The result is that of each image and class alone, for any number of positions and images at a time."""
    seen: list[int] = []

    def merging(boxes: NDArray[Any], scores: NDArray[Any], below: float) -> Any:
        seen.append(len(boxes) // 2)
        return merge(boxes, scores, below)

    monkeypatch.setattr(box_store, "merge", merging)
    monkeypatch.setattr(box_store, "_MAX_IMAGES", at_once)
    random = np.random.default_rng(3)
    classes = np.array([[1, 0], [0, 2], [2, 2], [1, 2]])

    def some(counts: list[int]) -> Places:
        low = random.random((sum(counts), 2, 2)) * 5
        boxes = np.concatenate([low, low + 1 + random.random((sum(counts), 2, 2)) * 5], axis=2)
        values = np.concatenate([boxes, random.random((sum(counts), 2, 1))], axis=2)
        return Places(np.cumsum([0, *counts]), values.astype(np.float32), classes)

    first, second = some([4, 1, 4, 2]), some([1, 3, 1, 3])
    found = merge_places([first, second], below=0.7)
    np.testing.assert_array_equal(found.classes, classes)
    assert max(seen) == min(at_once, 2)
    for image in range(4):
        rows = [places.values[places.start[image] : places.start[image + 1]] for places in (first, second)]
        together = np.concatenate(rows).astype(np.float64)
        for number in range(2):
            expected, _ = slow_merge(together[:, number, :4], together[:, number, 4], 0.7)
            np.testing.assert_allclose(found.boxes[image, number], expected, rtol=1e-6)


# Two objects in the first image, none in the second, one in each of the others.
TRUTH = Truth(
    labels=np.array([3, 1, 2, 0]),
    size=np.array([[20, 40], [20, 40], [10, 10], [30, 30]]),
    boxes=Boxes(
        np.array([0, 2, 2, 3, 4]), np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 30, 30]], float)
    ),
)


def test_the_best_of_several_objects_counts() -> None:
    predicted = np.array([[[21, 0, 31, 10]], [[0, 0, 40, 20]], [[0, 0, 10, 5]], [[0, 0, 30, 30]]], float)
    np.testing.assert_allclose(TRUTH.best_iou(predicted)[:, 0], [9 / 11, 0, 0.5, 1])
    # exactly a half is not above a half
    assert TRUTH.hits(predicted)[:, 0].tolist() == [True, False, False, True]


def test_a_guess_must_have_the_class_and_a_correct_box() -> None:
    right, wrong = [0.0, 0, 10, 10], [15.0, 15, 20, 20]
    full_image = [0.0, 0, 30, 30]
    classes = np.array([[3, 1, 2, 4, 5, 3], [0, 2, 3, 4, 1, 1], [1, 0, 3, 4, 5, 2], [5, 4, 3, 2, 0, 0]])
    boxes = np.array(
        [
            [right, wrong, wrong, wrong, wrong, wrong],  # first guess, right box
            [right] * 6,  # no object to be found
            [right] * 6,  # right boxes, the class not guessed
            [wrong, wrong, wrong, wrong, full_image, wrong],  # fifth guess, right box
        ],
        np.float32,
    )
    found = Found(boxes, classes)
    assert found.right(TRUTH).tolist() == [True, False, False, True]
    assert found.right_given_class(TRUTH).tolist() == [False, False, True, False]
    assert error_of(found.right(TRUTH)).percent == 50


def test_a_sixth_guess_does_not_count() -> None:
    classes = np.array([[0, 1, 2, 4, 5, 3, 3]] * 4)
    found = Found(np.zeros((4, 7, 4), np.float32) + TRUTH.boxes.box[0].astype(np.float32), classes)
    assert not found.right(TRUTH)[0]
    assert found.right_given_class(TRUTH)[0]


def test_yardsticks() -> None:
    assert TRUTH.full_image_boxes()[:, 0].tolist() == [[0, 0, 40, 20], [0, 0, 40, 20], [0, 0, 10, 10], [0, 0, 30, 30]]
    assert TRUTH.hits(TRUTH.full_image_boxes())[:, 0].tolist() == [False, False, True, True]
    random = TRUTH.random_boxes()[:, 0]
    assert (random[:, :2] <= random[:, 2:]).all()
    assert (random >= 0).all()
    assert (random[:, 2:] <= TRUTH.size[:, ::-1]).all()
    np.testing.assert_array_equal(random, TRUTH.random_boxes()[:, 0])  # the same at each reading
