"""Data sets that features are tested on (Appendix B): their images, what is recognised in them, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.index import Index
from vggrepro.data.views import Ints
from vggrepro.paper import Measure


@dataclass(frozen=True)
class Partition:
    """Rows of a data set's samples: those that are learnt from, and those that the result is measured on."""

    fit: Ints
    """Learnt from while hyper-parameters are chosen."""
    held_out: Ints
    """Decide hyper-parameters, and are learnt from after that."""
    test: Ints

    @property
    def train(self) -> Ints:
        """All that the final classifier learns from."""
        return np.concatenate([self.fit, self.held_out])


@dataclass(frozen=True)
class TransferSet:
    """A data set as it is downloaded. A sample is an image, or a person in one."""

    name: str
    """A key of `paper.facts().transfer`, or the user's own for a folder of classes."""
    index: Index
    """All its images, in `val`."""
    classes: tuple[str, ...]
    measure: Measure
    image: Ints
    """(samples,) rows of `index.split("val")`."""
    targets: NDArray[np.int8]
    """(samples, classes) 1: of the class; -1: not; 0: difficult, which counts neither way."""
    partitions: Sequence[Partition]
    submission: Partition | None = None
    """All labelled samples, and as `test` those whose labels only the challenge's server has."""
    boxes: NDArray[np.float64] | None = None
    """(samples, 4) left, top, right, bottom of the person, px."""
