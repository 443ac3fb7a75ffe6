"""Comparison of the authors' nets with the paper's tables: the acceptance test of the evaluation. No torch."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from vggrepro.evaluation.measure import Scored, fuse
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import PrintedErrors, facts, value

READINGS = {
    "dense": "scores averaged before the softmax, pooling rounds down",
    "dense-softmax-first": "posteriors averaged after the softmax, pooling rounds down",
    "dense-ceil": "scores averaged before the softmax, pooling rounds up",
}
"""Readings of Section 3.2, which leaves them open."""
METHODS = ("centre", *READINGS, "multicrop")
SCALES: tuple[int, ...] = value("test_scales_jitter")

Scores = Callable[[str, tuple[int, ...]], Scored]
"""Maps method and Q to a net's posteriors."""


def rows_of(nets: Mapping[str, Scores]) -> list[PrintedErrors]:
    """Returns the rows of Tables 3-6 that the given nets, trained with scale jitter, determine."""
    return [
        row
        for number in (3, 4, 5, 6)
        for row in facts().table(number)
        if set(row.nets) <= nets.keys() and row.S == value("jitter")
    ]


def verify(nets: Mapping[str, Scores]) -> dict[str, Any]:
    """Compares measured with printed errors; `nets` are by column of Table 1.

    Returns:
        n; rows [{table, net, Q, method, and for top1 and top5: printed_, measured_, interval_, difference_,
        verdict_}]; readings [{reading, what, mean_difference, rows}], the closest to the dense rows first; centre
        [{net, Q, top1, top5}], which the paper does not print. Errors in per cent, differences in points.
    """
    rows = rows_of(nets)
    dense = [row for row in rows if row.method == "dense" and row.table in (3, 4)]
    centre = {net: scores("centre", SCALES[:1]).measured for net, scores in nets.items()}
    return {
        "n": len(next(iter(nets.values()))("dense", SCALES).labels),
        "rows": [_measured(row, nets, row.method) for row in rows],
        "readings": sorted((_reading(name, dense, nets) for name in READINGS), key=itemgetter("mean_difference")),
        "centre": [
            {"net": net, "Q": list(found.Q), "top1": found.top1.percent, "top5": found.top5.percent}
            for net, found in centre.items()
        ],
    }


def _measured(row: PrintedErrors, nets: Mapping[str, Scores], method: str) -> dict[str, Any]:
    result = fuse([nets[member.net](method, member.Q) for member in row.members]).measured
    found: dict[str, Any] = {"table": row.table, "net": " + ".join(row.nets), "Q": list(result.Q), "method": method}
    for key, error, printed in (("top1", result.top1, row.top1), ("top5", result.top5, row.top5)):
        against = AgainstPrinted(error, printed)
        found |= {
            f"printed_{key}": printed,
            f"measured_{key}": error.percent,
            f"interval_{key}": list(error.interval),
            f"difference_{key}": against.difference,
            f"verdict_{key}": against.verdict,
        }
    return found


def _reading(method: str, rows: list[PrintedErrors], nets: Mapping[str, Scores]) -> dict[str, Any]:
    measured = [_measured(row, nets, method) for row in rows]
    distances = [abs(row[f"difference_{key}"]) for row in measured for key in ("top1", "top5")]
    mean = sum(distances) / len(distances)
    return {"reading": method, "what": READINGS[method], "mean_difference": mean, "rows": measured}
