"""Greedy merging of boxes that neighbouring positions predict (Appendix A, after OverFeat, Sermanet et al. 2014).

The two boxes that match best are replaced by their mean until no two match well enough. The score of a merged box is
the sum of the class confidences of its members, and the box with the highest score is the prediction.

OverFeat's match is "a sum of the distance between centers of the two bounding boxes and the intersection area".
Neither paper states the weights or the stopping criterion. We use the dimensionless distance

    distance of the centres / mean of the two boxes' square roots of area  +  1 - intersection over union

which is 0 for equal boxes and 1.17 for two boxes of equal size that overlap by half. Merging stops at
`localisation.merge_below`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.boxes import area, iou

_MAX_DISTANCES = 2**19
"""Limit on the distances in an array: more do not fit a core's cache."""


def distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the distance of boxes (..., 4), which are broadcast; see the module."""
    offset = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    side = (np.sqrt(area(first)) + np.sqrt(area(second))) / 2
    relative = np.hypot(offset[..., 0], offset[..., 1]) / np.maximum(side, 1e-9)
    return relative + 1 - iou(first, second)


def merge(boxes: NDArray[Any], scores: NDArray[Any], below: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merges each set of boxes (sets, B, 4) with scores (sets, B) until no distance is smaller than `below`.

    Returns the best box of each set, shape (sets, 4), and its score, shape (sets,). Ties go to the first pair or box.
    """
    sets, n = scores.shape
    best, top = np.empty((sets, 4)), np.empty(sets)
    chunk = max(1, _MAX_DISTANCES // n**2)

    def merge_chunk(start: int) -> None:
        rows = slice(start, start + chunk)
        merged, summed = _merge(boxes[rows].astype(np.float64), scores[rows].astype(np.float64), below)
        winner = summed.argmax(axis=1)
        each = np.arange(len(winner))
        best[rows], top[rows] = merged[each, winner], summed[each, winner]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(merge_chunk, range(0, sets, chunk)):
            pass
    return best, top


def _merge(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], below: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merges in place and returns boxes and scores; the score of a box merged into another is -inf.

    The nearest box of each box is cached, so a merge only updates the few boxes whose nearest box is removed.
    """
    n = scores.shape[1]
    distances = distance(boxes[:, :, None], boxes[:, None])
    distances[:, np.arange(n), np.arange(n)] = np.inf
    nearest, nearest_distance = distances.argmin(axis=2), distances.min(axis=2)
    members = np.ones_like(scores)
    live = np.arange(len(boxes))  # sets in which two may still be merged
    while True:
        keeper = nearest_distance[live].argmin(axis=1)
        close = nearest_distance[live, keeper] < below
        live, keeper = live[close], keeper[close]
        if not len(live):
            return boxes, scores
        removed = nearest[live, keeper]
        weight, other = members[live, keeper, None], members[live, removed, None]
        boxes[live, keeper] = (boxes[live, keeper] * weight + boxes[live, removed] * other) / (weight + other)
        members[live, keeper] += members[live, removed]
        scores[live, keeper] += scores[live, removed]
        scores[live, removed] = -np.inf
        changed = distance(boxes[live, keeper][:, None], boxes[live])
        changed[scores[live] == -np.inf] = np.inf
        changed[np.arange(len(live)), keeper] = np.inf
        distances[live, removed] = distances[live, :, removed] = np.inf
        distances[live, keeper] = distances[live, :, keeper] = changed
        # ties go to the first box, as in argmin
        current, keepers = nearest[live], keeper[:, None]
        lost = (current == keepers) | (current == removed[:, None])
        nearer = (changed < nearest_distance[live]) | ((changed == nearest_distance[live]) & (keepers < current))
        rows, columns = np.nonzero(~lost & nearer)
        nearest_distance[live[rows], columns], nearest[live[rows], columns] = changed[rows, columns], keeper[rows]
        lost[np.arange(len(live)), keeper] = lost[np.arange(len(live)), removed] = True
        rows, columns = np.nonzero(lost)
        left = distances[live[rows], columns]
        nearest[live[rows], columns], nearest_distance[live[rows], columns] = left.argmin(axis=1), left.min(axis=1)
