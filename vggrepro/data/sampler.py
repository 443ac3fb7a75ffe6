"""The sampler: every random draw of training, as a pure function of (seed, ordinal); and of data sets' splits.

Training reads one endless sequence of samples: epoch after epoch, each a fresh permutation of the training set. The
*ordinal* of a sample is its place in that sequence, so sample `ordinal` belongs to epoch `ordinal // images`, global
step `t` takes the ordinals [t * batch, (t + 1) * batch), and the whole state of the data is the step. A batch may
straddle two epochs; no image is dropped, repeated or padded.

Draws come from Philox4x64 (Salmon et al., SC 2011), a counter-based generator: sample `ordinal` owns a fixed range of
counters, whoever asks for it, in whatever order. NumPy guarantees the raw stream of its bit generators across versions
(NEP 19), which it does not for distributions: those are built here.
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

# One stream a purpose, so that adding a purpose never disturbs another's draws.
_ORDER, _VIEWS, _DROPOUT, _CLASS = 1, 2, 3, 4
_WORDS_PER_COUNTER = 4


def _words(seed: int, stream: int, first_counter: int, counters: int, page: int = 0) -> NDArray[np.uint64]:
    """(counters, 4) raw 64-bit words."""
    generator = np.random.Philox(key=[seed, stream], counter=[first_counter, page, 0, 0])
    return generator.random_raw(counters * _WORDS_PER_COUNTER).reshape(counters, _WORDS_PER_COUNTER)


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform on [0, 1), from the upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2)  # an epoch's end and the next one's start are asked for in turn
def permutation(seed: int, epoch: int, images: int) -> Ints:
    """(images,) the order of one epoch."""
    counters = -(-images // _WORDS_PER_COUNTER)
    order = np.argsort(_words(seed, _ORDER, 0, counters, page=epoch).ravel()[:images], kind="stable")
    order.flags.writeable = False
    return order


def class_permutation(seed: int, split: int, place: int, images: int) -> Ints:
    """(images,) the order in which a class's images are drawn for a split (Appendix B); `place`: the class's own."""
    counters = -(-images // _WORDS_PER_COUNTER)
    words = _words(seed, _CLASS, 0, counters, page=(split << 32) + place)
    return np.argsort(words.ravel()[:images], kind="stable")


def dropout_masks(
    seed: int, step: int, batch: int, rows: slice, units: tuple[int, ...], rate: float
) -> list[NDArray[np.bool_]]:
    """Masks (len(rows), n) for each n of `units`, True where a unit is kept, for some rows of the global batch.

    They are drawn for the batch as a whole, one counter range a row, so the trajectory does not depend on how the batch
    is split over ranks or micro-batches. The rate is resolved to 2^-16.
    """
    start, stop, _ = rows.indices(batch)
    per_row = -(-sum(units) // (4 * _WORDS_PER_COUNTER))  # 16 bits a unit
    words = _words(seed, _DROPOUT, start * per_row, (stop - start) * per_row, page=step)
    # The byte order is fixed so that the same seed drops the same units everywhere.
    draws = words.astype("<u8", copy=False).view("<u2").reshape(stop - start, -1)
    keep = draws >= round(rate * 2**16)
    edges = np.cumsum((0, *units))
    return [keep[:, low:high] for low, high in pairwise(edges)]


def colour_components(shift: ColourShift) -> NDArray[np.float64]:
    """(3, 3) RGB shift in grey levels for one standard deviation of each principal component, by row (Section 3.1).

    `sqrt` scales component i by sigma * sqrt(lambda_i), with lambda in squared grey levels, as Krizhevsky's code does;
    `lambda` scales by sigma * lambda_i with pixels in [0, 1], as his text has it.
    """
    vectors = np.array(value("colour_shift_eigenvectors"), np.float64)
    roots = np.array(value("colour_shift_sqrt_eigenvalues"), np.float64)
    scale = {"sqrt": roots, "lambda": (roots / 255) ** 2 * 255, "off": np.zeros(3)}[shift.mode]
    return shift.sigma * scale[:, None] * vectors


@dataclass(frozen=True)
class TrainingSampler:
    """Which view of which image each ordinal is (Section 3.1: one random crop per image per iteration)."""

    sizes: Ints
    """(images, 2) height and width of the training images, px."""
    data: Data
    crop: int
    seed: int
    boxes: NDArray[np.float64] | None = None
    """(images, 4) left, top, right, bottom in px of an object whose centre every crop shows (Appendix A is silent)."""

    @property
    def images(self) -> int:
        """Images in one epoch."""
        return len(self.sizes)

    def order(self, ordinals: Ints) -> Ints:
        """The image each ordinal stands for."""
        epochs = ordinals // self.images
        image = np.empty_like(ordinals)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            order = permutation(self.seed, int(epoch), self.images)
            image[of_epoch] = order[ordinals[of_epoch] % self.images]
        return image

    def views(self, first: int, count: int) -> Views:
        """The views of the ordinals [first, first + count).

        The replacement of an ordinal is its place in the next epoch, or the one after: as good as drawn at random, and
        the same on every rank and after every resumption.
        """
        ordinals = np.arange(first, first + count, dtype=np.int64)
        image = self.order(ordinals)
        # Two counters, eight words: S, top, left, flip, and four uniforms for three normals.
        u = _uniform(_words(self.seed, _VIEWS, 2 * first, 2 * count)).reshape(count, 8)
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
        """(N, 2) the first and the last place, top and left in px, of crops that may be shown of rescaled images."""
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
    """The views of some rows of every global batch in turn, from one step to another: what a rank trains on.

    Its place in the epochs is a matter of the step alone, so each process that iterates over it sees the same.
    """

    sampler: TrainingSampler
    batch: int
    rows: tuple[slice, ...]
    """Of the global batch: one slice a micro-batch."""
    first_step: int
    """Iterations already done."""
    last_step: int

    def __iter__(self) -> Iterator[Views]:
        for step in range(self.first_step, self.last_step):
            for rows in self.rows:
                yield self.sampler.views(step * self.batch + rows.start, rows.stop - rows.start)
