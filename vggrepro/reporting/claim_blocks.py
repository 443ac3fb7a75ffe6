"""Claims of the paper for readers."""

from collections.abc import Sequence

from vggrepro.reporting.blocks import DASH, Sheet, count_text, signed_text
from vggrepro.reporting.claims import Claim


def claim_sheet(claims: Sequence[Claim]) -> Sheet:
    """A row for each claim: its verdict, and what that rests on."""
    header = (
        "section",
        "claim",
        "verdict",
        "effect",
        "95 % interval",
        "p",
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
            count_text(claim.n),
            count_text(claim.seeds or None),
            claim.better,
            claim.worse,
            count_text(claim.departures),
        )
        for claim in claims
    ]
    return Sheet(header, rows, numbers=frozenset({3, 4, 5, 6, 7, 10}))


def p_text(p: float | None) -> str:
    """A p-value for a table."""
    return DASH if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
