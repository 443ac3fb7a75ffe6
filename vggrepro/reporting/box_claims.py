"""What the paper claims in Appendix A, as paired tests on stored boxes. No torch.

The effect is the fall of the localisation error that a claim asserts, in points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vggrepro.evaluation.box_store import CENTRE, DENSE
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.paper import Scale, scale_text, value
from vggrepro.reporting.claims import Claim, judge
from vggrepro.reporting.found_boxes import AskedBoxes, BoxCache, Kind, kind_of, own_Q
from vggrepro.reporting.runs import StoredRun, chosen_by, departures_of


@dataclass(frozen=True)
class _Side:
    """One protocol that a claim speaks of: nets (pooled where several), each at one Q or at several, and the method."""

    nets: tuple[tuple[Kind, bool], ...]
    """(kind, whether at several Q)."""
    method: str = DENSE

    def __str__(self) -> str:
        told = [
            f"{regression} ({fine_tune}) at S = {scale_text(S)}, {'several Q' if several else 'one Q'}"
            for (S, regression, fine_tune), several in self.nets
        ]
        return f"{' + '.join(told)}: {self.method}"

    def asked(self, recipes: Mapping[Kind, Sequence[StoredRun]], seed: int) -> list[AskedBoxes]:
        """Its runs of one seed, and the Q they are tested at."""
        return [
            (run, own_Q(run, self.method, several=several))
            for kind, several in self.nets
            for run in recipes[kind]
            if run.config.run.seed == seed
        ]


@dataclass(frozen=True)
class _Statement:
    text: str
    better: _Side
    worse: _Side
    given_class: bool = False
    """By Table 8's measure: the true class is given."""


def _statements() -> Iterator[_Statement]:
    coarse, fine = value("scales")

    def centre(regression: str, fine_tune: str) -> _Side:
        return _Side((((fine, regression, fine_tune), False),), CENTRE)

    def dense(S: Scale, *, several: bool = False) -> tuple[Kind, bool]:
        return (S, "PCR", "all"), several

    yield _Statement(
        "A box for each class is better than one for all: PCR and SCR, FC layers trained, centre crop",
        centre("PCR", "fc"),
        centre("SCR", "fc"),
        given_class=True,
    )
    yield _Statement(
        "Fine-tuning all layers is better than the FC layers alone: PCR, centre crop",
        centre("PCR", "all"),
        centre("PCR", "fc"),
        given_class=True,
    )
    for S in (coarse, fine):
        text = f"The whole image is better than its centre crop: PCR at S = {S}, the class given in both"
        yield _Statement(text, _Side((dense(S),)), _Side((dense(S),), CENTRE), given_class=True)
    yield _Statement(
        f"The larger scale is better: S = {fine} and S = {coarse}, dense",
        _Side((dense(fine),)),
        _Side((dense(coarse),)),
    )
    two, one_net = _Side((dense(fine, several=True),)), _Side((dense(coarse),))
    yield _Statement(f"Two test scales are better than one: S = {fine}", two, _Side((dense(fine),)))
    fused = _Side((dense(coarse), dense(fine, several=True)))
    for S, alone in ((fine, two), (coarse, one_net)):
        yield _Statement(f"Two nets, their boxes pooled, are better than the one at S = {S}", fused, alone)


def check_box_claims(group: str, runs: Sequence[StoredRun], cache: BoxCache) -> list[Claim]:
    """Every claim of Appendix A, tested where the runs of the group allow it. Raises UserError."""
    recipes = chosen_by(kind_of, (run for run in runs if run.net == value("localisation_net")))
    return [_check(group, statement, recipes, cache) for statement in _statements()]


def _check(group: str, statement: _Statement, recipes: Mapping[Kind, Sequence[StoredRun]], cache: BoxCache) -> Claim:
    sides = (statement.better, statement.worse)
    named: dict[str, Any] = {
        "group": group,
        "section": "A",
        "claim": statement.text,
        "better": str(statement.better),
        "worse": str(statement.worse),
    }
    kinds = [kind for side in sides for kind, _ in side.nets]
    if lacking := sorted({f"{regression}, {tuned}, S = {S}" for S, regression, tuned in kinds if
                          not recipes.get((S, regression, tuned))}):  # fmt: skip
        return Claim(verdict="not measured", note=f"no run of {'; '.join(lacking)}", **named)
    seeds = sorted(set.intersection(*({run.config.run.seed for run in recipes[kind]} for kind in kinds)))
    measured: list[tuple[list[list[AskedBoxes]], Paired]] = []
    for seed in seeds:
        asked = [side.asked(recipes, seed) for side in sides]
        if sides[0].method == sides[1].method and asked[0] == asked[1]:
            return Claim(verdict="not measured", note="both sides are tested at the same Q", **named)
        if test := _test(statement, asked, cache):
            measured.append((asked, test))
    if not measured:
        note = "no seed has boxes of both sides for the same images and guesses"
        return Claim(verdict="not measured", note=note, **named)
    for n, side in enumerate(("better", "worse")):
        named[side] = _told(sides[n], [asked[n] for asked, _ in measured])
    runs = [run for asked, _ in measured for side in asked for run, _ in side]
    return Claim(**judge("better", [test for _, test in measured]), departures=departures_of(runs), **named)


def _test(statement: _Statement, asked: Sequence[Sequence[AskedBoxes]], cache: BoxCache) -> Paired | None:
    """The worse side against the better one on the same images, with the same guesses; None where boxes are missing."""
    better, worse = asked
    if statement.given_class:  # no guess matters
        first = cache.of(worse, statement.worse.method)
        second = cache.of(better, statement.better.method)
        if not first or not second or first.sought[0] != second.sought[0]:
            return None
        return paired_right(first.right_given_class, second.right_given_class)
    both = cache.both(worse, better, DENSE)
    return paired_right(both[0].right, both[1].right) if both else None


def _told(side: _Side, pairs: Sequence[Sequence[AskedBoxes]]) -> str:
    """The runs of all seeds, with the protocol."""
    runs = ", ".join(" + ".join(run.name for run, _ in asked) for asked in pairs)
    Q = " + ".join(", ".join(map(str, Q)) for _, Q in pairs[0])
    return f"{runs}: {side.method}, Q = {Q}"
