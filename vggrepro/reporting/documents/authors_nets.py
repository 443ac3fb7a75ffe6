"""The report of `vggrepro verify-paper`: the authors' nets compared with the paper's tables."""

from collections.abc import Mapping
from typing import Any

from vggrepro.paper import value
from vggrepro.reporting.documents.blocks import Block, Heading, Sheet, Text


def blocks_of(found: Mapping[str, Any]) -> list[Block]:
    """Returns the tables; `found` is the result of `evaluation.verify.verify`, plus net sources as `weights`."""
    errors = ("measured", "difference", "")
    made: list[Block] = [
        Heading(1, f"The authors' nets, n = {found['n']:,}"),
        Text("\n".join(f"{net}: {source}" for net, source in found["weights"].items())),
        Sheet(
            ("table", "net", "Q", "method", "top-1 printed", *errors, "top-5 printed", *errors),
            [
                [str(row["table"]), row["net"], ", ".join(map(str, row["Q"])), row["method"], *_errors(row)]
                for row in found["rows"]
            ],
        ),
        Text(
            "equal: rounds to the printed figure; agrees: within the sampling errors of both and the rounding;\n"
            "lower, higher: beyond them (95 %)."
        ),
        Heading(2, "What Section 3.2 leaves open, nearest to the printed dense rows first"),
        Sheet(
            ("reading", "mean difference, points", ""),
            [[row["reading"], f"{row['mean_difference']:.3f}", row["what"]] for row in found["readings"]],
        ),
        Heading(2, "For comparison: one centre crop, which the paper does not print"),
        Sheet(
            ("net", "Q", "top-1", "top-5"),
            [[row["net"], str(row["Q"][0]), f"{row['top1']:.2f}", f"{row['top5']:.2f}"] for row in found["centre"]],
        ),
    ]
    if found["n"] != value("val_images"):
        made.append(Text(f"The printed figures are of {value('val_images'):,} images; these are of {found['n']:,}."))
    return made


def _errors(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for key in ("top1", "top5"):
        printed, measured, difference = (row[f"{what}_{key}"] for what in ("printed", "measured", "difference"))
        cells += [f"{printed:.1f}", f"{measured:.2f}", f"{difference:+.2f}", row[f"verdict_{key}"]]
    return cells
