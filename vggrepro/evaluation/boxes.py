"""Correctness of predicted boxes, and the errors of Appendix A. No torch: arithmetic on arrays.

Boxes are the edges left, top, right, bottom in px of the original image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.boxes.box_set import Boxes
from vggrepro.data.views import Ints
from vggrepro.evaluation.errors import GUESSES, ErrorRate
from vggrepro.paper import value


def iou(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the intersection over union of boxes (..., 4), which are broadcast; 0 if one of them has no area."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    either = area(first) + area(second) - shared
    return np.divide(shared, either, out=np.zeros(shared.shape), where=shared > 0)


def area(boxes: NDArray[Any]) -> NDArray[Any]:
    """Returns the area of boxes (..., 4) in px, shape (...,)."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)


@dataclass(frozen=True)
class Truth:
    """Ground truth of n images: a class each, and the boxes of its objects."""

    labels: Ints
    """Class numbers, shape (n,)."""
    size: Ints
    """Height and width in px, shape (n, 2)."""
    boxes: Boxes

    def best_iou(self, predicted: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the IoU of each box (n, K, 4) with the object that it overlaps most, shape (n, K)."""
        image = np.repeat(np.arange(len(self.labels)), self.boxes.counts)
        overlap = iou(predicted[image], self.boxes.box[:, None])
        best = np.zeros(predicted.shape[:2])
        np.maximum.at(best, image, overlap)
        return best

    def hits(self, predicted: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns which boxes (n, K, 4) are correct, i.e. overlap an object by more than half, shape (n, K)."""
        return self.best_iou(predicted) > value("iou")

    def full_image_boxes(self) -> NDArray[np.float64]:
        """Returns the full image as a box, shape (n, 1, 4): a baseline that is correct for large objects."""
        height, width = self.size.T
        zero = np.zeros_like(height)
        return np.stack([zero, zero, width, height], axis=1)[:, None].astype(np.float64)

    def random_boxes(self) -> NDArray[np.float64]:
        """Returns a box between two random points of each image, shape (n, 1, 4): a baseline without information."""
        points = np.sort(np.random.default_rng(0).random((len(self.labels), 2, 2)), axis=1)
        return (points * self.size[:, None, ::-1]).reshape(-1, 1, 4)


@dataclass(frozen=True)
class Found:
    """Predicted boxes of n images, one for each of K classes."""

    boxes: NDArray[np.float32]
    """Boxes, shape (n, K, 4)."""
    classes: Ints
    """Class numbers, shape (n, K): the guesses, best first, then the true class."""

    def right_given_class(self, truth: Truth) -> NDArray[np.bool_]:
        """Returns whether the box of the true class is correct, shape (n,): Table 8's measure."""
        return truth.hits(self.boxes[:, -1:])[:, 0]

    def right(self, truth: Truth) -> NDArray[np.bool_]:
        """Returns whether one of five guesses has the true class and a correct box, shape (n,): ILSVRC's measure."""
        guessed, boxes = self.classes[:, :-1][:, :GUESSES], self.boxes[:, :-1][:, :GUESSES]
        return ((guessed == truth.labels[:, None]) & truth.hits(boxes)).any(axis=1)


@dataclass(frozen=True)
class Guesses:
    """Class guesses of a classification system for n images, for which boxes are then predicted."""

    classes: Ints
    """Class numbers, best first, shape (n, 5); fewer if there are fewer classes."""
    key: str
    """Equal for guesses from the same posteriors."""
    source: str
    """Description of the nets and their protocol."""
    top5: float
    """Top-5 classification error, per cent: a lower bound of the localisation error."""


def guesses_key(made_of: Sequence[tuple[str, str, tuple[int, ...]]]) -> str:
    """Returns a hash (hex) of the posteriors that guesses come from: weights, method and Q of each net."""
    return hashlib.sha256(json.dumps(sorted(made_of)).encode()).hexdigest()


def error_of(right: NDArray[np.bool_]) -> ErrorRate:
    """Returns the error rate of images that are right or not, shape (n,)."""
    return ErrorRate(int((~right).sum()), len(right))
