"""What a stage is trained for: on which images, towards what, and which error is watched. Classes, or boxes."""

from dataclasses import dataclass
from typing import Any

from vggrepro.config.settings import Config
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.evaluation.localise import annotated, centre_box_error
from vggrepro.evaluation.methods import centre_error
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.models.vgg import VGG
from vggrepro.ranks.watch import Watch


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    error: float
    """Of the centre crop at Q = S, per cent: what the schedule and the best checkpoint go by."""
    record: dict[str, Any]
    """For `metrics.jsonl`."""
    text: str
    """For a person."""


class Task:
    """One stage's task, without any state of the training.

    The class of each image (Section 3.1); or with boxes the box of the largest object, on the images that have one
    (Appendix A). Which of several boxes a crop is trained on, and what becomes of crops that do not show it, the paper
    does not say: it is the largest, every crop shows its centre, and the part of it that lies beyond the crop is
    predicted as well.
    """

    def __init__(self, config: Config, index: Index, boxes: BoxSet | None) -> None:
        """Raises UserError where no image has a box."""
        self._config = config
        self._validation, self._validation_boxes = index.split("val"), None
        self.images, self.boxes = index.split("train"), None
        if boxes:
            training, validation = annotated(index, boxes, "train"), annotated(index, boxes, "val")
            self._validation, self._validation_boxes = validation.split, validation.boxes
            self.images, self.boxes = training.split, training.boxes.largest()
        crop, seed = config.model.crop, config.run.seed
        self.sampler = TrainingSampler(self.images.size, config.data, crop, seed, boxes=self.boxes)

    def validate(self, net: VGG, loader: Loader, watch: Watch) -> Validation:
        """The centre crop's error at Q = S over all ranks, each of which calls it. Raises Interrupted.

        Top-1 error, and top-5 beside it; or the share of crops whose box of the true class is wrong: Table 8's error.
        """
        Q, batch = self._config.single_Q[0], self._config.evaluation.batch
        shown = SplitPass(self._validation, loader, watch, self._config.train.precision)
        if self._validation_boxes:
            error, iou = centre_box_error(net, shown, self._validation_boxes, Q, batch)
            record = {"box_error": error.percent, "mean_iou": iou, "n": error.n}
            return Validation(error.percent, record, f"centre-crop box error {error.percent:.1f} %, mean IoU {iou:.3f}")
        errors = centre_error(net, shown, Q, batch)
        top1 = errors[1].percent
        record = {"top1_error": top1, "top5_error": errors[5].percent, "n": errors[1].n}
        return Validation(top1, record, f"centre-crop top-1 error {top1:.1f} %")
