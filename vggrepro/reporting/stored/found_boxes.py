"""Stored boxes of localisation nets and their correctness: the input of Tables 8 to 10."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import CENTRE, FoundKey, load_truth
from vggrepro.evaluation.boxes import Found, Truth, error_of
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.paper import Scale
from vggrepro.reporting.stored.runs import RunAtQ, StoredRun
from vggrepro.storage.directory import RunDirectory

Kind = tuple[Scale, str, str]
"""The paper's training scale S, SCR or PCR, and all or fc."""


def kind_of(run: StoredRun) -> Kind:
    """Returns the settings that distinguish the nets of Table 8."""
    localisation = run.config.localisation
    assert localisation is not None
    return run.S, localisation.regression, localisation.fine_tune


def configured_Q(run: StoredRun, method: str, *, several: bool) -> tuple[int, ...]:
    """Returns the Q at which the run's configuration tests it, px; the centre crop has a single Q."""
    if method == CENTRE:
        return run.config.single_Q[:1]
    return run.config.multi_Q if several else run.config.single_Q


@dataclass(frozen=True)
class StoredBoxes:
    """A stored set of final boxes."""

    protocol: FoundKey
    run: RunDirectory
    guesses: str
    """The source of the class guesses; empty for the centre crop, which is given the true class."""
    top5: float
    """Top-5 classification error of the guesses, per cent."""

    @cached_property
    def found(self) -> Found:
        """The predicted boxes. Raises UserError."""
        found = self.protocol.load(self.run)
        assert found is not None
        return found

    @cached_property
    def truth(self) -> Truth:
        """The true boxes. Raises UserError."""
        part = self.protocol.parts[0]
        truth = load_truth(self.run, part.data, part.boxes)
        if len(truth.labels) != len(self.found.classes):
            raise UserError(
                f"boxes {self.protocol.file(self.run)} are for {len(self.found.classes)} images, the stored true boxes "
                f"for {len(truth.labels)}; remove {self.run.boxes} and test again"
            )
        return truth

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Correct images by the protocol's measure, shape (n,): Table 8's for the centre crop, else Table 9's."""
        return self.right_given_class if self.is_centre else self.found.right(self.truth)

    @cached_property
    def right_given_class(self) -> NDArray[np.bool_]:
        """Correct images by Table 8's measure, shape (n,)."""
        return self.found.right_given_class(self.truth)

    @property
    def target_key(self) -> tuple[str, str]:
        """Equal for comparable sets: fingerprint of the true boxes, and of the guesses."""
        return self.protocol.parts[0].boxes, self.protocol.parts[0].guesses

    @property
    def is_centre(self) -> bool:
        """Whether the boxes are from Table 8's test."""
        return self.protocol.method == CENTRE

    def baselines(self) -> dict[str, ErrorRate]:
        """Returns the errors of boxes that do not depend on the image, by name."""
        truth, classes = self.truth, self.found.classes
        boxes = {"the whole image": truth.full_image_boxes(), "a random box": truth.random_boxes()}
        errors = {}
        for name, box in boxes.items():
            blind = Found(np.repeat(box, classes.shape[1], axis=1).astype(np.float32), classes)
            errors[name] = error_of(blind.right_given_class(truth) if self.is_centre else blind.right(truth))
        return errors


class BoxCache:
    """Stored boxes of the runs of a group, by nets, Q and method; each file is read once."""

    def __init__(self, runs: Iterable[StoredRun]) -> None:
        self._stored: dict[tuple[object, ...], dict[tuple[str, str], StoredBoxes]] = {}
        tested = [run for run in runs if run.weights and run.dataset]
        nets = {run.weights: run for run in tested}
        for run in tested:
            for protocol, note in FoundKey.listed(run.run_directory):
                if _is_of(protocol, nets):
                    key = _key([(part.weights, part.Q) for part in protocol.parts], protocol.method)
                    stored = StoredBoxes(protocol, run.run_directory, note.get("guesses", ""), note.get("top5", 0.0))
                    # nets may have been pooled in any order: the first set found stands for all
                    self._stored.setdefault(key, {}).setdefault(stored.target_key, stored)

    def of(self, runs_at_Q: Sequence[RunAtQ], method: str) -> StoredBoxes | None:
        """Returns the boxes of a net, or of pooled nets, with the best stored guesses; or None."""
        return min(self._options(runs_at_Q, method).values(), key=_best_first, default=None)

    def both(
        self, first: Sequence[RunAtQ], second: Sequence[RunAtQ], method: str
    ) -> tuple[StoredBoxes, StoredBoxes] | None:
        """Returns the boxes of two sides for the same true boxes and guesses, the best that both have; or None."""
        left, right = self._options(first, method), self._options(second, method)
        shared = min((left[key] for key in left if key in right), key=_best_first, default=None)
        return None if shared is None else (shared, right[shared.target_key])

    def pooled(self) -> list[StoredBoxes]:
        """Returns every set of boxes of several nets, each with its best guesses."""
        sets = (min(options.values(), key=_best_first) for options in self._stored.values())
        return [boxes for boxes in sets if len({part.weights for part in boxes.protocol.parts}) > 1]

    def _options(self, runs_at_Q: Sequence[RunAtQ], method: str) -> dict[tuple[str, str], StoredBoxes]:
        return self._stored.get(_key([(run.weights, side) for run, Q in runs_at_Q for side in Q], method), {})


def _is_of(protocol: FoundKey, nets: Mapping[str | None, StoredRun]) -> bool:
    """Whether all parts are by these final nets, each with the images, boxes and precision of its run."""
    for part in protocol.parts:
        run = nets.get(part.weights)
        if run is None or (part.data, part.boxes, part.precision) != (
            run.dataset["fingerprint"],
            run.boxes_fingerprint,
            run.config.evaluation.precision,
        ):
            return False
    localisation = nets[protocol.parts[0].weights].config.localisation
    assert localisation is not None
    return protocol.merge_below == (None if protocol.method == CENTRE else localisation.merge_below)


def _best_first(boxes: StoredBoxes) -> tuple[float, tuple[str, str]]:
    """Sort key: the guesses' error. The second item makes the order of equal errors independent of the files."""
    return boxes.top5, boxes.target_key


def _key(parts: Sequence[tuple[str | None, int]], method: str) -> tuple[object, ...]:
    return method, *sorted(parts, key=str)
