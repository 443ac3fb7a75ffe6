"""What a stage is trained for: on which images, towards what, and which error is watched. Classes, or boxes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from vggrepro.config.settings import Config
from vggrepro.data.boxes import BoxSet
from vggrepro.data.index import Index, Split
from vggrepro.data.loader import Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.evaluation.localise import annotated, centre_box_error
from vggrepro.evaluation.methods import centre_error
from vggrepro.models.vgg import VGG
from vggrepro.ranks.watch import Watch
from vggrepro.training import health
from vggrepro.training.objective import BoxDistance, CrossEntropy, Objective


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    error: float
    """Of the centre crop at Q = S, per cent: what the schedule and the best checkpoint go by."""
    record: dict[str, Any]
    """For `metrics.jsonl`."""
    told: str
    """For a person."""


class Task(ABC):
    """One stage's task; it holds no state of the training."""

    config: Config
    images: Split
    """What is trained on."""
    sampler: TrainingSampler
    objective: Objective

    @abstractmethod
    def validate(self, net: VGG, loader: Loader, watch: Watch) -> Validation:
        """The centre crop's error at Q = S over all ranks, each of which calls it. Raises Interrupted."""

    @abstractmethod
    def check_learning(self, loss: float, step: int) -> None:
        """Raises UserError for a net that has learnt nothing for too long, where that can be told."""


class Classification(Task):
    """The class of each image (Section 3.1)."""

    def __init__(self, config: Config, index: Index) -> None:
        self.config, self.objective = config, CrossEntropy()
        self.images, self._validation = index.split("train"), index.split("val")
        self.sampler = TrainingSampler(self.images.size, config.data, config.model.crop, config.run.seed)

    def validate(self, net: VGG, loader: Loader, watch: Watch) -> Validation:
        """Top-1 error, and top-5 beside it."""
        config = self.config
        errors = centre_error(
            net,
            loader,
            self._validation,
            config.single_Q[0],
            batch=config.evaluation.batch,
            watch=watch,
            precision=config.train.precision,
        )
        top1 = errors[1].percent
        record = {"top1_error": top1, "top5_error": errors[5].percent, "n": errors[1].n}
        return Validation(top1, record, f"centre-crop top-1 error {top1:.1f} %")

    def check_learning(self, loss: float, step: int) -> None:
        """Raises UserError where the loss is still that of guessing."""
        health.check_learning(loss, self.config.model.classes, step, self.config.train.stall_after)


class BoxRegression(Task):
    """The box of the largest object in each image, on the images that have one (Appendix A).

    Which of several boxes a crop is trained on, and what becomes of crops that do not show it, the paper does not say:
    it is the largest, every crop shows its centre, and the part of it that lies beyond the crop is predicted as well.
    """

    def __init__(self, config: Config, index: Index, boxes: BoxSet) -> None:
        self.config = config
        training = annotated(index, boxes, "train")
        self._validation = annotated(index, boxes, "val")
        self.images, largest = training.split, training.boxes.largest()
        crop = config.model.crop
        self.objective = BoxDistance(largest, crop)
        self.sampler = TrainingSampler(self.images.size, config.data, crop, config.run.seed, boxes=largest)

    def validate(self, net: VGG, loader: Loader, watch: Watch) -> Validation:
        """Share of centre crops whose box of the true class is wrong: Table 8's error."""
        config = self.config
        error, overlap = centre_box_error(
            net,
            loader,
            self._validation,
            config.single_Q[0],
            batch=config.evaluation.batch,
            watch=watch,
            precision=config.train.precision,
        )
        record = {"box_error": error.percent, "mean_iou": overlap, "n": error.n}
        return Validation(error.percent, record, f"centre-crop box error {error.percent:.1f} %, mean IoU {overlap:.3f}")

    def check_learning(self, loss: float, step: int) -> None:
        """Nothing: the loss of guessing the mean box is not known, and boxes are learnt from a net that has learnt."""


def task_of(config: Config, index: Index, boxes: BoxSet | None) -> Task:
    """What a configuration's stage is trained for; `boxes` are there where it predicts them. Raises UserError."""
    if config.localisation is None:
        return Classification(config, index)
    assert boxes is not None
    return BoxRegression(config, index, boxes)
