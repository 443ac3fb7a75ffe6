"""Every random draw of training and of data set splits, as a pure function of the seed and the position in the run.

Training reads one endless sequence of samples: epoch after epoch, each a fresh permutation of the training set. The
*ordinal* of a sample is its position in that sequence. Sample `ordinal` belongs to epoch `ordinal // images`, and
global step `t` takes the ordinals [t * batch, (t + 1) * batch), so the step is the complete state of the sampler. A
batch may straddle two epochs; no image is dropped, repeated or padded.

Draws come from Philox4x64 (Salmon et al., SC 2011), a counter-based generator. Each ordinal owns a fixed range of
counters, so its draws do not depend on who requests them, or in which order. NumPy guarantees the raw stream of its bit
generators across versions (NEP 19), but not its distributions, which are therefore implemented here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data.views import Ints, Views, rescaled_size
from vggrepro.paper import value

# One stream per purpose, so that a new purpose never disturbs the draws of another.
_ORDER, _VIEWS, _DROPOUT, _CLASS = 1, 2, 3, 4
_WORDS_PER_COUNTER = 4


def _words(seed: int, stream: int, first_counter: int, counters: int, page: int = 0) -> NDArray[np.uint64]:
    """Raw 64-bit words, shape (counters, 4)."""
    generator = np.random.Philox(key=[seed, stream], counter=[first_counter, page, 0, 0])
    return generator.random_raw(counters * _WORDS_PER_COUNTER).reshape(counters, _WORDS_PER_COUNTER)


def _shuffled(seed: int, stream: int, page: int, images: int) -> Ints:
    counters = -(-images // _WORDS_PER_COUNTER)
    return np.argsort(_words(seed, stream, 0, counters, page).ravel()[:images], kind="stable")


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(seed: int, epoch: int, images: int) -> Ints:
    """Draws the order in which an epoch visits the training images: int64, shape (images,), read-only."""
    order = _shuffled(seed, _ORDER, epoch, images)
    order.flags.writeable = False
    return order


def class_permutation(seed: int, split: int, label: int, images: int) -> Ints:
    """Draws the order in which the images of a class are assigned to a random split (Appendix B), shape (images,)."""
    return _shuffled(seed, _CLASS, (split << 32) + label, images)


def dropout_masks(
    seed: int, step: int, batch: int, rows: slice, units: tuple[int, ...], rate: float
) -> list[NDArray[np.bool_]]:
    """Draws dropout masks for some rows of the global batch.

    Each row of the global batch has a separate counter range, so the trajectory does not depend on how the batch is
    split over ranks and micro-batches.

    Args:
        step: Iteration, counted from 0.
        batch: Number of images in the global batch.
        rows: Rows of the global batch to draw for.
        units: Number of units in each layer with dropout.
        rate: Probability of dropping a unit, resolved to 2^-16.

    Returns:
        A mask for each layer, shape (rows, units of the layer), True where the unit is retained.
    """
    start, stop, _ = rows.indices(batch)
    per_row = -(-sum(units) // (4 * _WORDS_PER_COUNTER))  # 16 bits per unit
    words = _words(seed, _DROPOUT, start * per_row, (stop - start) * per_row, page=step)
    # The byte order is fixed so that the same seed drops the same units everywhere.
    draws = words.astype("<u8", copy=False).view("<u2").reshape(stop - start, -1)
    retained = draws >= round(rate * 2**16)
    return [retained[:, low:high] for low, high in pairwise(np.cumsum((0, *units)))]


def colour_components(shift: ColourShift) -> NDArray[np.float64]:
    """RGB shift per standard deviation of each principal component (row), in grey levels, shape (3, 3) (Section 3.1).

    `sqrt` scales component i by sigma * sqrt(lambda_i), with lambda in squared grey levels, as Krizhevsky's code does.
    `lambda` scales it by sigma * lambda_i with pixels in [0, 1], as his paper states.
    """
    vectors = np.array(value("colour_shift_eigenvectors"), np.float64)
    roots = np.array(value("colour_shift_sqrt_eigenvalues"), np.float64)
    scale = {"sqrt": roots, "lambda": (roots / 255) ** 2 * 255, "off": np.zeros(3)}[shift.mode]
    return shift.sigma * scale[:, None] * vectors


@dataclass(frozen=True)
class TrainingSampler:
    """Maps each ordinal to a random view of an image (Section 3.1: one random crop per image per iteration).

    Args:
        sizes: Height and width of the training images, px, shape (images, 2).
        data: Settings of the training scale S, mirroring and colour shift.
        crop: Side of the square crop, px.
        boxes: Left, top, right and bottom of an object in each image, px, shape (images, 4). Every crop shows the
            centre of its object (Appendix A is silent). None: crops are placed anywhere.
    """

    sizes: Ints
    data: Data
    crop: int
    seed: int
    boxes: NDArray[np.float64] | None = None

    @property
    def images(self) -> int:
        """Number of images in an epoch."""
        return len(self.sizes)

    def order(self, ordinals: Ints) -> Ints:
        """Returns the image number at each ordinal, shape (n,)."""
        epochs = ordinals // self.images
        image = np.empty_like(ordinals)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            image[in_epoch] = permutation(self.seed, int(epoch), self.images)[ordinals[in_epoch] % self.images]
        return image

    def views(self, first: int, count: int) -> Views:
        """Draws the views of the ordinals [first, first + count).

        A bad image is replaced by the image at the same position of the next epoch, or of the epoch after. That is as
        good as a random draw, and the same on every rank and after every resumption.
        """
        ordinals = np.arange(first, first + count, dtype=np.int64)
        image = self.order(ordinals)
        # Two counters, eight words: S, top, left, flip, and four uniforms for three normals. The upper 53 bits of a
        # word are uniform on [0, 1).
        words = _words(self.seed, _VIEWS, 2 * first, 2 * count).reshape(count, 8)
        u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        low, high = self.data.S_range
        S = low + (u[:, 0] * (high - low + 1)).astype(np.int64)
        size = self.sizes[image]
        rescaled = rescaled_size(size, S)
        lowest, highest = self._corners(image, rescaled / size, rescaled)
        corner = lowest + (u[:, 1:3] * (highest - lowest + 1)).astype(np.int64)
        radius = np.sqrt(-2 * np.log1p(-u[:, [4, 6]]))  # Box-Muller; 1 - u is never 0
        angle = 2 * np.pi * u[:, [5, 7]]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :3]
        return Views(
            image=image,
            size=size,
            rescaled=rescaled,
            corner=corner,
            shape=(self.crop, self.crop),
            flip=(u[:, 3] < 0.5) & self.data.flip,
            shift=(normal @ colour_components(self.data.colour_shift)).astype(np.float32),
            replacement=partial(self._replacement, first),
        )

    def _corners(self, image: Ints, scale: NDArray[np.float64], rescaled: Ints) -> tuple[Ints, Ints]:
        """First and last permitted corner of a crop in the rescaled image (top, left), px, shapes (N, 2)."""
        first, last = np.zeros_like(rescaled), rescaled - self.crop
        if self.boxes is None:
            return first, last
        box = self.boxes[image]
        centre = (box[:, [1, 0]] + box[:, [3, 2]]) / 2 * scale
        lowest = np.clip(np.ceil(centre).astype(np.int64) - self.crop, first, last)
        return lowest, np.clip(np.floor(centre).astype(np.int64), lowest, last)

    def _replacement(self, first: int, row: int, attempt: int) -> Views:
        return self.views(first + row + attempt * self.images, 1)


@dataclass(frozen=True)
class MicroBatches:
    """Yields the views of a rank's micro-batches, step by step.

    The step alone determines the views, so every process that iterates over this object sees the same ones.

    Args:
        batch: Number of images in the global batch.
        rows: Rows of the global batch in each micro-batch of the rank.
        first_step: Number of iterations already done.
        last_step: Number of iterations done at the end.
    """

    sampler: TrainingSampler
    batch: int
    rows: tuple[slice, ...]
    first_step: int
    last_step: int

    def __iter__(self) -> Iterator[Views]:
        for step in range(self.first_step, self.last_step):
            for rows in self.rows:
                yield self.sampler.views(step * self.batch + rows.start, rows.stop - rows.start)
