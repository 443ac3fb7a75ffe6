"""The store of posteriors: the softmax over a validation set for a net, a method and a Q, computed once. No torch.

All other output of evaluation is arithmetic on these arrays, without the net or a GPU. They are stored as float32
without rounding, so the order of the guesses is exactly the net's.
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
    """Posteriors, shape (n, classes)."""
    labels: NDArray[np.int64]
    """True classes, shape (n,)."""


@dataclass(frozen=True)
class PosteriorsKey(Key[Posteriors]):
    """Key of a stored set of posteriors."""

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
    """Whether posteriors are averaged over the image, or the crops, and their mirror images."""
    precision: str = "fp32"
    """Precision of the net's arithmetic; posteriors are always float32."""

    @property
    def stem(self) -> str:
        """Method and Q, then the hashes of net and index."""
        hashes = (self.weights, self.data)
        return stem_of(self.method, f"Q{self.Q}", flip=self.flip, precision=self.precision, hashes=hashes)


def average(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Averages posteriors (n, classes) over Q, methods or nets with equal weights (Sections 3.2, 4.3, 4.4)."""
    assert len({values.shape for values in sets}) == 1, "posteriors of different data sets"
    return np.stack(sets).mean(axis=0, dtype=np.float64).astype(np.float32)
