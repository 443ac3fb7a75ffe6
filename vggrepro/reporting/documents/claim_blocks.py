"""Tables of the paper's claims."""

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from vggrepro.reporting.claims.claim import Claim, Outcome
from vggrepro.reporting.documents.blocks import DASH, Sheet, count_text, interval_text, sheet_of, signed_text

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


_COLUMNS: Mapping[str, Callable[[Claim], str]] = {
    "section": lambda claim: claim.section,
    "claim": lambda claim: claim.claim,
    "verdict": lambda claim: claim.verdict,
    "effect": lambda claim: (
        signed_text(claim.effect, 2) + ("" if claim.spread is None else f" (sd {claim.spread:.2f})")
    ),
    "95 % interval": lambda claim: interval_text(claim.interval, "+.2f"),
    "p": lambda claim: p_text(claim.p_value),
    "over": lambda claim: claim.over or DASH,
    "n": lambda claim: count_text(claim.n),
    "seeds": lambda claim: count_text(claim.seeds or None),
    "said to be better": lambda claim: claim.better,
    "than": lambda claim: claim.worse,
    "departures": lambda claim: count_text(claim.departures),
}


def claim_sheet(claims: Sequence[Claim]) -> Sheet:
    """Builds a row per claim: its verdict and the evidence for it."""
    return sheet_of(claims, _COLUMNS, {"effect", "95 % interval", "p", "n", "seeds", "departures"})


HOW = (
    "Effect: top-1 error of the worse minus that of the better, as the paper has it, in points, of several seeds the "
    "mean with its standard deviation. Interval (95 %) and p (two-sided) over images: paired, what another choice of "
    "images would change, these nets being given; one seed by McNemar's exact test, of several each image counts with "
    "its mean over the seeds. Over seeds, where the two sides are nets of their own: what training them anew would "
    "change, by Student's t with the variance over seeds of all nets at the same S together (one-way analysis of "
    "variance; of two S by Welch and Satterthwaite), since two or three seeds of one net hardly tell it."
)
"""Meaning of the columns."""


def claims_in_brief(claims: Sequence[Claim]) -> Sheet:
    """Builds a row per kind of measured claim: counts of the verdicts and the range of the effects."""
    kinds: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        kinds.setdefault((claim.section, claim.heading), []).append(claim)
    rows = []
    for (section, text), same in kinds.items():
        effects = sorted(claim.effect for claim in same if claim.effect is not None)
        if not effects:
            continue
        ends = dict.fromkeys(signed_text(effect) for effect in (effects[:1] + effects[-1:]))
        counts = (sum(claim.verdict == outcome for claim in same) for outcome in _OUTCOMES)
        rows.append((section, text, *(count_text(n or None) for n in counts), " to ".join(ends)))
    return Sheet(("section", "the paper", *_OUTCOMES, "points gained"), rows, numbers=frozenset(range(2, 7)))


def p_text(p: float | None) -> str:
    """Formats a p-value for a cell."""
    return DASH if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
