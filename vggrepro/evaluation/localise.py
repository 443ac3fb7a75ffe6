"""Application of localisation nets to images: the centre crop and the dense test of Appendix A."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.data.boxes.box_set import Boxes, BoxSet
from vggrepro.data.images.index import Index, Split
from vggrepro.data.loading.loader import Batch
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.boxes import Found, Truth, error_of
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.methods import centre_sums
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.models.boxes import decode, of_classes
from vggrepro.models.dense import score_map
from vggrepro.models.vgg import VGG


@dataclass(frozen=True)
class Annotated:
    """Images of a split that have boxes, with their boxes: the data of localisation."""

    split: Split
    boxes: Boxes
    rows: Ints
    """Rows of the images in the full split, shape (n,)."""

    @property
    def truth(self) -> Truth:
        """Ground truth of the images."""
        return Truth(self.split.label, self.split.size, self.boxes)


def annotated(index: Index, boxes: BoxSet, name: str) -> Annotated:
    """Returns the images of a split that have boxes, in its order. Raises UserError if there are none."""
    found = boxes.split(name)
    rows = np.flatnonzero(found.has)
    if not len(rows):
        raise UserError(
            f"none of the {'training' if name == 'train' else 'validation'} images of {index.source} has a box in "
            f"{', '.join(boxes.sources)}; add their annotations with `vggrepro boxes`"
        )
    return Annotated(index.split(name).take(rows), found.take(rows), rows)


@torch.inference_mode()
def centre_boxes(outputs: Tensor, batch: Batch) -> NDArray[np.float64]:
    """Returns the boxes of the true classes in px of the image, shape (N, 1, 4), from outputs (N, units) for crops."""
    edges = decode(of_classes(outputs.float(), batch.labels[:, None]), batch.views.shape[0])
    return batch.views.boxes_in_image(edges.double().cpu().numpy())


@torch.inference_mode()
def boxes_at_places(net: VGG, scorer: VGG, batch: Batch, classes: Ints, pixels_at_once: int) -> NDArray[np.float64]:
    """Predicts boxes and posteriors of classes (N, K) at every position of N full images, shape (N, positions, K, 5).

    Boxes are in px of the image. The posteriors are those of `scorer`, a classification net of the same geometry.
    """
    crop, stride = net.architecture.crop, net.architecture.stride
    class_numbers = torch.from_numpy(classes).to(batch.images.device)
    maps = score_map(net, batch.images, pixels_at_once=pixels_at_once).float()
    posteriors = score_map(scorer, batch.images, pixels_at_once=pixels_at_once).float().softmax(dim=1)
    edges = decode(of_classes(maps, class_numbers).permute(0, 3, 4, 1, 2), crop)  # (N, h, w, K, 4)
    height, width = edges.shape[1:3]
    top, left = np.meshgrid(stride * np.arange(height), stride * np.arange(width), indexing="ij")
    window = np.stack([left, top, left, top], axis=-1)[None, :, :, None]
    boxes = batch.views.boxes_in_image(edges.double().cpu().numpy() + window)
    rows = torch.arange(len(classes), device=class_numbers.device)[:, None]
    confidence = posteriors[rows, class_numbers].permute(0, 2, 3, 1).cpu().numpy()  # (N, h, w, K)
    return np.concatenate([boxes, confidence[..., None]], axis=-1).reshape(len(classes), -1, classes.shape[1], 5)


def centre_box_error(net: VGG, shown: SplitPass, boxes: Boxes, Q: int, batch: int) -> tuple[ErrorRate, float]:
    """Returns (error, mean IoU) of the true class's box, centre crop at shorter side Q, over all ranks.

    Training monitors this error. Raises Interrupted on every rank if one is asked to stop.
    """
    n = len(shown.split)

    def count(crops: Batch, outputs: Tensor) -> Sequence[float]:
        predicted, rows = centre_boxes(outputs, crops), crops.views.image
        split = shown.split.take(rows)
        truth = Truth(split.label, split.size, boxes.take(rows))
        rate = error_of(Found(predicted.astype(np.float32), split.label[:, None]).right_given_class(truth))
        return rate.wrong, truth.best_iou(predicted).sum(), rate.n

    wrong, overlap = centre_sums(net, shown, Q, batch, count)
    return ErrorRate(int(wrong), n), overlap / n
