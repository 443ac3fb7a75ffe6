"""The five classes that a classification system names for each image, for which boxes are then predicted. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vggrepro.data.views import Ints
from vggrepro.evaluation.boxes import GUESSES
from vggrepro.evaluation.errors import error_rate
from vggrepro.evaluation.measure import Scored, fuse


@dataclass(frozen=True)
class Guesses:
    """Five classes for each of n images, and where they come from."""

    classes: Ints
    """(n, 5) class numbers, best first; fewer where there are fewer classes."""
    key: str
    """Equal for guesses of the same posteriors."""
    told: str
    """The nets with their protocol, for a reader."""
    top5: float
    """Top-5 classification error, per cent: below it no localisation error can fall."""


@dataclass(frozen=True)
class Source:
    """One net whose posteriors are fused into guesses."""

    name: str
    weights: str
    """SHA-256."""
    scored: Scored


def guesses_key(made_of: Sequence[tuple[str, str, tuple[int, ...]]]) -> str:
    """A hash (hex) of the posteriors that guesses come from: each net's weights, method and Q."""
    return hashlib.sha256(json.dumps(sorted(made_of)).encode()).hexdigest()


def guesses_of(sources: Sequence[Source], rows: Ints) -> Guesses:
    """The guesses of some nets, fused where they are several, for some rows (n,) of the validation split."""
    fused = fuse([one.scored for one in sources])
    values, labels = fused.values[rows], fused.labels[rows]
    Q = " + ".join(dict.fromkeys(", ".join(map(str, one.scored.Q)) for one in sources))
    return Guesses(
        classes=np.argsort(-values, axis=1, kind="stable")[:, :GUESSES],
        key=guesses_key([(one.weights, one.scored.method, one.scored.Q) for one in sources]),
        told=f"{' + '.join(one.name for one in sources)}: {fused.method}, Q = {Q}",
        top5=error_rate(values, labels, GUESSES).percent,
    )
