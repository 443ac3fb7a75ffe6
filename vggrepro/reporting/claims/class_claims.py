"""The claims of Sections 3 and 4 as paired tests on stored posteriors. No torch.

The effect is the fall of the top-1 error that a claim asserts, in percentage points.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from vggrepro.evaluation.significance import Comparison, SeedSpread, paired_mean
from vggrepro.paper import Scale, facts, scale_text, value
from vggrepro.reporting.claims.claim import (
    MARGIN,
    Assertion,
    Claim,
    Pair,
    Side,
    Statement,
    claim_of,
    pairs_of,
    side_of_nets,
)
from vggrepro.reporting.stored.predictions import PredictionCache, paired_top1
from vggrepro.reporting.stored.runs import NetsTest, Recipe, StoredRun, recipe_of, variants_by

Recipes = Mapping[Recipe, Sequence[StoredRun]]
"""The runs that represent a recipe, one per seed."""
SeedSpreads = Mapping[Scale, SeedSpread]
"""Spread over seeds by training scale S."""

_METHODS = {"dense": "dense", "multicrop": "multi-crop", "both": "both"}
SHALLOW = "B-5x5"
"""The shallow net of Section 4.1, with a 5x5 convolution for each pair of B's; `configs/ablation_B-5x5.yaml`."""


def _side(recipes: Recipes, *nets: Recipe, table: int = 3, method: str = "dense") -> Side[NetsTest]:
    """Returns a side of one net or of fused nets, at the one Q of Table 3 or the several of Table 4."""
    S = ", ".join(dict.fromkeys(scale_text(S) for _, S in nets))
    words = f"{' + '.join(net for net, _ in nets)} at S = {S}: {method}, {'one Q' if table == 3 else 'several Q'}"
    members = {
        f"{net} at S = {scale_text(S)}": (recipes.get((net, S), ()), lambda run: run.Q_of(table)) for net, S in nets
    }
    return side_of_nets(words, method, members)


def _statements(recipes: Recipes) -> Iterator[Statement[NetsTest]]:
    fixed, fine, jitter = value("scales")[0], value("scales")[1], value("jitter")

    def side(net: str, S: Scale, table: int = 3, method: str = "dense") -> Side[NetsTest]:
        return _side(recipes, (net, S), table=table, method=method)

    nets: tuple[tuple[str, str, str, Assertion], ...] = (
        (f"Local response normalisation does not help: A-LRN gains less than {MARGIN} points on A", "A-LRN", "A",
         "no gain"),
        ("Error falls with depth: B is better than A", "B", "A", "better"),
        ("More non-linearity helps: C is better than B", "C", "B", "better"),
        ("Spatial context helps: D is better than C, as deep but with 3x3", "D", "C", "better"),
        ("Error falls with depth: D is better than A", "D", "A", "better"),
        (f"Error saturates at 19 layers: E is within {MARGIN} points of D", "E", "D", "about as good"),
    )  # fmt: skip
    for text, better, worse, asserted in nets:
        yield Statement("4.1", text, side(better, fixed), side(worse, fixed), asserted)
    text = "Deep with small filters beats shallow with large ones: B is better than its 5x5 twin, centre crop"
    yield Statement("4.1", text, side("B", fixed, method="centre"), side(SHALLOW, fixed, method="centre"))
    for net in ("C", "D", "E"):
        for S in (fixed, fine):
            text = f"Scale jitter in training helps: {net} at S = {scale_text(jitter)} is better than at S = {S}"
            yield Statement("4.1", text, side(net, jitter), side(net, S))
    for net, S in dict.fromkeys((row.nets[0], row.S) for row in facts().table(4)):
        assert S is not None
        text = f"Scale jitter in testing helps: {net} at S = {scale_text(S)}, several Q are better than one"
        yield Statement("4.2", text, side(net, S, 4), side(net, S, 3))
    for net in ("D", "E"):
        for better, worse in (("multicrop", "dense"), ("both", "dense"), ("both", "multicrop")):
            text = f"{_METHODS[better].capitalize()} is better than {_METHODS[worse]}: {net}"
            yield Statement("4.3", text, side(net, jitter, 4, better), side(net, jitter, 4, worse))
    for method, words in _METHODS.items():
        for net in ("D", "E"):
            text = f"Fusion helps: D and E together are better than {net}, {words}"
            together = _side(recipes, ("D", jitter), ("E", jitter), table=4, method=method)
            yield Statement("4.4", text, together, side(net, jitter, 4, method))


def spreads_over_seeds(recipes: Recipes, cache: PredictionCache) -> SeedSpreads:
    """Returns the spread over seeds at each S, pooled over nets as in a one-way analysis of variance (dense, one Q).

    Two or three seeds of one net hardly determine a spread; those of half a dozen nets do. Raises UserError.
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


def check_claims(group: str, recipes: Recipes, cache: PredictionCache, spreads: SeedSpreads) -> list[Claim]:
    """Returns every claim of Section 4, tested if the runs of the group allow it. Raises UserError."""
    return [_check(group, statement, cache, spreads) for statement in _statements(recipes)]


def dense_over_centre(group: str, recipes: Recipes, cache: PredictionCache) -> list[Claim]:
    """Returns the gain of each net by the dense test over the centre crop at the same Q, if both are stored.

    The paper compares dense testing with multi-crop only, but most published figures use the centre crop.
    Raises UserError.
    """
    tested = []
    for net, S in recipes:
        text = f"Dense testing helps: {net} at S = {scale_text(S)} is better dense than on the centre crop"
        dense, centre = (_side(recipes, (net, S), method=method) for method in ("dense", "centre"))
        tested.append(_check(group, Statement("3.2", text, dense, centre), cache, {}))  # the same nets on both sides
    return [claim for claim in tested if claim.verdict != "not measured"]


def start_from_parent(
    group: str, runs: Sequence[StoredRun], cache: PredictionCache, spreads: SeedSpreads
) -> list[Claim]:
    """Returns the gain of each net by its parent's weights over random ones, if it was trained alike from both.

    The paper starts the deeper nets from A and states, without figures, that Glorot's initialisation would have done
    as well (Section 3.1). Raises UserError.
    """
    tested = []
    for (net, S), variants in variants_by(recipe_of, runs).items():
        starts = {(runs[0].recipe_without_init, bool(runs[0].config.run.parent)): runs for runs in variants}
        for (recipe_without_init, has_parent), warm in starts.items():
            if has_parent and (cold := starts.get((recipe_without_init, False))):
                recipes = {(net, S): warm, (f"{net} from random weights", S): cold}
                text = f"The start from another net helps: {net} at S = {scale_text(S)}, against random weights"
                better, worse = (_side(recipes, recipe) for recipe in recipes)
                tested.append(_check(group, Statement("3.1", text, better, worse), cache, spreads))
    return [claim for claim in tested if claim.verdict != "not measured"]


def _check(group: str, statement: Statement[NetsTest], cache: PredictionCache, spreads: SeedSpreads) -> Claim:
    def compare(better: NetsTest, worse: NetsTest) -> Comparison | None:
        second, first = cache.ranks(*better), cache.ranks(*worse)
        return paired_top1(first, second) if first and second else None

    lacking = ", ".join(sorted({*statement.better.lacking, *statement.worse.lacking}))
    unpaired = f"no run of {lacking}" if lacking else "no seed has stored posteriors of both sides"
    pairs = pairs_of(statement, compare)
    return claim_of(group, statement, pairs, unpaired, _pooled(pairs, cache), _retraining(pairs, spreads))


def _pooled(pairs: Sequence[Pair[NetsTest]], cache: PredictionCache) -> Comparison | None:
    """Compares all seeds together if one side's nets are among the other's: no retraining separates them."""
    nets = [[{run.path for run in trial.runs} for trial in (better, worse)] for better, worse, _ in pairs]
    if len(pairs) < 2 or not all(better <= worse or worse <= better for better, worse in nets):
        return None
    ranks = [(cache.ranks(*worse.test), cache.ranks(*better.test)) for better, worse, _ in pairs]
    return paired_mean([(first.right1, second.right1) for first, second in ranks if first and second])


def _retraining(pairs: Sequence[Pair[NetsTest]], spreads: SeedSpreads) -> SeedSpread | None:
    """Returns the spread that retraining gives the effect, a difference of two means over seeds; None if unknown."""
    trained = [trial.runs[0].S for trial in pairs[0][:2]] if pairs else []
    if not pairs or any(S not in spreads for S in trained):
        return None
    first, second = (spreads[S].of_mean(len(pairs)) for S in trained)
    return SeedSpread(2 * first.variance, first.df) if trained[0] == trained[1] else first + second
