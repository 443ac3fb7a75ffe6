"""What stored posteriors say: the errors of a net under a protocol. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vggrepro.config import Config
from vggrepro.evaluation import posteriors
from vggrepro.evaluation.errors import ErrorRate, error_rate
from vggrepro.evaluation.posteriors import Protocol
from vggrepro.tracking import RunDirectory


@dataclass(frozen=True)
class Measured:
    """The errors of one net under one protocol."""

    method: str
    Q: tuple[int, ...]
    top1: ErrorRate
    top5: ErrorRate


def protocol(config: Config, weights: str, data: str, Q: int) -> Protocol:
    """The dense protocol of a configuration at one Q."""
    return Protocol(weights=weights, data=data, method="dense", Q=Q, flip=config.evaluation.flip)


def missing_Q(config: Config, weights: str, data: str, run: RunDirectory, wanted: Iterable[int]) -> list[int]:
    """The Q values whose posteriors are not stored yet, ascending."""
    stored = {Q for Q in wanted if protocol(config, weights, data, Q).file(run.posteriors).exists()}
    return sorted(set(wanted) - stored)


def measure(config: Config, weights: str, data: str, run: RunDirectory, Q: tuple[int, ...]) -> Measured | None:
    """The errors of the posteriors averaged over several Q; None while some are not stored."""
    sets = [posteriors.load(protocol(config, weights, data, one), run.posteriors) for one in Q]
    stored = [one for one in sets if one is not None]
    if len(stored) < len(Q):
        return None
    scores, labels = posteriors.average(stored), stored[0].labels
    return Measured("dense", Q, error_rate(scores, labels, 1), error_rate(scores, labels, 5))
