"""How a net is applied to a validation set (Section 3.2), on any number of ranks, every picture exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.data.index import Split
from vggrepro.data.loader import Loader
from vggrepro.data.views import Views, centre, rescaled_size, whole
from vggrepro.distributed import Topology, gather_to_first, sum_over_ranks
from vggrepro.evaluation.errors import ErrorRate, true_class_rank
from vggrepro.models.dense import class_scores
from vggrepro.models.vgg import VGG
from vggrepro.progress import Update


def dense_views(split: Split, Q: int, batch: int, crop: int) -> list[Views]:
    """The whole split at shorter side Q as uncropped views, longest batches first.

    Pictures are grouped by rescaled shape, so nothing is padded. A batch holds `batch` pictures of the crop's size, and
    correspondingly fewer larger ones, which bounds memory.
    """
    rescaled = rescaled_size(split.size, Q)
    shapes, group = np.unique(rescaled, axis=0, return_inverse=True)
    batches = []
    for number, (height, width) in enumerate(shapes):
        pictures = np.flatnonzero(group.ravel() == number)
        at_once = max(1, batch * crop**2 // int(height * width))
        for start in range(0, len(pictures), at_once):
            rows = pictures[start : start + at_once]
            batches.append(whole(rows, split.size[rows], rescaled[rows]))
    return sorted(batches, key=len, reverse=True)


def centre_views(split: Split, Q: int, batch: int, crop: int) -> list[Views]:
    """The whole split as centre crops of the pictures rescaled to shorter side Q."""
    rows = np.arange(len(split))
    views = centre(rows, split.size, Q, crop)
    return [views[start : start + batch] for start in range(0, len(split), batch)]


@torch.inference_mode()
def dense_posteriors(
    net: VGG, loader: Loader, split: Split, Q: int, *, batch: int, flip: bool, here: Topology, update: Update
) -> NDArray[np.float32] | None:
    """(n, classes) dense posteriors on rank 0, None on the others (Section 3.2).

    Softmax of the spatially averaged class scores, averaged over the picture and its mirror image. Batches do not
    depend on the number of ranks, so neither do the posteriors.
    """
    net.eval()

    def posteriors(images: torch.Tensor) -> torch.Tensor:
        probabilities = class_scores(net, images).float().softmax(dim=1)
        if flip:
            mirrored = class_scores(net, images.flip(3)).float().softmax(dim=1)
            probabilities = (probabilities + mirrored) / 2
        return probabilities

    batches = dense_views(split, Q, batch, net.architecture.crop)
    pictures, values = [np.empty(0, np.int64)], [np.empty((0, net.architecture.classes), np.float32)]
    for views, scores in _scored(loader, split, batches, here, posteriors, update):
        pictures.append(views.picture)
        values.append(scores.cpu().numpy())
    parts = gather_to_first((np.concatenate(pictures), np.concatenate(values)))
    if parts is None:
        return None
    rows = np.concatenate([rows for rows, _ in parts])
    assert np.array_equal(np.sort(rows), np.arange(len(split))), "every picture must be scored exactly once"
    whole_split = np.empty((len(split), net.architecture.classes), np.float32)
    whole_split[rows] = np.concatenate([scores for _, scores in parts])
    return whole_split


@torch.inference_mode()
def centre_error(net: VGG, loader: Loader, split: Split, Q: int, *, batch: int, here: Topology) -> dict[int, ErrorRate]:
    """Top-1 and top-5 error of the centre crop at shorter side Q, over all ranks: the measure training watches."""
    was_training = net.training
    net.eval()
    counts = torch.zeros(3, dtype=torch.int64)
    batches = centre_views(split, Q, batch, net.architecture.crop)
    for views, scores in _scored(loader, split, batches, here, net, lambda done, note: None):
        rank = true_class_rank(scores.float().cpu().numpy(), split.label[views.picture])
        counts += torch.tensor([(rank >= 1).sum(), (rank >= 5).sum(), len(rank)])
    net.train(was_training)
    wrong1, wrong5, n = sum_over_ranks(counts.to(loader.device)).tolist()
    assert n == len(split), f"validation counted {n} of {len(split)} pictures"
    return {1: ErrorRate(wrong1, n), 5: ErrorRate(wrong5, n)}


def _scored(
    loader: Loader,
    split: Split,
    batches: list[Views],
    here: Topology,
    score: Callable[[torch.Tensor], torch.Tensor],
    update: Update,
) -> Iterator[tuple[Views, torch.Tensor]]:
    """This rank's batches with their scores."""
    own = batches[here.rank :: here.world]
    done = 0
    for batch in loader.batches(split, own):
        yield batch.views, score(batch.images)
        done += len(batch.views)
        update(done, "")
