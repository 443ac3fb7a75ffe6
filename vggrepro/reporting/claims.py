"""The paper's sentences of Section 4 as paired tests on stored posteriors. No torch.

A claim compares two protocols on the same images. Its effect is the fall of the top-1 error that the claim asserts,
in percentage points, with a 95 % interval; the margins of "does not help" and "about as good" are ours and stated.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vggrepro.evaluation.significance import Comparison, SeedSpread, paired_mean
from vggrepro.paper import Scale, scale_text, value
from vggrepro.reporting.predictions import PredictionCache, paired_top1
from vggrepro.reporting.runs import Asked, Recipe, StoredRun, departures_of, recipe_of, variants_by

Kind = Literal["better", "no gain", "about as good"]
Outcome = Literal["supported", "not supported", "undecided at this n", "not measured"]

MARGIN = 0.5
"""Points of top-1 error below which we call a gain none, or two nets about as good; the paper names no figure."""
_SAID = {"dense": "dense", "multicrop": "multi-crop", "both": "both"}
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
class _Side:
    """One protocol that a claim speaks of: nets (fused where several), Table 3's or 4's Q, and the method."""

    recipes: tuple[Recipe, ...]
    table: int
    method: str

    def __str__(self) -> str:
        scales = {S for _, S in self.recipes}
        S = ", ".join(map(scale_text, scales))
        nets = " + ".join(net for net, _ in self.recipes)
        return f"{nets} at S = {S}: {self.method}, {'one Q' if self.table == 3 else 'several Q'}"

    def asked(self, recipes: Mapping[Recipe, Sequence[StoredRun]], seed: int) -> list[Asked]:
        """Its runs of one seed, and the Q they are tested at."""
        runs = (run for recipe in self.recipes for run in recipes[recipe] if run.config.run.seed == seed)
        return [(run, run.Q_of(self.table)) for run in runs]

    def told(self, pairs: Sequence[Sequence[Asked]]) -> str:
        """The runs of all seeds, with the protocol."""
        runs = ", ".join(" + ".join(run.name for run, _ in asked) for asked in pairs)
        Q = " + ".join(dict.fromkeys(", ".join(map(str, Q)) for _, Q in pairs[0]))
        return f"{runs}: {self.method}, Q = {Q}"


@dataclass(frozen=True)
class _Statement:
    section: str
    text: str
    better: _Side
    worse: _Side
    kind: Kind = "better"


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
            text = f"Scale jitter in training helps: {net} at S = {scale_text(jitter)} is better than at S = {S}"
            yield _Statement("4.1", text, one(net, jitter), one(net, S))
    for net, S in (("A", fixed), ("B", fixed), *((net, S) for net in ("C", "D", "E") for S in (fixed, fine, jitter))):
        text = f"Scale jitter in testing helps: {net} at S = {scale_text(S)}, several Q are better than one"
        yield _Statement("4.2", text, one(net, S, 4), one(net, S, 3))
    for net in ("D", "E"):
        for better, worse in (("multicrop", "dense"), ("both", "dense"), ("both", "multicrop")):
            text = f"{_SAID[better].capitalize()} is better than {_SAID[worse]}: {net}"
            yield _Statement("4.3", text, one(net, jitter, 4, better), one(net, jitter, 4, worse))
    for method in ("dense", "multicrop", "both"):
        for net in ("D", "E"):
            together = _Side((("D", jitter), ("E", jitter)), 4, method)
            text = f"Fusion helps: D and E together are better than {net}, {_SAID[method]}"
            yield _Statement("4.4", text, together, one(net, jitter, 4, method))


SeedSpreads = Mapping[Scale, SeedSpread]
"""By the S at which nets were trained."""


def spreads_over_seeds(recipes: Mapping[Recipe, Sequence[StoredRun]], cache: PredictionCache) -> SeedSpreads:
    """Of the nets at each S together, dense at one Q, as in a one-way analysis of variance.

    Two or three seeds of one net hardly tell a spread; half a dozen nets of two or three do. Raises UserError.
    """
    squares: dict[Scale, list[tuple[float, int]]] = {}
    for (_, S), runs in recipes.items():
        found = [cache.ranks([(run, run.Q_of(3))], "dense") for run in runs]
        errors = [ranks.top1.percent for ranks in found if ranks]
        if len(errors) > 1:
            df = len(errors) - 1
            squares.setdefault(S, []).append((df * statistics.variance(errors), df))
    pooled = {S: [sum(column) for column in zip(*parts, strict=True)] for S, parts in squares.items()}
    return {S: SeedSpread(total / df, df) for S, (total, df) in pooled.items()}


def check_claims(
    group: str, recipes: Mapping[Recipe, Sequence[StoredRun]], cache: PredictionCache, spreads: SeedSpreads
) -> list[Claim]:
    """Every claim, tested where the runs of the group allow it. Raises UserError."""
    return [_check(group, statement, recipes, cache, spreads) for statement in _statements()]


def dense_over_centre(group: str, recipes: Mapping[Recipe, Sequence[StoredRun]], cache: PredictionCache) -> list[Claim]:
    """What each net gains by the dense test at one Q over the centre crop at the same Q, where both are stored.

    The paper compares dense testing with many crops only, but most published figures are of the one in the middle.
    Raises UserError.
    """
    text = "Dense testing helps: {} at S = {} is better dense than on the centre crop"
    tested = []
    for net, S in recipes:
        dense, centre = (_Side(((net, S),), 3, method) for method in ("dense", "centre"))
        statement = _Statement("3.2", text.format(net, scale_text(S)), dense, centre)
        tested.append(_check(group, statement, recipes, cache, {}))  # the same nets on both sides
    return [one for one in tested if one.verdict != "not measured"]


def start_from_parent(
    group: str, runs: Sequence[StoredRun], cache: PredictionCache, spreads: SeedSpreads
) -> list[Claim]:
    """What each net gains by its parent's weights over random ones, where it was trained from both, and alike.

    The paper starts the deeper nets from A, and says that Glorot's initialisation would have done without (Section
    3.1); it gives no figures. Raises UserError.
    """
    tested = []
    for (net, S), variants in variants_by(recipe_of, runs).items():
        starts = {(same[0].but_for_the_start, bool(same[0].config.run.parent)): same for same in variants}
        for (alike, has_parent), warm in starts.items():
            if has_parent and (cold := starts.get((alike, False))):
                recipes = {(net, S): warm, (f"{net} from random weights", S): cold}
                text = f"The start from another net helps: {net} at S = {scale_text(S)}, against random weights"
                better, worse = (_Side((recipe,), 3, "dense") for recipe in recipes)
                tested.append(_check(group, _Statement("3.1", text, better, worse), recipes, cache, spreads))
    return [one for one in tested if one.verdict != "not measured"]


def _check(
    group: str,
    statement: _Statement,
    recipes: Mapping[Recipe, Sequence[StoredRun]],
    cache: PredictionCache,
    spreads: SeedSpreads,
) -> Claim:
    sides = (statement.better, statement.worse)
    named: dict[str, Any] = {
        "group": group,
        "section": statement.section,
        "claim": statement.text,
        "better": str(statement.better),
        "worse": str(statement.worse),
    }
    lacking = sorted(
        {f"{net} at S = {scale_text(S)}" for side in sides for net, S in side.recipes if not recipes.get((net, S))}
    )
    if lacking:
        return Claim(verdict="not measured", note=f"no run of {', '.join(lacking)}", **named)
    used = [recipes[recipe] for side in sides for recipe in side.recipes]
    seeds = set.intersection(*({run.config.run.seed for run in runs} for runs in used))
    asked = [[side.asked(recipes, seed) for side in sides] for seed in sorted(seeds)]
    found = [[cache.ranks(one, side.method) for one, side in zip(both, sides, strict=True)] for both in asked]
    measured = [(both, better, worse) for both, (better, worse) in zip(asked, found, strict=True) if better and worse]
    if not measured:
        return Claim(verdict="not measured", note="no seed has stored posteriors of both sides", **named)
    for n, side in enumerate(("better", "worse")):
        named[side] = sides[n].told([both[n] for both, *_ in measured])
    runs = [run for both, *_ in measured for side in both for run, _ in side]
    tests = [paired_top1(worse, better) for _, better, worse in measured]
    whole = None
    if len(tests) > 1 and all(_same_nets(*both) for both, *_ in measured):
        whole = paired_mean([(worse.right1, better.right1) for _, better, worse in measured])
    apart = _apart(statement, spreads, len(tests))
    return Claim(**judge(statement.kind, tests, whole, apart), departures=departures_of(runs), **named)


def _apart(statement: _Statement, spreads: SeedSpreads, seeds: int) -> SeedSpread | None:
    """How far the effect, a difference of two means over seeds, would move if all were trained anew; None: unknown."""
    (_, S), (_, other) = statement.better.recipes[0], statement.worse.recipes[0]
    if S not in spreads or other not in spreads:
        return None
    first, second = spreads[S].of_mean(seeds), spreads[other].of_mean(seeds)
    return SeedSpread(2 * first.variance, first.df) if S == other else first + second


def _same_nets(better: Sequence[Asked], worse: Sequence[Asked]) -> bool:
    """Whether one side's nets are among the other's, so that nothing was trained anew between them."""
    first, second = ({run.path for run, _ in side} for side in (better, worse))
    return first <= second or second <= first


def judge(
    kind: Kind, tests: Sequence[Comparison], whole: Comparison | None = None, apart: SeedSpread | None = None
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
        "verdict": _outcome(kind, tests, interval),
        "effect": effect,
        "interval": interval,
        "p_value": p_value,
        "n": tests[0].n,
        "seeds": len(tests),
        "spread": spread,
    }


def _outcome(kind: Kind, tests: Sequence[Comparison], interval: tuple[float, float]) -> Outcome:
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
