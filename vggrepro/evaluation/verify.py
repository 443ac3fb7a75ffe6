"""The authors' own nets against the paper's tables: the acceptance test of this evaluator. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vggrepro.evaluation.measure import Scored, fuse
from vggrepro.evaluation.significance import AgainstPrinted
from vggrepro.paper import PrintedErrors, facts, value

READINGS = {
    "dense": "scores averaged before the softmax, pooling rounds down",
    "dense-softmax-first": "posteriors averaged after the softmax, pooling rounds down",
    "dense-ceil": "scores averaged before the softmax, pooling rounds up",
}
"""What Section 3.2 leaves open."""
METHODS = ("centre", *READINGS, "multicrop")
SCALES: tuple[int, ...] = value("test_scales_jitter")

Scores = Callable[[str, tuple[int, ...]], Scored]
"""A net's posteriors by method and Q."""


def rows_of(nets: Mapping[str, Scores]) -> list[PrintedErrors]:
    """The rows of Tables 3-6 that nets trained with scale jitter determine, of those given."""
    return [
        row
        for number in (3, 4, 5, 6)
        for row in facts().table(number)
        if set(row.nets) <= nets.keys() and row.S == value("jitter")
    ]


def verify(nets: Mapping[str, Scores]) -> dict[str, Any]:
    """Measured beside printed, by column of Table 1.

    Keys: n; rows [{table, net, Q, method, and for top1 and top5: printed_, measured_, interval_, difference_,
    verdict_}]; readings [{reading, what, mean_difference, rows}], the nearest to the dense rows first; centre
    [{net, Q, top1, top5}], which the paper does not print. Errors in per cent, differences in points.
    """
    rows = rows_of(nets)
    return {
        "n": len(next(iter(nets.values()))("dense", SCALES).labels),
        "rows": [_measured(row, nets, row.method) for row in rows],
        "readings": _readings([row for row in rows if row.method == "dense" and row.table in (3, 4)], nets),
        "centre": [_centre(net, scores) for net, scores in nets.items()],
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


def _readings(rows: list[PrintedErrors], nets: Mapping[str, Scores]) -> list[dict[str, Any]]:
    found = []
    for method, what in READINGS.items():
        measured = [_measured(replace(row, method="dense"), nets, method) for row in rows]
        distances = [abs(one[f"difference_{key}"]) for one in measured for key in ("top1", "top5")]
        mean = sum(distances) / len(distances)
        found.append({"reading": method, "what": what, "mean_difference": mean, "rows": measured})
    return sorted(found, key=lambda one: one["mean_difference"])


def _centre(net: str, scores: Scores) -> dict[str, Any]:
    result = scores("centre", SCALES[:1]).measured
    return {"net": net, "Q": list(result.Q), "top1": result.top1.percent, "top5": result.top5.percent}


def to_markdown(found: Mapping[str, Any]) -> str:
    """The tables for a reader; `found` is of `verify`, with what each net's weights are under `weights`."""
    lines = [
        f"# The authors' nets, n = {found['n']:,}",
        "",
        *(f"{net}: {source}" for net, source in found["weights"].items()),
        "",
        "| table | net | Q | method | top-1 printed | measured | difference | |"
        " top-5 printed | measured | difference | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [str(row["table"]), row["net"], ", ".join(map(str, row["Q"])), row["method"]]
        for key in ("top1", "top5"):
            cells += [
                f"{row[f'printed_{key}']:.1f}",
                f"{row[f'measured_{key}']:.2f}",
                f"{row[f'difference_{key}']:+.2f}",
                row[f"verdict_{key}"],
            ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "equal: rounds to the printed figure; agrees: within the sampling errors of both and the rounding;",
        "lower, higher: beyond them (95 %).",
        "",
        "## What Section 3.2 leaves open, nearest to the printed dense rows first",
        "",
        "| reading | mean difference, points | |",
        "|---|---|---|",
    ]
    lines += [f"| {one['reading']} | {one['mean_difference']:.3f} | {one['what']} |" for one in found["readings"]]
    lines += [
        "",
        "## For comparison: one centre crop, which the paper does not print",
        "",
        "| net | Q | top-1 | top-5 |",
    ]
    lines += ["|---|---|---|---|"]
    lines += [f"| {one['net']} | {one['Q'][0]} | {one['top1']:.2f} | {one['top5']:.2f} |" for one in found["centre"]]
    if found["n"] != value("val_images"):
        lines += ["", f"The printed figures are of {value('val_images'):,} images; these are of {found['n']:,}."]
    return "\n".join(lines) + "\n"
