"""Resampling by matrix products: grouping of images."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from vggrepro.data.loading import resample


def test_the_memory_of_a_product_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 30_000  # the largest image has 3 * 99 * 99 grey levels
    monkeypatch.setattr(resample, "_MOST_VALUES", most)
    extent = np.random.default_rng(0).integers(10, 100, (50, 2))

    def values(rows: NDArray[np.intp]) -> int:
        return int(3 * len(rows) * extent[rows].max(axis=0).prod())

    pieces = list(resample._pieces(extent))
    assert len(pieces) > 10
    assert sorted(np.concatenate(pieces)) == list(range(50))
    assert max(values(rows) for rows in pieces) <= most
    for rows, following in pairwise(pieces):
        assert values(np.append(rows, following[0])) > most, "another image would fit"
