"""When a predicted box is right, and what that makes of the errors of Appendix A. No torch: arithmetic on arrays.

Boxes are left, top, right, bottom in px of the image as it is, by their edges.
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
    """Intersection over union of boxes (..., 4), which are broadcast; 0 where one of them has no area."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    either = area(first) + area(second) - shared
    return np.divide(shared, either, out=np.zeros(shared.shape), where=shared > 0)


def area(boxes: NDArray[Any]) -> NDArray[Any]:
    """(...,) px of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)


@dataclass(frozen=True)
class Truth:
    """What is to be found in n images: one class each, and its objects' boxes."""

    labels: Ints
    """(n,)"""
    size: Ints
    """(n, 2) height and width, px."""
    boxes: Boxes

    def best_iou(self, predicted: NDArray[Any]) -> NDArray[np.float64]:
        """(n, K) of K boxes (n, K, 4) for each image, each with the object that it overlaps most."""
        image = np.repeat(np.arange(len(self.labels)), self.boxes.counts)
        overlap = iou(predicted[image], self.boxes.box[:, None])
        best = np.zeros(predicted.shape[:2])
        np.maximum.at(best, image, overlap)
        return best

    def hits(self, predicted: NDArray[Any]) -> NDArray[np.bool_]:
        """(n, K) which of K boxes (n, K, 4) for each image are right: they overlap an object by more than half."""
        return self.best_iou(predicted) > value("iou")

    def full_image_boxes(self) -> NDArray[np.float64]:
        """(n, 1, 4) the box that is the whole image: what knows nothing, and is right where the object is large."""
        height, width = self.size.T
        zero = np.zeros_like(height)
        return np.stack([zero, zero, width, height], axis=1)[:, None].astype(np.float64)

    def random_boxes(self) -> NDArray[np.float64]:
        """(n, 1, 4) a box between two points drawn at random in each image: what knows nothing at all."""
        points = np.sort(np.random.default_rng(0).random((len(self.labels), 2, 2)), axis=1)
        return (points * self.size[:, None, ::-1]).reshape(-1, 1, 4)


@dataclass(frozen=True)
class Found:
    """K boxes for each of n images: one for each of the classes that were asked for."""

    boxes: NDArray[np.float32]
    """(n, K, 4)"""
    classes: Ints
    """(n, K) class numbers: the guesses, best first, and in the last place the true class."""

    def right_given_class(self, truth: Truth) -> NDArray[np.bool_]:
        """(n,) whether the box of the true class is right: Table 8's measure, which no guess of a class can spoil."""
        return truth.hits(self.boxes[:, -1:])[:, 0]

    def right(self, truth: Truth) -> NDArray[np.bool_]:
        """(n,) whether among the first five guesses there is the true class with a right box: ILSVRC's measure."""
        guessed, boxes = self.classes[:, :-1][:, :GUESSES], self.boxes[:, :-1][:, :GUESSES]
        return ((guessed == truth.labels[:, None]) & truth.hits(boxes)).any(axis=1)


@dataclass(frozen=True)
class Guesses:
    """Five classes that a classification system names for each of n images, for which boxes are then predicted."""

    classes: Ints
    """(n, 5) class numbers, best first; fewer where there are fewer classes."""
    key: str
    """Equal for guesses of the same posteriors."""
    source: str
    """The nets with their protocol, for a reader."""
    top5: float
    """Top-5 classification error, per cent: below it no localisation error can fall."""


def guesses_key(made_of: Sequence[tuple[str, str, tuple[int, ...]]]) -> str:
    """A hash (hex) of the posteriors that guesses come from: each net's weights, method and Q."""
    return hashlib.sha256(json.dumps(sorted(made_of)).encode()).hexdigest()


def error_of(right: NDArray[np.bool_]) -> ErrorRate:
    """The error rate of images that are right or not."""
    return ErrorRate(int((~right).sum()), len(right))
