"""What nets that predict boxes got right, read from the stores of their runs: all that Tables 8 to 10 need."""

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
"""The paper's S that a net is trained at, SCR or PCR, and all or fc."""


def kind_of(run: StoredRun) -> Kind:
    """What Table 8 tells nets apart by."""
    localisation = run.config.localisation
    assert localisation is not None
    return run.S, localisation.regression, localisation.fine_tune


def configured_Q(run: StoredRun, method: str, *, several: bool) -> tuple[int, ...]:
    """The Q at which a run's own configuration has it tested, px; the centre crop is of one only."""
    if method == CENTRE:
        return run.config.single_Q[:1]
    return run.config.multi_Q if several else run.config.single_Q


@dataclass(frozen=True)
class StoredBoxes:
    """One stored set of final boxes."""

    protocol: FoundKey
    run: RunDirectory
    guesses: str
    """Who named the classes; empty for the centre crop, which is given the true one."""
    top5: float
    """Their top-5 classification error, per cent."""

    @cached_property
    def found(self) -> Found:
        """The boxes. Raises UserError."""
        found = self.protocol.load(self.run)
        assert found is not None
        return found

    @cached_property
    def truth(self) -> Truth:
        """What was to be found. Raises UserError."""
        part = self.protocol.parts[0]
        truth = load_truth(self.run, part.data, part.boxes)
        if len(truth.labels) != len(self.found.classes):
            raise UserError(
                f"boxes {self.protocol.file(self.run)} are of {len(self.found.classes)} images and the true ones "
                f"beside them of {len(truth.labels)}; remove {self.run.boxes} and test again"
            )
        return truth

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,) which images are right by the protocol's measure: Table 8's for the centre crop, else Table 9's."""
        return self.right_given_class if self.is_centre else self.found.right(self.truth)

    @cached_property
    def right_given_class(self) -> NDArray[np.bool_]:
        """(n,) which images are right by Table 8's measure."""
        return self.found.right_given_class(self.truth)

    @property
    def target_key(self) -> tuple[str, str]:
        """Equal for sets of which the same is asked: the true boxes, and who named the classes."""
        return self.protocol.parts[0].boxes, self.protocol.parts[0].guesses

    @property
    def is_centre(self) -> bool:
        """Whether it is Table 8's test."""
        return self.protocol.method == CENTRE

    def baselines(self) -> dict[str, ErrorRate]:
        """The same measure with boxes that know nothing of the image, by what they are."""
        truth, classes = self.truth, self.found.classes
        boxes = {"the whole image": truth.full_image_boxes(), "a random box": truth.random_boxes()}
        errors = {}
        for name, box in boxes.items():
            blind = Found(np.repeat(box, classes.shape[1], axis=1).astype(np.float32), classes)
            errors[name] = error_of(blind.right_given_class(truth) if self.is_centre else blind.right(truth))
        return errors


class BoxCache:
    """The stored boxes of some runs of one group, by nets, Q and method; each read once."""

    def __init__(self, runs: Iterable[StoredRun]) -> None:
        self._stored: dict[tuple[object, ...], dict[tuple[str, str], StoredBoxes]] = {}
        known = [run for run in runs if run.weights and run.dataset]
        nets = {run.weights: run for run in known}
        for run in known:
            for protocol, note in FoundKey.listed(run.run_directory):
                if _is_of(protocol, nets):
                    key = _key([(part.weights, part.Q) for part in protocol.parts], protocol.method)
                    made = StoredBoxes(protocol, run.run_directory, note.get("guesses", ""), note.get("top5", 0.0))
                    # nets may have been pooled in any order: the first one that is found stands for all
                    self._stored.setdefault(key, {}).setdefault(made.target_key, made)

    def of(self, asked: Sequence[RunAtQ], method: str) -> StoredBoxes | None:
        """The boxes of some nets, pooled where several, with the best guesses for which there are any; or None."""
        return min(self._options(asked, method).values(), key=_best_first, default=None)

    def both(
        self, first: Sequence[RunAtQ], second: Sequence[RunAtQ], method: str
    ) -> tuple[StoredBoxes, StoredBoxes] | None:
        """The boxes of two sides for the same true boxes and guesses, the best that both have; None without such."""
        one, other = self._options(first, method), self._options(second, method)
        shared = min((one[key] for key in one if key in other), key=_best_first, default=None)
        return None if shared is None else (shared, other[shared.target_key])

    def pooled(self) -> list[StoredBoxes]:
        """Every set of boxes that is of several nets, the best guesses of each."""
        sets = (min(options.values(), key=_best_first) for options in self._stored.values())
        return [one for one in sets if len({part.weights for part in one.protocol.parts}) > 1]

    def _options(self, asked: Sequence[RunAtQ], method: str) -> dict[tuple[str, str], StoredBoxes]:
        return self._stored.get(_key([(run.weights, side) for run, Q in asked for side in Q], method), {})


def _is_of(protocol: FoundKey, nets: Mapping[str | None, StoredRun]) -> bool:
    """Whether all parts are of these final nets, each on its own images, boxes and settings."""
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


def _best_first(one: StoredBoxes) -> tuple[float, tuple[str, str]]:
    """By the guesses' error; of equals always the same one, whatever the order of files."""
    return one.top5, one.target_key


def _key(parts: Sequence[tuple[str | None, int]], method: str) -> tuple[object, ...]:
    return method, *sorted(parts, key=str)
