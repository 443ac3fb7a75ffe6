"""A net's view of an image: class scores at every position, and the results of the tests of Section 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.config.settings import Evaluation
from vggrepro.data.views import rescaled_size
from vggrepro.errors import UserError
from vggrepro.evaluation.errors import GUESSES
from vggrepro.evaluation.methods import centre_crop
from vggrepro.evaluation.posteriors import average
from vggrepro.models.dense import score_map
from vggrepro.models.precision import set_arithmetic
from vggrepro.models.table1 import Architecture
from vggrepro.pipeline.pretrained import Pretrained, rescale

MOST_CROPS = 4
"""The largest Q, in sides of the crop."""
_MOST_PIXELS, _MOST_PLACES = 4_000_000, 10_000
"""Limits per image and Q: an elongated image would take a CPU, and a browser, minutes."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in px of the rescaled image; the last two are the first pixels outside."""


@dataclass(frozen=True)
class Place:
    """A position of a score map."""

    row: int
    column: int


@dataclass(frozen=True)
class ScoredImage:
    """An image at one Q: the class scores at every position, and the dense test's posteriors."""

    Q: int
    pixels: NDArray[np.uint8]
    """(h, w, 3) the rescaled image."""
    scores: NDArray[np.float32]
    """Logits at each position of the unmirrored image, shape (classes, rows, columns)."""
    posteriors: NDArray[np.float32]
    """Posteriors (classes,) of the dense test, averaged over the mirror image if the net is tested that way."""
    architecture: Architecture

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        return self.scores.shape[1], self.scores.shape[2]

    @cached_property
    def local(self) -> NDArray[np.float32]:
        """Softmax at each position alone, shape (classes, rows, columns)."""
        powers = np.exp(self.scores - self.scores.max(axis=0))
        return powers / powers.sum(axis=0)

    def window(self, place: Place) -> Box:
        """Returns the crop window of a position: position i begins at pixel i * stride."""
        stride, crop = self.architecture.stride, self.architecture.crop
        left, top = place.column * stride, place.row * stride
        return left, top, left + crop, top + crop

    def cell(self, place: Place) -> Box:
        """Returns the central stride x stride pixels of a position's window; cells of a map touch and never overlap."""
        stride, (left, top, _, _) = self.architecture.stride, self.window(place)
        rim = self.rim
        return left + rim, top + rim, left + rim + stride, top + rim + stride

    @property
    def rim(self) -> int:
        """Pixels between the edge of a window and its cell."""
        return (self.architecture.crop - self.architecture.stride) // 2

    def field_of_view(self, place: Place) -> Box:
        """Returns all pixels that influence a position's scores, within the image: more than its window."""
        height, width = self.pixels.shape[:2]
        kernel = self.architecture.fc6_kernel
        (top, bottom), (left, right) = (
            self.architecture.receptive_field(first, first + kernel - 1) for first in (place.row, place.column)
        )
        return max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)

    def crop(self, place: Place) -> NDArray[np.uint8]:
        """Returns the pixels of a position's window, shape (crop, crop, 3)."""
        left, top, right, bottom = self.window(place)
        return self.pixels[top:bottom, left:right]

    def best_place(self, label: int) -> Place:
        """Returns the position with the largest score of a class."""
        row, column = np.unravel_index(int(self.scores[label].argmax()), self.shape)
        return Place(int(row), int(column))

    def places(self) -> list[Place]:
        """Lists the positions row by row."""
        rows, columns = self.shape
        return [Place(row, column) for row in range(rows) for column in range(columns)]


@dataclass(frozen=True)
class Sight:
    """Results of the tests of Section 3.2 for an image."""

    at_Q: tuple[ScoredImage, ...]
    average: NDArray[np.float32]
    """(classes,) mean posteriors over Q: the multi-scale test of Section 4.2."""
    centre: NDArray[np.float32]
    """(classes,) posteriors of the single centre crop."""
    centre_Q: int

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """Returns posteriors (classes,) by the name of the test."""
        dense = {f"dense, Q = {scored.Q}": scored.posteriors for scored in self.at_Q}
        return dense | {"mean over Q": self.average, f"centre, Q = {self.centre_Q}": self.centre}

    def guessed(self) -> list[int]:
        """Lists the classes among the five guesses of any test, by descending mean posterior."""
        found = set().union(*(guesses(values) for values in self.columns().values()))
        return sorted(found, key=lambda label: -self.average[label])


def guesses(posteriors: NDArray[np.float32]) -> list[int]:
    """Returns the five classes with the largest posteriors, best first."""
    return [int(label) for label in np.argsort(-posteriors, kind="stable")[:GUESSES]]


def sides_in(text: str, crop: int) -> tuple[int, ...]:
    """Parses Q values, without duplicates, ascending. Raises UserError."""
    try:
        sides = tuple(sorted({int(part) for part in text.replace(",", " ").split()}))
    except ValueError:
        sides = ()
    if not sides or not crop <= sides[0] <= sides[-1] <= MOST_CROPS * crop:
        raise UserError(f"Q {text!r}: expected whole numbers from {crop} (the crop) to {MOST_CROPS * crop}, in px")
    return sides


@torch.inference_mode()
def see(net: Pretrained, pixels: NDArray[np.uint8], Q: Sequence[int], centre_Q: int, *, flip: bool) -> Sight:
    """Tests a net on an image (h, w, 3): dense at each Q, and on the centre crop at one Q.

    Raises UserError for an image that is too elongated.
    """
    set_arithmetic(next(net.net.parameters()).device, "fp32")
    testing = Evaluation(flip=flip)
    at_Q = tuple(_scored(net, pixels, side, testing) for side in Q)
    centre = centre_crop(net.net, net.normalise(rescale(pixels, centre_Q)), testing)[0].cpu().numpy()
    return Sight(at_Q, average([scored.posteriors for scored in at_Q]), centre, centre_Q)


def _scored(net: Pretrained, pixels: NDArray[np.uint8], Q: int, testing: Evaluation) -> ScoredImage:
    """Applies `evaluation.methods.dense` and returns the map of the unmirrored image, too."""
    ((height, width),) = rescaled_size(np.array([pixels.shape[:2]]), Q)
    architecture = net.net.architecture
    if height * width > _MOST_PIXELS or architecture.places(int(height), int(width)) > _MOST_PLACES:
        raise UserError(
            f"the image of {pixels.shape[1]}x{pixels.shape[0]} px is {width}x{height} px at Q={Q}, which is too much "
            f"for one page; cut it, or choose a smaller Q"
        )
    rescaled = rescale(pixels, Q)
    images = net.normalise(rescaled)
    shown = torch.cat([images, images.flip(3)]) if testing.flip else images
    maps = score_map(net.net, shown, pixels_at_once=testing.batch * architecture.crop**2)
    posteriors = maps.mean(dim=(2, 3)).float().softmax(dim=1).mean(dim=0)
    seen = rescaled[0].permute(1, 2, 0).numpy()
    return ScoredImage(Q, seen, maps[0].float().cpu().numpy(), posteriors.cpu().numpy(), architecture)


def alone(net: Pretrained, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns posteriors (classes,) of a window that is cut out: padded by zeros, not by its neighbours."""
    return net(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None])[0].cpu().numpy()
