"""The greedy merging of boxes that neighbouring places predict (Appendix A, after OverFeat, Sermanet et al. 2014).

The two boxes that match best are replaced by their mean, again and again, until no two match well enough. A merged box
has the class confidences of all its members added up, and the one with the highest sum is the prediction: the box that
many places agree upon, where the class is seen.

OverFeat's match is "a sum of the distance between centers of the two bounding boxes and the intersection area", and
neither paper says how they are weighed nor where it stops. Ours is a distance without a unit,

    distance of the centres / mean of the two boxes' square roots of area  +  1 - intersection over union

which is 0 for equal boxes; two boxes of one size that overlap by half have 1.17. `localisation.merge_below` is where it
stops.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.boxes import area, iou

_MOST_DISTANCES = 2**19
"""In one array: more of them do not fit a core's cache."""


def distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """How badly boxes (..., 4) match; they are broadcast."""
    apart = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    side = (np.sqrt(area(first)) + np.sqrt(area(second))) / 2
    relative = np.hypot(apart[..., 0], apart[..., 1]) / np.maximum(side, 1e-9)
    return relative + 1 - iou(first, second)


def merge(boxes: NDArray[Any], scores: NDArray[Any], below: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """((M, 4), (M,)) the best box of each of M sets of B boxes (M, B, 4) with scores (M, B), and its score.

    `below` is the distance at which merging stops. Of pairs that match alike, and of boxes with one score, the first is
    taken.
    """
    sets, n = scores.shape
    best, top = np.empty((sets, 4)), np.empty(sets)
    at_once = max(1, _MOST_DISTANCES // n**2)

    def some(start: int) -> None:
        rows = slice(start, start + at_once)
        merged, summed = _merge(boxes[rows].astype(np.float64), scores[rows].astype(np.float64), below)
        winner = summed.argmax(axis=1)
        each = np.arange(len(winner))
        best[rows], top[rows] = merged[each, winner], summed[each, winner]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(some, range(0, sets, at_once)):
            pass
    return best, top


def _merge(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], below: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes and scores after merging, in place; the score of a box that went into another is -inf.

    Each box knows the one nearest to it, so that a merge costs a look at the few boxes whose nearest is gone.
    """
    n = scores.shape[1]
    apart = distance(boxes[:, :, None], boxes[:, None])
    apart[:, np.arange(n), np.arange(n)] = np.inf
    nearest, least = apart.argmin(axis=2), apart.min(axis=2)
    members = np.ones_like(scores)
    live = np.arange(len(boxes))  # sets in which two may still be merged
    while True:
        kept = least[live].argmin(axis=1)
        close = least[live, kept] < below
        live, kept = live[close], kept[close]
        if not len(live):
            return boxes, scores
        gone = nearest[live, kept]
        weight, other = members[live, kept, None], members[live, gone, None]
        boxes[live, kept] = (boxes[live, kept] * weight + boxes[live, gone] * other) / (weight + other)
        members[live, kept] += members[live, gone]
        scores[live, kept] += scores[live, gone]
        scores[live, gone] = -np.inf
        changed = distance(boxes[live, kept][:, None], boxes[live])
        changed[scores[live] == -np.inf] = np.inf
        changed[np.arange(len(live)), kept] = np.inf
        apart[live, gone] = apart[live, :, gone] = np.inf
        apart[live, kept] = apart[live, :, kept] = changed
        # of boxes that are alike the first is the nearest, as argmin has it
        theirs, mine = nearest[live], kept[:, None]
        lost = (theirs == mine) | (theirs == gone[:, None])
        nearer = (changed < least[live]) | ((changed == least[live]) & (mine < theirs))
        rows, columns = np.nonzero(~lost & nearer)
        least[live[rows], columns], nearest[live[rows], columns] = changed[rows, columns], kept[rows]
        lost[np.arange(len(live)), kept] = lost[np.arange(len(live)), gone] = True
        rows, columns = np.nonzero(lost)
        left = apart[live[rows], columns]
        nearest[live[rows], columns], least[live[rows], columns] = left.argmin(axis=1), left.min(axis=1)
