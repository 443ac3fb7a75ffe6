"""What a step descends on: cross-entropy of classes (Section 3.1), or the distance of boxes (Appendix A)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vggrepro.data.loader import Batch
from vggrepro.data.views import Views
from vggrepro.models.boxes import encode, euclidean_loss


class Objective(Protocol):
    """A loss, and what it compares a net's outputs with."""

    def targets(self, views: Views) -> Tensor | None:
        """What the views' images are to be predicted as, a row each, where their labels do not say it."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Sum over the batch, of a last layer's outputs (N, units) in float32."""


class CrossEntropy:
    """Of the true class."""

    def targets(self, views: Views) -> Tensor | None:
        """None: the labels are the targets."""
        return None

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Sum over the batch, of class scores (N, classes)."""
        return F.cross_entropy(outputs, batch.labels, reduction="sum")


@dataclass(frozen=True)
class BoxDistance:
    """Half the squared distance from the box that is predicted for the true class."""

    boxes: NDArray[np.float64]
    """(images, 4) the box to be predicted: left, top, right, bottom in px of the image as it is."""
    crop: int

    def targets(self, views: Views) -> Tensor:
        """(N, 4) float32, as of `models.boxes.encode`."""
        return encode(torch.from_numpy(views.boxes_in_window(self.boxes[views.image])), self.crop).float()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Sum over the batch, of boxes (N, 4) or (N, 4 * classes)."""
        assert batch.targets is not None
        return euclidean_loss(outputs, batch.targets, batch.labels)
