"""Claims of the paper for readers."""

from collections.abc import Sequence
from typing import get_args

from vggrepro.reporting.claims.claim import Claim, Outcome
from vggrepro.reporting.documents.blocks import DASH, Sheet, count_text, signed_text

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def claim_sheet(claims: Sequence[Claim]) -> Sheet:
    """A row for each claim: its verdict, and what that rests on."""
    header = (
        "section",
        "claim",
        "verdict",
        "effect",
        "95 % interval",
        "p",
        "over",
        "n",
        "seeds",
        "said to be better",
        "than",
        "departures",
    )
    rows = [
        (
            claim.section,
            claim.claim,
            claim.verdict,
            signed_text(claim.effect, 2) + ("" if claim.spread is None else f" (sd {claim.spread:.2f})"),
            DASH if claim.interval is None else f"{claim.interval[0]:+.2f} to {claim.interval[1]:+.2f}",
            p_text(claim.p_value),
            claim.over or DASH,
            count_text(claim.n),
            count_text(claim.seeds or None),
            claim.better,
            claim.worse,
            count_text(claim.departures),
        )
        for claim in claims
    ]
    return Sheet(header, rows, numbers=frozenset({3, 4, 5, 7, 8, 11}))


HOW = (
    "Effect: top-1 error of the worse minus that of the better, as the paper has it, in points, of several seeds the "
    "mean with its standard deviation. Interval (95 %) and p (two-sided) over images: paired, what another choice of "
    "images would change, these nets being given; one seed by McNemar's exact test, of several each image counts with "
    "its mean over the seeds. Over seeds, where the two sides are nets of their own: what training them anew would "
    "change, by Student's t with the variance over seeds of all nets at the same S together (one-way analysis of "
    "variance; of two S by Welch and Satterthwaite), since two or three seeds of one net hardly tell it."
)
"""What the columns of the claims mean."""


def claims_in_brief(claims: Sequence[Claim]) -> Sheet:
    """A row for each kind of claim that was tested: how often each verdict came out, the effects from least to most."""
    kinds: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        kinds.setdefault((claim.section, claim.heading), []).append(claim)
    rows = []
    for (section, text), same in kinds.items():
        effects = sorted(claim.effect for claim in same if claim.effect is not None)
        if not effects:
            continue
        ends = dict.fromkeys(signed_text(effect) for effect in (effects[:1] + effects[-1:]))
        counts = (sum(claim.verdict == one for claim in same) for one in _OUTCOMES)
        rows.append((section, text, *(count_text(n or None) for n in counts), " to ".join(ends)))
    return Sheet(("section", "the paper", *_OUTCOMES, "points gained"), rows, numbers=frozenset(range(2, 7)))


def p_text(p: float | None) -> str:
    """A p-value for a table."""
    return DASH if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
