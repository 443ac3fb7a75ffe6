"""The store of posteriors: the softmax of a validation set for one net, one method and one Q, computed once.

Everything else that evaluation prints is arithmetic on these arrays, and needs neither the net nor a GPU. They are
float32, as computed: nothing is rounded, so the order of the guesses is the net's own. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.store import Key, stem_of


@dataclass(frozen=True)
class Posteriors:
    """Softmax posteriors in the index's order, with labels."""

    values: NDArray[np.float32]
    """(n, classes)"""
    labels: NDArray[np.int64]
    """(n,)"""


@dataclass(frozen=True)
class PosteriorsKey(Key[Posteriors]):
    """Identifies one stored set of posteriors."""

    folder = "posteriors"
    value_type = Posteriors

    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    data: str
    """Fingerprint of the index."""
    method: str
    """A key of `methods.METHODS`."""
    Q: int
    """Shorter side of the rescaled images, px."""
    flip: bool
    """Averaged over the image, or the crops, and their mirror images."""
    precision: str = "fp32"
    """Of the net's arithmetic; the posteriors themselves are float32."""

    @property
    def stem(self) -> str:
        """Method and Q, then net and index."""
        hashes = (self.weights, self.data)
        return stem_of(self.method, f"Q{self.Q}", flip=self.flip, precision=self.precision, hashes=hashes)


def average(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(n, classes) equal-weight mean of posteriors, over Q, methods or nets (Sections 3.2, 4.3, 4.4)."""
    assert len({values.shape for values in sets}) == 1, "posteriors of different data sets"
    return np.stack(sets).mean(axis=0, dtype=np.float64).astype(np.float32)
