"""The store of features: what the last hidden layer says of each image, at one Q; and descriptors made of it. No torch.

Features are stored as the net gives them. Normalising, averaging or stacking them over Q and nets (Appendix B) is
arithmetic on what is stored.
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
    """(n, units), in the order of images or boxes."""


@dataclass(frozen=True)
class FeaturesKey(Key[Features]):
    """Identifies one stored set of features."""

    folder = "features"
    value_type = Features

    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    layer: str
    """fc7, or of a net without fully-connected layers its last pooling."""
    data: str
    """Fingerprint of the index."""
    Q: int
    """Shorter side of the rescaled images, or boxes, px."""
    flip: bool
    """Averaged over the image and its mirror image."""
    precision: str = "fp32"
    boxes: str = ""
    """Fingerprint of the boxes where features are of these; empty where they are of whole images."""

    @property
    def stem(self) -> str:
        """Layer, Q and boxes, then net and index."""
        boxes = [f"boxes-{self.boxes[:12]}"] if self.boxes else []
        hashes = (self.weights, self.data)
        return stem_of(self.layer, f"Q{self.Q}", *boxes, flip=self.flip, precision=self.precision, hashes=hashes)


def descriptors(at_scales: Iterable[NDArray[np.float32]], combine: Combine) -> NDArray[np.float32]:
    """(n, d) descriptors of length 1, of features (n, units) at several Q, each of which is normalised first."""
    each = map(normalised, at_scales)
    if combine == "stack":
        return stacked(list(each))
    total = next(each)
    for values in each:
        total += values
    return normalised(total)  # as their mean would be


def stacked(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(n, sum of d) descriptors of length 1, of several (n, d) side by side: of Q, nets, or image and box."""
    joined = np.concatenate(sets, axis=1)
    joined /= _lengths(joined)
    return joined


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their Euclidean length; a row of zeros stays one."""
    return values / _lengths(values)


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1) what rows are divided by; 1 for a row of zeros."""
    length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))[:, None]
    return np.where(length > 0, length, 1).astype(np.float32)
