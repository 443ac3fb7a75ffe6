"""Claims of the paper, tested by paired comparisons of stored results and judged by one rule. No torch.

A claim compares two sides on the same images or samples, seed by seed. Its effect is the gain of the side that the
claim calls better, in points, with a 95 % interval. The margin of "does not help" and "about as good" is ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from vggrepro.evaluation.significance import Comparison, SeedSpread
from vggrepro.reporting.stored.runs import NetsTest, StoredRun, departures_of

Assertion = Literal["better", "no gain", "about as good"]
Outcome = Literal["supported", "not supported", "undecided at this n", "not measured"]
Test = TypeVar("Test")

MARGIN = 0.5
"""Gains below this many points of top-1 error count as none, and two nets as about as good. Not in the paper."""


class Claim(BaseModel):
    """A sentence of the paper, tested on the runs of a group."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    group: str
    section: str
    claim: str
    verdict: Outcome
    effect: float | None = None
    """Gain of `better` over `worse` in points: the fall of the top-1 error, in Appendix A of the localisation error; in
    Appendix B the rise of the score. With several pairs of seeds, their mean."""
    interval: tuple[float, float] | None = None
    """95 % interval of the effect; `over` names its source of variation."""
    p_value: float | None = None
    """Two-sided. For a single pair: McNemar's exact test, in Appendix B the bootstrap. For several pairs: Student's t
    over the seeds with the pooled spread of all nets at the same S, or the normal approximation over the images."""
    over: Literal["images", "seeds"] | None = None
    """Variation that interval and p-value allow for: the choice of images with these nets, or also retraining, if the
    nets differ and each was trained with several seeds."""
    n: int | None = None
    """Number of images."""
    seeds: int = 0
    """Number of pairs of runs."""
    spread: float | None = None
    """Sample standard deviation of the effect over the pairs, points."""
    better: str
    """The side that the claim calls better: its runs and protocol, or the runs it needs if there are none."""
    worse: str
    departures: int | None = None
    """Number of settings in which the runs depart from the paper."""
    note: str = ""

    @property
    def heading(self) -> str:
        """First part of the claim, which several nets or protocols share."""
        return self.claim.partition(": ")[0]

    @property
    def subject(self) -> str:
        """Second part of the claim: the nets or protocols."""
        return self.claim.partition(": ")[2]


@dataclass(frozen=True)
class Trial(Generic[Test]):
    """A stored test by the runs of one seed."""

    seed: Hashable
    runs: Sequence[StoredRun]
    protocol: str
    """Description of the protocol."""
    test: Test
    """The test, as the comparison takes it."""


@dataclass(frozen=True)
class Side(Generic[Test]):
    """A side of a claim: a protocol of training and testing, and its trials."""

    words: str
    trials: Sequence[Trial[Test]]
    lacking: Sequence[str] = ()
    """Descriptions of the runs that are missing."""


@dataclass(frozen=True)
class Statement(Generic[Test]):
    """A sentence of the paper as two sides to compare."""

    section: str
    text: str
    better: Side[Test]
    worse: Side[Test]
    asserted: Assertion = "better"


Pair = tuple[Trial[Test], Trial[Test], Comparison]
"""Trials of the better and the worse side with the same seed, and the comparison of the worse with the better."""


def side_of_nets(
    words: str, method: str, nets: Mapping[str, tuple[Sequence[StoredRun], Callable[[StoredRun], tuple[int, ...]]]]
) -> Side[NetsTest]:
    """Returns a side of one or several nets: each has a description, runs (one per seed) and their test scales."""
    by_seed = [{run.config.run.seed: (run, Q_of(run)) for run in runs} for runs, Q_of in nets.values()]
    trials = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        tested = tuple(runs[seed] for runs in by_seed)
        Q = " + ".join(dict.fromkeys(", ".join(map(str, sides)) for _, sides in tested))
        trials.append(Trial(seed, [run for run, _ in tested], f"{method}, Q = {Q}", (tested, method)))
    return Side(words, trials, [net for net, (runs, _) in nets.items() if not runs])


def pairs_of(statement: Statement[Test], compare: Callable[[Test, Test], Comparison | None]) -> list[Pair[Test]]:
    """Returns the comparable trials of a statement's sides, one pair per seed.

    `compare(better, worse)` returns the comparison of the worse test with the better, or None for different images.
    """
    pairs: dict[Hashable, Pair[Test]] = {}
    for better, worse in product(statement.better.trials, statement.worse.trials):
        if better.seed != worse.seed or better.seed in pairs:
            continue
        if comparison := compare(better.test, worse.test):
            pairs[better.seed] = better, worse, comparison
    return list(pairs.values())


def claim_of(
    group: str,
    statement: Statement[Test],
    pairs: Sequence[Pair[Test]],
    unpaired: str,
    pooled: Comparison | None = None,
    retraining: SeedSpread | None = None,
) -> Claim:
    """Returns a statement as a claim, judged by its pairs; `unpaired` is the note if there are none. See `judge`."""
    common: dict[str, Any] = {"group": group, "section": statement.section, "claim": statement.text}
    if not pairs:
        common |= {"better": statement.better.words, "worse": statement.worse.words}
        return Claim(verdict="not measured", note=unpaired, **common)
    better, worse, comparisons = zip(*pairs, strict=True)
    return Claim(
        **judge(statement.asserted, comparisons, pooled, retraining),
        better=_describe(better),
        worse=_describe(worse),
        departures=departures_of(run for trial in (*better, *worse) for run in trial.runs),
        **common,
    )


def _describe(trials: Sequence[Trial[Test]]) -> str:
    """Returns the names of the runs of all seeds, and the protocol."""
    runs = ", ".join(" + ".join(run.name for run in trial.runs) for trial in trials)
    return f"{runs}: {trials[0].protocol}"


def judge(
    asserted: Assertion,
    tests: Sequence[Comparison],
    pooled: Comparison | None = None,
    retraining: SeedSpread | None = None,
) -> dict[str, Any]:
    """Judges a claim by its paired tests, comparisons of the worse side with the better one, one per seed.

    Args:
        asserted: What the claim asserts of the better side.
        tests: The comparisons.
        pooled: Comparison of all seeds together, if both sides are the same nets.
        retraining: Spread of the effect over other seeds, if known from more nets than these.

    Returns:
        The fields verdict, effect, interval, p_value, over, n, seeds and spread of a :class:`Claim`.
    """
    effects = [test.difference for test in tests]
    effect = statistics.mean(effects)
    spread = statistics.stdev(effects) if len(effects) > 1 else None
    if spread is None or pooled:
        comparison = pooled or tests[0]
        over, interval, p_value = "images", comparison.interval, comparison.p_value
    else:
        over = "seeds"
        retraining = retraining or SeedSpread(spread**2, len(effects) - 1).of_mean(len(effects))
        interval, p_value = retraining.interval(effect), retraining.p_value(effect)
    return {
        "over": over,
        "verdict": _outcome(asserted, tests, interval),
        "effect": effect,
        "interval": interval,
        "p_value": p_value,
        "n": tests[0].n,
        "seeds": len(tests),
        "spread": spread,
    }


def _outcome(asserted: Assertion, tests: Sequence[Comparison], interval: tuple[float, float]) -> Outcome:
    low, high = interval
    if asserted == "better":
        # one pair: the exact test decides; several: the interval over seeds does
        decided = tests[0].p_value < 0.05 if len(tests) == 1 else not low <= 0 <= high
        if not decided:
            return "undecided at this n"
        return "supported" if low + high > 0 else "not supported"
    if asserted == "no gain":
        return "supported" if high < MARGIN else "not supported" if low >= MARGIN else "undecided at this n"
    inside, outside = -MARGIN < low and high < MARGIN, low >= MARGIN or high <= -MARGIN
    return "supported" if inside else "not supported" if outside else "undecided at this n"
