"""The claims of Appendix B as paired comparisons of stored tests. No torch.

The effect is the rise of the score that a claim asserts, in points of mean average precision or mean class recall.
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

TRANSFER = "transfer"  # the group of these claims, whose images are not those that nets were trained on
_D, _E, _BOTH = ("D",), ("E",), ("D", "E")


def _statements(name: str, tests: Sequence[StoredTransfer]) -> Iterator[Statement[StoredTransfer]]:
    """Yields the claims about a data set; a folder of classes unknown to the paper gets those about Caltech."""
    task = task_of(name)
    several, combine = len(task.scales), task.combine
    main = f"{several} Q, {combine}"

    def side(
        nets: tuple[str, ...], how: str = main, *, scales: int = several, by: str = combine, box: bool = False
    ) -> Side[StoredTransfer]:
        trials = []
        for test in tests:
            protocol = test.found.protocol
            if test.nets == nets and (len(protocol.nets[0].Q), protocol.combine, protocol.boxes) == (scales, by, box):
                seed = tuple(sorted({run.config.run.seed for run in test.runs}))
                trials.append(Trial(seed, test.runs, f"{how} on {name}", test))
        words = f"{' + '.join(nets)}: {how} on {name}"
        return Side(words, trials, [] if trials else [words])

    def statement(
        text: str, better: Side[StoredTransfer], worse: Side[StoredTransfer], asserted: Assertion = "better"
    ) -> Statement[StoredTransfer]:
        return Statement("B", f"{name}: {text}", better, worse, asserted)

    if task.table == 12:
        text = "the person's box beside the image is better than the image alone, D and E stacked"
        yield statement(text, side(_BOTH, "image and box", box=True), side(_BOTH, "image"))
        return
    yield statement(f"D and E are about as good, within {MARGIN} points", side(_E), side(_D), "about as good")
    for net in (_D, _E):
        yield statement(f"D and E stacked are better than {net[0]}", side(_BOTH), side(net))
    for net in (_D, _E):
        if combine == "average":
            yield statement(f"five scales are better than three, {net[0]}", side(net), side(net, "3 Q", scales=3))
            stacked = side(net, f"{several} Q, stack", by="stack")
            text = f"averaging over scales is about as good as stacking, {net[0]}"
            yield statement(text, side(net), stacked, "about as good")
        else:
            averaged = side(net, f"{several} Q, average", by="average")
            yield statement(f"stacking over scales is better than averaging, {net[0]}", side(net), averaged)


def check_transfer_claims(tests: Sequence[StoredTransfer]) -> list[Claim]:
    """Returns every claim of Appendix B, tested if the runs allow it. Raises UserError."""
    claims = []
    for name in dict.fromkeys((*facts().transfer, *(test.set for test in tests))):
        by_experiment: dict[str, list[StoredTransfer]] = {}
        for test in tests:
            if test.set == name:
                by_experiment.setdefault(test.runs[0].config.run.experiment, []).append(test)
        for comparable in by_experiment.values() or [[]]:
            claims += [_check(statement) for statement in _statements(name, _select_recipes(comparable))]
    return claims


def _select_recipes(tests: Sequence[StoredTransfer]) -> list[StoredTransfer]:
    """Returns the tests of one recipe per net: with scale jitter if available, with the fewest departures."""
    runs = {run.name: run for test in tests for run in test.runs}
    recipes = chosen_by(recipe_of, runs.values())
    chosen: dict[str, list[StoredRun]] = {}
    for (net, S), variant in recipes.items():
        if net not in chosen or S == value("jitter"):
            chosen[net] = variant
    names = {run.name for variant in chosen.values() for run in variant}
    return [test for test in tests if all(run.name in names for run in test.runs)]


def _check(statement: Statement[StoredTransfer]) -> Claim:
    lacking = [*statement.better.lacking, *statement.worse.lacking]
    unpaired = f"nothing stored of {'; '.join(lacking)}" if lacking else "both sides are of other samples or seeds"
    return claim_of(TRANSFER, statement, pairs_of(statement, _compare), unpaired)


def _compare(better: StoredTransfer, worse: StoredTransfer) -> Comparison | None:
    return compare(worse.found.result, better.found.result) if better.samples == worse.samples else None
