"""A claim of the paper, and how it is tested: paired comparisons of stored tests, judged by one rule. No torch.

A claim compares two sides on the same images or samples, seed by seed. Its effect is what the side that the claim calls
better gains, in points, with a 95 % interval; the margins of "does not help" and "about as good" are ours and stated.
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
"""Points of top-1 error below which we call a gain none, or two nets about as good; the paper names no figure."""


class Claim(BaseModel):
    """One sentence of the paper, tested on the runs of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    group: str
    section: str
    claim: str
    verdict: Outcome
    effect: float | None = None
    """Top-1 error, of Appendix A localisation error, of `worse` minus that of `better`, points; of Appendix B the
    figure of `better` minus that of `worse`. With several pairs of seeds, the mean over them."""
    interval: tuple[float, float] | None = None
    """95 %, over what `over` says."""
    p_value: float | None = None
    """Two-sided. One pair: McNemar's exact test, of Appendix B the bootstrap. Several: Student's t over the seeds, with
    the spread of all nets at the same S together, or over the images the normal approximation."""
    over: Literal["images", "seeds"] | None = None
    """What interval and p-value allow for: the choice of images, with these nets as they are; or training anew, too,
    where nets differ and each was trained with several seeds."""
    n: int | None = None
    """Images."""
    seeds: int = 0
    """Pairs of runs."""
    spread: float | None = None
    """Sample standard deviation of the effect over the pairs, points."""
    better: str
    """What the claim says is better: the runs with their protocol, or what is asked for where there are none."""
    worse: str
    departures: int | None = None
    """Settings in which the runs depart from the paper."""
    note: str = ""

    @property
    def heading(self) -> str:
        """What the claim says of several nets or protocols."""
        return self.claim.partition(": ")[0]

    @property
    def subject(self) -> str:
        """Of which it says so."""
        return self.claim.partition(": ")[2]


@dataclass(frozen=True)
class Trial(Generic[Test]):
    """What the runs of one seed have of a side."""

    seed: Hashable
    runs: Sequence[StoredRun]
    protocol: str
    """In words."""
    test: Test
    """What is compared."""


@dataclass(frozen=True)
class Side(Generic[Test]):
    """One protocol of training and testing that a claim speaks of, in words, and its trials."""

    words: str
    trials: Sequence[Trial[Test]]
    lacking: Sequence[str] = ()
    """Of what there is no run."""


@dataclass(frozen=True)
class Statement(Generic[Test]):
    """A sentence of the paper and its two sides."""

    section: str
    text: str
    better: Side[Test]
    worse: Side[Test]
    asserted: Assertion = "better"


Pair = tuple[Trial[Test], Trial[Test], Comparison]
"""What the better and the worse side have of one seed, and the comparison of the worse with the better."""


def side_of_nets(
    words: str, method: str, nets: Mapping[str, tuple[Sequence[StoredRun], Callable[[StoredRun], tuple[int, ...]]]]
) -> Side[NetsTest]:
    """A side of some nets together: for each, by its words, the runs (one a seed), and at which Q they are tested."""
    by_seed = [{run.config.run.seed: (run, Q_of(run)) for run in runs} for runs, Q_of in nets.values()]
    trials = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        tested = tuple(runs[seed] for runs in by_seed)
        Q = " + ".join(dict.fromkeys(", ".join(map(str, sides)) for _, sides in tested))
        trials.append(Trial(seed, [run for run, _ in tested], f"{method}, Q = {Q}", (tested, method)))
    return Side(words, trials, [net for net, (runs, _) in nets.items() if not runs])


def pairs_of(statement: Statement[Test], compare: Callable[[Test, Test], Comparison | None]) -> list[Pair[Test]]:
    """The trials of a statement's sides that can be compared, one pair a seed.

    `compare` takes the test of the better side and that of the worse, and gives the comparison of the worse with the
    better one, or None where they are not of the same images.
    """
    pairs: dict[Hashable, Pair[Test]] = {}
    for better, worse in product(statement.better.trials, statement.worse.trials):
        alike = better.seed == worse.seed and better.seed not in pairs
        if alike and (comparison := compare(better.test, worse.test)):
            pairs[better.seed] = better, worse, comparison
    return list(pairs.values())


def claim_of(
    group: str,
    statement: Statement[Test],
    pairs: Sequence[Pair[Test]],
    unpaired: str,
    whole: Comparison | None = None,
    apart: SeedSpread | None = None,
) -> Claim:
    """The claim of a statement, judged by its pairs; `unpaired` says why there are none. The rest as in `judge`."""
    named: dict[str, Any] = {"group": group, "section": statement.section, "claim": statement.text}
    if not pairs:
        named |= {"better": statement.better.words, "worse": statement.worse.words}
        return Claim(verdict="not measured", note=unpaired, **named)
    better, worse, comparisons = zip(*pairs, strict=True)
    return Claim(
        **judge(statement.asserted, comparisons, whole, apart),
        better=_named(better),
        worse=_named(worse),
        departures=departures_of(run for trial in (*better, *worse) for run in trial.runs),
        **named,
    )


def _named(trials: Sequence[Trial[Test]]) -> str:
    """The runs of all seeds, with the protocol."""
    runs = ", ".join(" + ".join(run.name for run in trial.runs) for trial in trials)
    return f"{runs}: {trials[0].protocol}"


def judge(
    asserted: Assertion, tests: Sequence[Comparison], whole: Comparison | None = None, apart: SeedSpread | None = None
) -> dict[str, Any]:
    """What a claim's paired tests, one a seed, say of it: verdict, effect, interval, p_value, over, n, seeds, spread.

    Each compares the side that is said to be worse with the better one. `whole` is the comparison of all seeds
    together, where both sides are the same nets; `apart` how far other seeds would move the effect, where that is
    known from more nets than these.
    """
    effects = [test.difference for test in tests]
    effect = statistics.mean(effects)
    spread = statistics.stdev(effects) if len(effects) > 1 else None
    if spread is None or whole:
        all_of_it = whole or tests[0]
        over, interval, p_value = "images", all_of_it.interval, all_of_it.p_value
    else:
        over = "seeds"
        moved = apart or SeedSpread(spread**2, len(effects) - 1).of_mean(len(effects))
        interval, p_value = moved.interval(effect), moved.p_value(effect)
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
