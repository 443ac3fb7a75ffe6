"""The paper's sentences of Section 4 as paired tests on stored answers. No torch.

A claim compares two protocols on the same pictures. Its effect is the fall of the top-1 error that the claim asserts,
in percentage points, with a 95 % interval; the margins of "does not help" and "about as good" are ours and stated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vggrepro.evaluation.significance import Paired
from vggrepro.paper import Scale, value
from vggrepro.reporting.answers import AnswerBook, Answers, Asked, paired_top1
from vggrepro.reporting.runs import Recipe, StoredRun

Outcome = Literal["supported", "not supported", "undecided at this n", "not measured"]

MARGIN = 0.5
"""Points of top-1 error below which we call a gain none, or two nets about as good; the paper names no figure."""
SHALLOW = "B-5x5"
"""The net of Section 4.1 that has one 5x5 convolution for each pair of B's; `configs/ablation_B-5x5.yaml`."""


class Claim(BaseModel):
    """One sentence of the paper, tested on the runs of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    group: str
    section: str
    claim: str
    verdict: Outcome
    effect: float | None = None
    """Top-1 error of `worse` minus that of `better`, points; with several pairs of seeds, the mean over them."""
    interval: tuple[float, float] | None = None
    """95 %: over the pictures, or with several pairs of seeds over these (Student's t)."""
    p_value: float | None = None
    """McNemar's exact test, two-sided; with several pairs of seeds of the first."""
    n: int | None = None
    """Pictures."""
    seeds: int = 0
    """Pairs of runs."""
    spread: float | None = None
    """Sample standard deviation of the effect over the pairs, points."""
    better: str
    worse: str
    note: str = ""


@dataclass(frozen=True)
class _Side:
    """One protocol that a claim speaks of: nets (fused where several), Table 3's or 4's Q, and the method."""

    recipes: tuple[Recipe, ...]
    table: int
    method: str

    def __str__(self) -> str:
        scales = {S for _, S in self.recipes}
        S = ", ".join(f"[{S[0]};{S[1]}]" if isinstance(S, tuple) else str(S) for S in scales)
        nets = " + ".join(net for net, _ in self.recipes)
        return f"{nets} (S = {S}), {self.method}, {'one Q' if self.table == 3 else 'several Q'}"


@dataclass(frozen=True)
class _Statement:
    section: str
    text: str
    better: _Side
    worse: _Side
    kind: Literal["better", "no gain", "about as good"] = "better"


def _statements() -> Iterator[_Statement]:
    fixed, fine, jitter = value("scales")[0], value("scales")[1], value("jitter")

    def one(net: str, S: Scale, table: int = 3, method: str = "dense") -> _Side:
        return _Side(((net, S),), table, method)

    yield _Statement(
        "4.1",
        f"Local response normalisation does not help: A-LRN gains less than {MARGIN} points on A",
        one("A-LRN", fixed),
        one("A", fixed),
        "no gain",
    )
    yield _Statement("4.1", "Error falls with depth: B is better than A", one("B", fixed), one("A", fixed))
    yield _Statement("4.1", "More non-linearity helps: C is better than B", one("C", fixed), one("B", fixed))
    yield _Statement(
        "4.1", "Spatial context helps: D is better than C, as deep but with 3x3", one("D", fixed), one("C", fixed)
    )
    yield _Statement("4.1", "Error falls with depth: D is better than A", one("D", fixed), one("A", fixed))
    yield _Statement(
        "4.1",
        f"Error saturates at 19 layers: E is within {MARGIN} points of D",
        one("E", fixed),
        one("D", fixed),
        "about as good",
    )
    yield _Statement(
        "4.1",
        "Deep with small filters beats shallow with large ones: B is better than its 5x5 twin, centre crop",
        one("B", fixed, method="centre"),
        one(SHALLOW, fixed, method="centre"),
    )
    for net in ("C", "D", "E"):
        for S in (fixed, fine):
            text = f"Scale jitter in training helps: {net} at S = [{jitter[0]};{jitter[1]}] is better than at S = {S}"
            yield _Statement("4.1", text, one(net, jitter), one(net, S))
    for net, S in (("B", fixed), *((net, S) for net in ("A", "C", "D", "E") for S in (fixed, fine, jitter))):
        if net == "A" and S != fixed:
            continue
        S_text = f"[{S[0]};{S[1]}]" if isinstance(S, tuple) else S
        text = f"Scale jitter in testing helps: {net} at S = {S_text}, several Q are better than one"
        yield _Statement("4.2", text, one(net, S, 4), one(net, S, 3))
    for net in ("D", "E"):
        for better, worse in (("multicrop", "dense"), ("both", "dense"), ("both", "multicrop")):
            text = f"{net}: {better} is better than {worse}"
            yield _Statement("4.3", text, one(net, jitter, 4, better), one(net, jitter, 4, worse))
    for method in ("dense", "multicrop", "both"):
        for net in ("D", "E"):
            together = _Side((("D", jitter), ("E", jitter)), 4, method)
            text = f"Fusion helps: D and E together are better than {net}, {method}"
            yield _Statement("4.4", text, together, one(net, jitter, 4, method))


def check_claims(group: str, recipes: Mapping[Recipe, Sequence[StoredRun]], book: AnswerBook) -> list[Claim]:
    """Every claim, tested where the runs of the group allow it. Raises UserError."""
    return [_check(group, statement, recipes, book) for statement in _statements()]


def _check(group: str, statement: _Statement, recipes: Mapping[Recipe, Sequence[StoredRun]], book: AnswerBook) -> Claim:
    sides = (statement.better, statement.worse)
    named: dict[str, Any] = {
        "group": group,
        "section": statement.section,
        "claim": statement.text,
        "better": str(statement.better),
        "worse": str(statement.worse),
    }
    lacking = sorted({f"{net} at S = {S}" for side in sides for net, S in side.recipes if not recipes.get((net, S))})
    if lacking:
        return Claim(verdict="not measured", note=f"no run of {', '.join(lacking)}", **named)
    pairs = [pair for pair in _by_seed(statement, recipes, book) if pair]
    if not pairs:
        return Claim(verdict="not measured", note="no seed has stored posteriors of both sides", **named)
    tests = [paired_top1(worse, better) for better, worse in pairs]
    effects = [test.difference for test in tests]
    effect = statistics.mean(effects)
    spread = statistics.stdev(effects) if len(effects) > 1 else None
    interval = tests[0].interval if spread is None else _over_seeds(effect, spread, len(effects))
    return Claim(
        verdict=_outcome(statement.kind, tests, interval),
        effect=effect,
        interval=interval,
        p_value=tests[0].p_value,
        n=tests[0].n,
        seeds=len(tests),
        spread=spread,
        **named,
    )


def _by_seed(
    statement: _Statement, recipes: Mapping[Recipe, Sequence[StoredRun]], book: AnswerBook
) -> Iterator[tuple[Answers, Answers] | None]:
    """(better, worse) for each seed that all recipes of the claim were trained with."""
    used = {recipe for side in (statement.better, statement.worse) for recipe in side.recipes}
    by_seed = {recipe: {run.config.run.seed: run for run in recipes[recipe]} for recipe in used}
    for seed in sorted(set.intersection(*(set(runs) for runs in by_seed.values()))):

        def answers(side: _Side, seed: int = seed) -> Answers | None:
            runs = [by_seed[recipe][seed] for recipe in side.recipes]
            asked: list[Asked] = [(run, run.Q_of(side.table)) for run in runs]
            return book.of(asked, side.method)

        better, worse = answers(statement.better), answers(statement.worse)
        yield (better, worse) if better and worse else None


def _over_seeds(mean: float, spread: float, n: int) -> tuple[float, float]:
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return mean - half, mean + half


def _outcome(kind: str, tests: Sequence[Paired], interval: tuple[float, float]) -> Outcome:
    low, high = interval
    if kind == "better":
        # one pair: the exact test decides; several: the interval over seeds does
        decided = tests[0].p_value < 0.05 if len(tests) == 1 else not low <= 0 <= high
        if not decided:
            return "undecided at this n"
        return "supported" if low + high > 0 else "not supported"
    if kind == "no gain":
        return "supported" if high < MARGIN else "not supported" if low >= MARGIN else "undecided at this n"
    inside, outside = -MARGIN < low and high < MARGIN, low >= MARGIN or high <= -MARGIN
    return "supported" if inside else "not supported" if outside else "undecided at this n"
