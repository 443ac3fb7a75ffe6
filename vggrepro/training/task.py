"""Task of a stage, classes or boxes: training images, targets and validation error."""

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
    """Result of a validation."""

    error: float
    """Error of the centre crop at Q = S in per cent, for the schedule and the best checkpoint."""
    record: dict[str, Any]
    """Fields of the record in `metrics.jsonl`."""
    text: str
    """Summary for the user."""


class Task:
    """Task of a stage, without training state.

    The target is the class of each image (Section 3.1), or the largest box of the images that have one (Appendix A).
    The paper does not say which box a crop is trained on, or how crops without it are treated. Here, every crop shows
    the centre of the largest box, and the net also predicts the part outside the crop. Raises UserError without boxes.
    """

    def __init__(self, config: Config, index: Index, boxes: BoxSet | None) -> None:
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
        """Measures the centre crop's top-1 error at Q = S, or with boxes the error of Table 8. Raises Interrupted."""
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
