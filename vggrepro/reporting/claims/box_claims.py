"""The claims of Appendix A as paired tests on stored boxes. No torch.

The effect is the fall of the localisation error that a claim asserts, in points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from vggrepro.evaluation.box_store import CENTRE, DENSE
from vggrepro.evaluation.significance import Comparison, paired_right
from vggrepro.paper import Scale, scale_text, value
from vggrepro.reporting.claims.claim import Claim, Side, Statement, claim_of, pairs_of, side_of_nets
from vggrepro.reporting.stored.found_boxes import BoxCache, Kind, configured_Q, kind_of
from vggrepro.reporting.stored.runs import NetsTest, StoredRun, chosen_by


def _statements(recipes: Mapping[Kind, Sequence[StoredRun]]) -> Iterator[Statement[NetsTest]]:
    coarse, fine = value("scales")

    def side(*nets: tuple[Kind, bool], method: str = DENSE) -> Side[NetsTest]:
        """Returns a side of one net or of pooled nets, each at one Q or, if True, at several."""
        words = [
            f"{regression} ({fine_tune}) at S = {scale_text(S)}, {'several Q' if several else 'one Q'}"
            for (S, regression, fine_tune), several in nets
        ]
        members = {
            f"{regression}, {fine_tune}, S = {S}": (
                recipes.get((S, regression, fine_tune), ()),
                partial(configured_Q, method=method, several=several),
            )
            for (S, regression, fine_tune), several in nets
        }
        return side_of_nets(f"{' + '.join(words)}: {method}", method, members)

    def on_crop(regression: str, fine_tune: str) -> Side[NetsTest]:
        return side(((fine, regression, fine_tune), False), method=CENTRE)

    def on_full_image(S: Scale, *, several: bool = False) -> tuple[Kind, bool]:
        return (S, "PCR", "all"), several

    fc = on_crop("PCR", "fc")
    text = "A box for each class is better than one for all: PCR and SCR, FC layers trained, centre crop"
    yield Statement("A", text, fc, on_crop("SCR", "fc"))
    text = "Fine-tuning all layers is better than the FC layers alone: PCR, centre crop"
    yield Statement("A", text, on_crop("PCR", "all"), fc)
    for S in (coarse, fine):
        text = f"The whole image is better than its centre crop: PCR at S = {S}, the class given in both"
        yield Statement("A", text, side(on_full_image(S)), side(on_full_image(S), method=CENTRE))
    text = f"The larger scale is better: S = {fine} and S = {coarse}, dense"
    yield Statement("A", text, side(on_full_image(fine)), side(on_full_image(coarse)))
    two = side(on_full_image(fine, several=True))
    yield Statement("A", f"Two test scales are better than one: S = {fine}", two, side(on_full_image(fine)))
    pooled = side(on_full_image(coarse), on_full_image(fine, several=True))
    for S, alone in ((fine, two), (coarse, side(on_full_image(coarse)))):
        yield Statement("A", f"Two nets, their boxes pooled, are better than the one at S = {S}", pooled, alone)


def check_box_claims(group: str, runs: Sequence[StoredRun], cache: BoxCache) -> list[Claim]:
    """Returns every claim of Appendix A, tested if the runs of the group allow it. Raises UserError."""
    recipes = chosen_by(kind_of, (run for run in runs if run.net == value("localisation_net")))
    return [_check(group, statement, cache) for statement in _statements(recipes)]


def _check(group: str, statement: Statement[NetsTest], cache: BoxCache) -> Claim:
    def compare(better: NetsTest, worse: NetsTest) -> Comparison | None:
        if CENTRE not in (better[1], worse[1]):
            both = cache.both(worse[0], better[0], DENSE)
            return paired_right(both[0].right, both[1].right) if both else None
        first, second = cache.of(*worse), cache.of(*better)  # a centre crop is given the class: no guess matters
        if not first or not second or first.target_key[0] != second.target_key[0]:
            return None
        return paired_right(first.right_given_class, second.right_given_class)

    tests = [trial.test for trial in statement.better.trials]
    if any(trial.test in tests for trial in statement.worse.trials):
        return claim_of(group, statement, [], "both sides are tested at the same Q")
    lacking = "; ".join(sorted({*statement.better.lacking, *statement.worse.lacking}))
    unpaired = "no seed has boxes of both sides for the same images and guesses"
    return claim_of(group, statement, pairs_of(statement, compare), f"no run of {lacking}" if lacking else unpaired)
