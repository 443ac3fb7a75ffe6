"""What the paper claims in Appendix B, as paired comparisons of stored tests. No torch.

The effect is the rise of the figure that a claim asserts, in points of mean average precision or of mean class recall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vggrepro.evaluation.feature_spec import task_of
from vggrepro.evaluation.recognition import compare
from vggrepro.evaluation.significance import Comparison
from vggrepro.paper import facts, value
from vggrepro.reporting.claims.claim import MARGIN, Assertion, Claim, Side, Statement, Trial, claim_of, pairs_of
from vggrepro.reporting.stored.runs import StoredRun, chosen_by, recipe_of
from vggrepro.reporting.stored.stored_transfers import StoredTransfer

TRANSFER = "transfer"  # the group of these claims, which are of other images than those that nets were trained on
_D, _E, _BOTH = ("D",), ("E",), ("D", "E")


def _statements(name: str, tests: Sequence[StoredTransfer]) -> Iterator[Statement[StoredTransfer]]:
    """What is claimed of a data set; of a folder of classes that the paper does not know, what it says of Caltech."""
    task = task_of(name)
    several, combine = len(task.scales), task.combine
    main = f"{several} Q, {combine}"

    def side(
        nets: tuple[str, ...], how: str = main, *, scales: int = several, by: str = combine, box: bool = False
    ) -> Side[StoredTransfer]:
        trials = []
        for one in tests:
            asked = one.found.protocol
            if one.nets == nets and (len(asked.nets[0].Q), asked.combine, asked.boxes) == (scales, by, box):
                seed = tuple(sorted({run.config.run.seed for run in one.runs}))
                trials.append(Trial(seed, one.runs, f"{how} on {name}", one))
        words = f"{' + '.join(nets)}: {how} on {name}"
        return Side(words, trials, [] if trials else [words])

    def of(
        text: str, better: Side[StoredTransfer], worse: Side[StoredTransfer], asserted: Assertion = "better"
    ) -> Statement[StoredTransfer]:
        return Statement("B", f"{name}: {text}", better, worse, asserted)

    if task.table == 12:
        text = "the person's box beside the image is better than the image alone, D and E stacked"
        yield of(text, side(_BOTH, "image and box", box=True), side(_BOTH, "image"))
        return
    yield of(f"D and E are about as good, within {MARGIN} points", side(_E), side(_D), "about as good")
    for net in (_D, _E):
        yield of(f"D and E stacked are better than {net[0]}", side(_BOTH), side(net))
    for net in (_D, _E):
        if combine == "average":
            yield of(f"five scales are better than three, {net[0]}", side(net), side(net, "3 Q", scales=3))
            stacked = side(net, f"{several} Q, stack", by="stack")
            text = f"averaging over scales is about as good as stacking, {net[0]}"
            yield of(text, side(net), stacked, "about as good")
        else:
            averaged = side(net, f"{several} Q, average", by="average")
            yield of(f"stacking over scales is better than averaging, {net[0]}", side(net), averaged)


def check_transfer_claims(tests: Sequence[StoredTransfer]) -> list[Claim]:
    """Every claim of Appendix B, tested where the runs allow it. Raises UserError."""
    own = dict.fromkeys(one.set for one in tests if one.set not in facts().transfer)
    claims = []
    for name in (*facts().transfer, *own):
        of_set = [one for one in tests if one.set == name]
        for experiment in dict.fromkeys(one.runs[0].config.run.experiment for one in of_set) or [""]:
            some = _of_one_recipe([one for one in of_set if one.runs[0].config.run.experiment == experiment])
            claims += [_check(statement) for statement in _statements(name, some)]
    return claims


def _of_one_recipe(tests: Sequence[StoredTransfer]) -> list[StoredTransfer]:
    """The tests of one recipe of each net: with scale jitter where there is one, with the fewest departures."""
    runs = {run.name: run for one in tests for run in one.runs}
    recipes = chosen_by(recipe_of, runs.values())
    chosen: dict[str, list[StoredRun]] = {}
    for (net, S), same in recipes.items():
        if net not in chosen or S == value("jitter"):
            chosen[net] = same
    names = {run.name for same in chosen.values() for run in same}
    return [one for one in tests if all(run.name in names for run in one.runs)]


def _check(statement: Statement[StoredTransfer]) -> Claim:
    lacking = [*statement.better.lacking, *statement.worse.lacking]
    unpaired = f"nothing stored of {'; '.join(lacking)}" if lacking else "both sides are of other samples or seeds"
    return claim_of(TRANSFER, statement, pairs_of(statement, _compare), unpaired)


def _compare(better: StoredTransfer, worse: StoredTransfer) -> Comparison | None:
    return compare(worse.found.result, better.found.result) if better.samples == worse.samples else None
