"""The store of features, activations of the last hidden layer at one Q, and descriptors made of them. No torch.

Features are stored as computed. Normalising, averaging and stacking over Q and nets (Appendix B) happen afterwards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.store import Key, stem_of
from vggrepro.paper import Combine


@dataclass(frozen=True)
class Features:
    """Activations of the last hidden layer."""

    values: NDArray[np.float32]
    """Activations in the order of images or boxes, shape (n, units)."""


@dataclass(frozen=True)
class FeaturesKey(Key[Features]):
    """Key of a stored set of features; see :class:`PosteriorsKey` for fields of the same name."""

    folder = "features"
    value_type = Features

    weights: str
    layer: str
    """fc7, or the last pooling layer of a net without fully-connected layers."""
    data: str
    Q: int
    flip: bool
    precision: str = "fp32"
    boxes: str = ""
    """Fingerprint of the boxes that the features are computed for; empty for full images."""

    @property
    def stem(self) -> str:
        """Layer, Q and boxes, then the hashes of net and index."""
        boxes = [f"boxes-{self.boxes[:12]}"] if self.boxes else []
        hashes = (self.weights, self.data)
        return stem_of(self.layer, f"Q{self.Q}", *boxes, flip=self.flip, precision=self.precision, hashes=hashes)


def descriptors(at_scales: Iterable[NDArray[np.float32]], combine: Combine) -> NDArray[np.float32]:
    """Combines features (n, units) at several Q, each normalised first, into descriptors of length 1, shape (n, d)."""
    each = map(normalised, at_scales)
    if combine == "stack":
        return stacked(list(each))
    total = next(each)
    for values in each:
        total += values
    return normalised(total)  # equals the normalised mean


def stacked(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Concatenates descriptors (n, d) of Q, nets, or image and box; the result has length 1, shape (n, sum of d)."""
    joined = np.concatenate(sets, axis=1)
    joined /= _lengths(joined)
    return joined


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides rows by their Euclidean length; rows of zeros are unchanged."""
    return values / _lengths(values)


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the Euclidean length of each row, 1 for a row of zeros, shape (n, 1)."""
    length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))[:, None]
    return np.where(length > 0, length, 1).astype(np.float32)
