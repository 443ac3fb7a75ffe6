"""What stored posteriors say: the errors of a net, or of several together, under a protocol. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Config
from vggrepro.evaluation import posteriors
from vggrepro.evaluation.errors import ErrorRate, Ranks, true_class_rank
from vggrepro.evaluation.posteriors import Protocol
from vggrepro.storage.directory import RunDirectory

COMBINED: Mapping[str, tuple[str, ...]] = {"both": ("dense", "multicrop")}
"""Methods that are the mean of others (Section 4.3)."""


@dataclass(frozen=True)
class Scored:
    """Posteriors (n, classes) under a protocol, averaged over Q and methods, with labels (n,)."""

    method: str
    Q: tuple[int, ...]
    values: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def measured(self) -> Measured:
        """The errors."""
        ranks = Ranks(self.labels, true_class_rank(self.values, self.labels))
        return Measured(self.method, self.Q, ranks.top1, ranks.top5)


@dataclass(frozen=True)
class Measured:
    """The errors of one net, or of several fused, under one protocol."""

    method: str
    Q: tuple[int, ...]
    top1: ErrorRate
    top5: ErrorRate


def methods_of(method: str) -> tuple[str, ...]:
    """The methods whose posteriors make up a method: itself, or those that it is the mean of."""
    return COMBINED.get(method, (method,))


def protocol(config: Config, weights: str, data: str, Q: int, method: str = "dense") -> Protocol:
    """The protocol of a configuration at one Q. A centre crop is never mirrored."""
    flip = config.evaluation.flip and method != "centre"
    return Protocol(weights, data, method, Q, flip, config.evaluation.precision)


def missing_Q(
    config: Config, weights: str, data: str, run: RunDirectory, wanted: Iterable[int], method: str = "dense"
) -> list[int]:
    """The Q values whose posteriors are not stored yet, ascending."""
    stored = {
        Q
        for Q in wanted
        if all(protocol(config, weights, data, Q, one).file(run.posteriors).exists() for one in methods_of(method))
    }
    return sorted(set(wanted) - stored)


def scored(
    config: Config, weights: str, data: str, folder: Path, Q: tuple[int, ...], method: str = "dense"
) -> Scored | None:
    """Posteriors averaged over several Q inside each method, then over methods; None while some are not stored.

    Raises UserError for a stored file that cannot be used.
    """
    parts, labels = [], np.empty(0, np.int64)
    for one in methods_of(method):
        sets = [posteriors.load(protocol(config, weights, data, side, one), folder) for side in Q]
        stored = [found for found in sets if found is not None]
        if len(stored) < len(Q):
            return None
        labels = stored[0].labels
        parts.append(posteriors.average([found.values for found in stored]))
    return Scored(method, Q, posteriors.average(parts), labels)


def measure(
    config: Config, weights: str, data: str, run: RunDirectory, Q: tuple[int, ...], method: str = "dense"
) -> Measured | None:
    """The errors of the posteriors averaged over several Q; None while some are not stored. Raises UserError."""
    found = scored(config, weights, data, run.posteriors, Q, method)
    return found.measured if found else None


def fuse(nets: Sequence[Scored]) -> Scored:
    """The mean over nets, each already averaged over its own Q (Section 4.4)."""
    assert len({one.method for one in nets}) == 1, "fusion of different methods"
    assert all(np.array_equal(one.labels, nets[0].labels) for one in nets), "fusion over different images"
    shared = {one.Q for one in nets}
    Q = shared.pop() if len(shared) == 1 else tuple(sorted({side for one in nets for side in one.Q}))
    return Scored(nets[0].method, Q, posteriors.average([one.values for one in nets]), nets[0].labels)
