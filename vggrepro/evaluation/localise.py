"""A net that predicts boxes, applied to images: the centre crop and the dense test of Appendix A."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.config.settings import Precision
from vggrepro.data.boxes.box_set import Boxes, BoxSet
from vggrepro.data.images.index import Index, Split
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Ints, Views
from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import CENTRE, DENSE, Places, PlacesKey
from vggrepro.evaluation.boxes import Found, Truth, error_of
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.measure import NetAnswers
from vggrepro.evaluation.methods import centre_outputs, centre_views, whole_views
from vggrepro.evaluation.run_split import Computation, store_over_split
from vggrepro.models.boxes import decode, of_classes
from vggrepro.models.dense import score_map
from vggrepro.models.precision import set_arithmetic
from vggrepro.models.vgg import VGG
from vggrepro.ranks.collectives import from_first_rank, sum_over_ranks
from vggrepro.ranks.watch import Watch


@dataclass(frozen=True)
class Annotated:
    """The images of one split that have boxes, and these: what localisation trains and is tested on."""

    split: Split
    boxes: Boxes

    @property
    def truth(self) -> Truth:
        """What is to be found in them."""
        return Truth(self.split.label, self.split.size, self.boxes)


def annotated(index: Index, boxes: BoxSet, name: str) -> Annotated:
    """The images of a split that have boxes, in its order. Raises UserError where none has."""
    found = boxes.split(name)
    rows = np.flatnonzero(found.has)
    if not len(rows):
        raise UserError(
            f"none of the {'training' if name == 'train' else 'validation'} images of {index.source} has a box in "
            f"{', '.join(boxes.sources)}; name their annotations, too: `vggrepro boxes`"
        )
    return Annotated(index.split(name).take(rows), found.take(rows))


@torch.inference_mode()
def centre_boxes(outputs: Tensor, batch: Batch) -> NDArray[np.float64]:
    """(N, 1, 4) the box of the true class, of a net's outputs (N, units) for crops; in px of the image."""
    edges = decode(of_classes(outputs.float(), batch.labels[:, None]), batch.views.shape[0])
    return batch.views.boxes_in_image(edges.double().cpu().numpy())


@torch.inference_mode()
def boxes_at_places(net: VGG, scorer: VGG, batch: Batch, classes: Ints, pixels_at_once: int) -> NDArray[np.float64]:
    """(N, places, K, 5) of whole images: at each place a box for each of K classes (N, K), and the class's posterior.

    Boxes are in px of the image; posteriors are the scorer's, a net of the same geometry that predicts classes.
    """
    crop, stride = net.architecture.crop, net.architecture.stride
    asked = torch.from_numpy(classes).to(batch.images.device)
    maps = score_map(net, batch.images, pixels_at_once=pixels_at_once).float()
    posteriors = score_map(scorer, batch.images, pixels_at_once=pixels_at_once).float().softmax(dim=1)
    edges = decode(of_classes(maps, asked).permute(0, 3, 4, 1, 2), crop)  # (N, h, w, K, 4)
    height, width = edges.shape[1:3]
    top, left = np.meshgrid(stride * np.arange(height), stride * np.arange(width), indexing="ij")
    window = np.stack([left, top, left, top], axis=-1)[None, :, :, None]
    boxes = batch.views.boxes_in_image(edges.double().cpu().numpy() + window)
    rows = torch.arange(len(classes), device=asked.device)[:, None]
    confidence = posteriors[rows, asked].permute(0, 2, 3, 1).cpu().numpy()  # (N, h, w, K)
    return np.concatenate([boxes, confidence[..., None]], axis=-1).reshape(len(classes), -1, classes.shape[1], 5)


def centre_box_error(
    net: VGG, loader: Loader, images: Annotated, Q: int, *, batch: int, watch: Watch, precision: Precision
) -> tuple[ErrorRate, float]:
    """(error, mean intersection over union) of the true class's box, centre crop at shorter side Q, over all ranks.

    What training watches. Raises Interrupted on every rank when one was asked to stop meanwhile.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for shown, outputs in centre_outputs(net, loader, images.split, Q, batch=batch, watch=watch, precision=precision):
        predicted = centre_boxes(outputs, shown)
        rows = shown.views.image
        found = Found(predicted.astype(np.float32), images.split.label[rows][:, None])
        truth = Truth(images.split.label[rows], images.split.size[rows], images.boxes.take(rows))
        rate = error_of(found.right_given_class(truth))
        sums += torch.tensor([rate.wrong, truth.best_iou(predicted).sum(), rate.n], dtype=torch.float64)
    wrong, overlap, n = sum_over_ranks(sums).tolist()
    assert n == len(images.split), f"validation counted {n} of {len(images.split)} images"
    return ErrorRate(int(wrong), int(n)), overlap / n


@dataclass(frozen=True)
class BoxPredictor:
    """One net's tests on the images of a validation split that have boxes, on one of some ranks."""

    answers: NetAnswers
    images: Annotated
    loader: Loader
    watch: Watch
    nets: Callable[[], tuple[VGG, VGG]]
    """The net that predicts boxes and the one that scores places: made when they are needed."""

    def centre(self, Q: int) -> None:
        """Stores the true class's box of every centre crop. Raises UserError and Interrupted."""
        key, labels = self.answers.centre_boxes(Q), self.images.split.label
        if from_first_rank(key.exists(self.answers.run)):
            return
        net, _ = self._made()
        computation = Computation(
            key,
            lambda batch: centre_boxes(net(batch.images), batch),
            lambda _, boxes: Found(boxes.reshape(-1, 1, 4), labels[:, None]),
        )
        self._store(computation, centre_views, net, f"{CENTRE} at Q={Q}", Q)

    def dense(self, key: PlacesKey, guesses: Ints) -> None:
        """Stores the boxes of guessed classes (images, 5), and of the true one, at every place. Raises as centre."""
        if from_first_rank(key.exists(self.answers.run)):
            return
        net, scorer = self._made()
        classes = np.concatenate([guesses, self.images.split.label[:, None]], axis=1)
        pixels = self.answers.testing.batch * net.architecture.crop**2
        computation = Computation(
            key,
            lambda batch: boxes_at_places(net, scorer, batch, classes[batch.views.image], pixels),
            lambda start, values: Places(start, values, classes),
        )
        self._store(computation, whole_views, net, f"{DENSE} at Q={key.Q}", key.Q)

    def _made(self) -> tuple[VGG, VGG]:
        set_arithmetic(self.loader.device, self.answers.testing.precision)
        net, scorer = self.nets()
        return net.eval(), scorer.eval()

    def _store(self, box: Computation, views_of: Callable[..., list[Views]], net: VGG, doing: str, Q: int) -> None:
        testing, split = self.answers.testing, self.images.split
        views = views_of(split, Q, testing.batch, net.architecture.crop)
        run, precision = self.answers.run, testing.precision
        store_over_split([box], run, self.loader, split, views, self.watch, precision, f"boxes, {doing}")
