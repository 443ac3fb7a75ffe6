"""Methods of applying a net to an image (Section 3.2), and the quick centre-crop error for validation in training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.config.settings import Evaluation
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch
from vggrepro.data.views import Ints, Views, centre, region, region_shape, rescaled_size, uncropped
from vggrepro.evaluation.errors import ErrorRate, true_class_rank
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.models.dense import class_scores, feature_map, score_map
from vggrepro.models.vgg import VGG
from vggrepro.paper import value
from vggrepro.progress import progress
from vggrepro.ranks.collectives import sum_over_ranks


def images_at_once(testing: Evaluation) -> int:
    """Returns the number of images of crop x crop px in a forward pass, which may also hold their mirror images."""
    return testing.batch // _views(testing)


def _views(testing: Evaluation) -> int:
    """Returns the number of views per image or crop."""
    return 2 if testing.flip else 1


def _pixels(net: VGG, testing: Evaluation) -> int:
    """Returns the limit on the pixels in a forward pass."""
    return testing.batch * net.architecture.crop**2


def dense(net: VGG, images_NCHW: Tensor, testing: Evaluation, *, ceil: bool = False) -> Tensor:
    """Computes the softmax of the spatially averaged class scores.

    Args:
        net: A net in eval mode.
        images_NCHW: Uncropped images, shape (N, 3, H, W).
        testing: Test settings: mirror images and batch size.
        ceil: Whether pooling rounds up, as in Caffe.

    Returns:
        Posteriors, shape (N, classes), float32.
    """
    scores = class_scores(net, _mirrored(images_NCHW, testing), ceil=ceil, pixels_at_once=_pixels(net, testing))
    return _mean_of_mirrored(scores.float().softmax(dim=1), len(images_NCHW))


def dense_softmax_first(net: VGG, images_NCHW: Tensor, testing: Evaluation) -> Tensor:
    """Computes the spatial average of the posteriors at every position: the other reading of Section 3.2.

    Arguments and result are those of :func:`dense`.
    """
    scores = score_map(net, _mirrored(images_NCHW, testing), pixels_at_once=_pixels(net, testing))
    return _mean_of_mirrored(scores.float().softmax(dim=1).mean(dim=(2, 3)), len(images_NCHW))


def features(net: VGG, images_NCHW: Tensor, testing: Evaluation) -> Tensor:
    """Computes spatially averaged activations of the last hidden layer, shape (N, units) (Appendix B)."""
    maps = feature_map(net, _mirrored(images_NCHW, testing), pixels_at_once=_pixels(net, testing))
    return _mean_of_mirrored(maps.float().mean(dim=(2, 3)), len(images_NCHW))


def centre_crop(net: VGG, images_NCHW: Tensor, testing: Evaluation) -> Tensor:
    """Computes the posteriors of the centre crop, as in most published figures; never mirrored. See :func:`dense`."""
    crop = net.architecture.crop
    top, left = ((side - crop) // 2 for side in images_NCHW.shape[-2:])
    return net(images_NCHW[:, :, top : top + crop, left : left + crop]).float().softmax(dim=1)


def multicrop(net: VGG, images_NCHW: Tensor, testing: Evaluation) -> Tensor:
    """Computes the mean posterior of a 5 x 5 grid of crops, borders included, and their mirrors. See :func:`dense`."""
    crop, n = net.architecture.crop, len(images_NCHW)
    rows, columns = (grid(side, crop) for side in images_NCHW.shape[-2:])
    corners = [(top, left) for top in rows for left in columns]
    at_once = max(1, testing.batch // (n * _views(testing)))
    total = torch.zeros((), device=images_NCHW.device)
    for start in range(0, len(corners), at_once):
        crops = [
            images_NCHW[:, :, top : top + crop, left : left + crop] for top, left in corners[start : start + at_once]
        ]
        posteriors = net(_mirrored(torch.cat(crops), testing)).float().softmax(dim=1)
        total = total + posteriors.unflatten(0, (-1, n)).sum(dim=0)
    return total / (len(corners) * _views(testing))


METHODS: Mapping[str, Callable[[VGG, Tensor, Evaluation], Tensor]] = MappingProxyType(
    {
        "centre": centre_crop,
        "dense": dense,
        "dense-ceil": partial(dense, ceil=True),
        "dense-softmax-first": dense_softmax_first,
        "multicrop": multicrop,
    }
)
"""Maps uncropped images of one shape (N, 3, H, W) to posteriors (N, classes), float32."""


def grid(side: int, crop: int) -> list[int]:
    """Returns the first pixels of the multi-crop grid's crops along a side; fractions are rounded, halves up."""
    last = value("multicrop_grid") - 1
    return [(2 * step * (side - crop) + last) // (2 * last) for step in range(last + 1)]


def _mirrored(images_NCHW: Tensor, testing: Evaluation) -> Tensor:
    """Appends the mirror images if the settings include them."""
    return torch.cat([images_NCHW, images_NCHW.flip(3)]) if testing.flip else images_NCHW


def _mean_of_mirrored(posteriors: Tensor, n: int) -> Tensor:
    return posteriors.unflatten(0, (-1, n)).mean(dim=0)


def uncropped_views(split: Split, Q: int, batch: int, crop: int) -> list[Views]:
    """Returns uncropped views of the full split, largest batches first.

    Images are grouped by rescaled shape, so nothing is padded.

    Args:
        split: Images to show.
        Q: Shorter side of the rescaled images, px.
        batch: Images of the crop's size in a batch; there are correspondingly fewer larger ones, but at least one.
        crop: Side of the net's crop, px.
    """
    rescaled = rescaled_size(split.size, Q)
    return _in_batches(rescaled, lambda rows: uncropped(rows, split.size[rows], rescaled[rows]), batch * crop**2)


def region_views(split: Split, boxes: NDArray[np.float64], Q: int, batch: int, crop: int) -> list[Views]:
    """Returns views of a box (n, 4) per image at shorter side Q, px, batched as by :func:`uncropped_views`."""
    edges, shape = region_shape(split.size, boxes, Q)

    def view(rows: Ints) -> Views:
        height, width = shape[rows[0]]
        return region(rows, split.size[rows], edges[rows], (int(height), int(width)))

    return _in_batches(shape, view, batch * crop**2)


def _in_batches(shape: Ints, view: Callable[[Ints], Views], pixels: int) -> list[Views]:
    """Returns the views of all rows in batches of equal shape (n, 2), at least one row and at most `pixels` each."""
    shapes, group = np.unique(shape, axis=0, return_inverse=True)
    batches = []
    for number, (height, width) in enumerate(shapes):
        images = np.flatnonzero(group.ravel() == number)
        at_once = max(1, pixels // int(height * width))
        batches += [view(images[start : start + at_once]) for start in range(0, len(images), at_once)]
    shown = np.concatenate([views.image for views in batches]) if batches else np.empty(0, np.int64)
    assert np.array_equal(np.sort(shown), np.arange(len(shape))), "every image must be shown exactly once"
    return sorted(batches, key=len, reverse=True)


def centre_views(split: Split, Q: int, batch: int, crop: int) -> list[Views]:
    """Returns views of the centre crops of the full split, rescaled to shorter side Q, px."""
    rows = np.arange(len(split))
    views = centre(rows, split.size, Q, crop)
    return [views[start : start + batch] for start in range(0, len(split), batch)]


def centre_sums(
    net: VGG, shown: SplitPass, Q: int, batch: int, count: Callable[[Batch, Tensor], Sequence[float]]
) -> list[float]:
    """Sums counts over the centre crops of a split and over all ranks; for validation during training.

    `count` maps a batch and the net's outputs (N, units) to two counts and the number of images. Crops are from images
    rescaled to shorter side Q, px. The mode of the net is restored.

    Raises:
        Interrupted: on every rank, if one is asked to stop.
    """
    was_training = net.training
    net.eval()
    views, sums = centre_views(shown.split, Q, batch, net.architecture.crop), torch.zeros(3, dtype=torch.float64)
    topology, done = shown.watch.topology, 0
    images = sum(map(len, views[topology.rank :: topology.world]))
    with progress("validation", images, shown=topology.is_first, in_lines=False) as update:
        for crops, outputs in shown.outputs(lambda crops: net(crops.images).float(), views, "validation"):
            sums += torch.tensor(count(crops, outputs), dtype=torch.float64)
            done += len(crops.views)
            update(done, "")
    net.train(was_training)
    *counts, n = sum_over_ranks(sums).tolist()
    assert n == len(shown.split), f"validation counted {n} of {len(shown.split)} images"
    return counts


def centre_error(net: VGG, shown: SplitPass, Q: int, batch: int) -> dict[int, ErrorRate]:
    """Returns top-1 and top-5 error by k, centre crop at shorter side Q, over all ranks; for validation in training.

    Raises:
        Interrupted: on every rank, if one is asked to stop.
    """

    def count(crops: Batch, scores: Tensor) -> Sequence[float]:
        rank = true_class_rank(scores.cpu().numpy(), shown.split.label[crops.views.image])
        return (rank >= 1).sum(), (rank >= 5).sum(), len(rank)

    wrong = centre_sums(net, shown, Q, batch, count)
    return {k: ErrorRate(int(number), len(shown.split)) for k, number in zip((1, 5), wrong, strict=True)}
