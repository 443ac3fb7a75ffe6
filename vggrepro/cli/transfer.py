"""Verbs of Appendix B: a net's features of other data sets, and linear classifiers on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vggrepro.cli.options import JsonOption, QuietOption, SetOption, integers, show
from vggrepro.errors import UserError

if TYPE_CHECKING:
    from vggrepro.evaluation.transfers import Transferred

NetsArgument = Annotated[
    list[Path], typer.Argument(help="Run directories or checkpoints; of several the features are stacked.")
]
ScalesOption = Annotated[
    str | None,
    typer.Option(help="Q values in px, e.g. 256,384,512; default: the paper's of the data set, as the crop is to 224."),
]
CombineOption = Annotated[
    Literal["average", "stack"] | None,
    typer.Option(help="What is made of the features at several Q; default: what the paper does on the data set."),
]


def features(
    nets: NetsArgument,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="NAME=PATH: voc2007, voc2012, voc2012_action, caltech101 or caltech256 as downloaded, or a folder of "
            "classes by any other name.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file to write: X, y, ...; docs/transfer.md.")],
    scales: ScalesOption = None,
    combine: CombineOption = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Those of persons' boxes beside those of images.")] = False,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Features of another data set's images, for scikit-learn and others: the last hidden layer, densely applied.

    They are kept in the run directories, too; what is there is not computed again.
    """
    from vggrepro.pipeline.features import extract as extract_features
    from vggrepro.pipeline.features import net_at, require_writable, write_features
    from vggrepro.pipeline.session import open_session

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: features are written as .npz; choose that suffix")
    require_writable(out)
    sets, asked = _sets([data]), _changes(scales, combine, changes)
    (name,) = sets
    found_nets = [net_at(net, asked, sets) for net in nets]
    with open_session([net.config for net in found_nets], training=False) as session:
        found = extract_features(found_nets, name, session, boxes=boxes)
    if found is None:  # not the first rank
        return
    samples, dimensions = write_features(out, found)
    layers, combine = [net.layer for net in found_nets], found.specs[0].combine
    report = {
        "out": str(out),
        "samples": samples,
        "dimensions": dimensions,
        "classes": len(found.data.classes),
        "rejected": found.data.rejected,
        "scales": [list(one.Q) for one in found.specs],
        "combine": combine,
        "layers": layers,
    }
    Q = " + ".join(", ".join(map(str, one.Q)) for one in found.specs)
    line = f"wrote {out}: {samples:,} x {dimensions:,} features of {found.data.name} "
    show(report, [f"{line}({', '.join(layers)} at Q = {Q}, {combine})"], as_json)


def transfer(
    nets: NetsArgument,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            help="NAME=PATH, repeatable: voc2007, voc2012, voc2012_action, caltech101 or caltech256 as downloaded, or "
            "a folder of classes by any other name; default: those of the nets' own recipes.",
        ),
    ] = [],  # noqa: B006
    scales: ScalesOption = None,
    combine: CombineOption = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write VOC 2012's test results here, as its server takes them.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Linear SVMs on features of other data sets: mAP or mean class recall (Appendix B, Tables 11 and 12).

    Each net by itself, and all of them with their features stacked. Features and scores are kept in the run
    directories; what is there is not computed again.
    """
    from vggrepro.pipeline.transfer import transfer_nets

    found = transfer_nets(nets, _changes(scales, combine, changes), submission, sets=_sets(data))
    if found is None:  # not the first rank
        return
    reports = [_report(one) for one in found]
    show({"tested": reports}, map(_line, reports), as_json)


def _sets(data: list[str]) -> dict[str, str]:
    """The data sets of `--data`, by name. Raises UserError."""
    from vggrepro.config.settings import SET_NAME

    sets: dict[str, str] = {}
    for one in data:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise UserError(f"--data {one}: expected NAME=PATH, e.g. caltech101=101_ObjectCategories")
        if not re.fullmatch(SET_NAME, name):
            raise UserError(f"--data {one}: a name is of letters, digits, _, . and -; call it mine=PATH, say")
        if name in sets:
            raise UserError(f"--data {one}: {name} is {sets[name]} already; give each data set a name of its own")
        sets[name] = path
    return sets


def _changes(scales: str | None, combine: str | None, changes: list[str]) -> list[str]:
    """The options as `section.key=value`. Raises UserError."""
    found = [*changes]
    if scales:
        found.append(f"transfer.scales={list(integers(scales))}")
    if combine:
        found.append(f"transfer.combine={combine}")
    return found


def _report(one: Transferred) -> dict[str, Any]:
    asked = one.protocol
    return {
        "data": asked.set,
        "nets": one.note["runs"],
        "measure": asked.measure,
        "figure": one.result.mean,
        "spread": one.result.spread,
        "interval": list(one.result.interval),
        "splits": one.result.figures,
        "scales": [list(net.Q) for net in asked.nets],
        "combine": asked.combine,
        "boxes": asked.boxes,
        "C": list(one.C),
        "train": one.note["train"],
        "test": one.note["test"],
        "classes": one.note["classes"],
        "rejected": one.note["rejected"],
    }


def _line(report: dict[str, Any]) -> str:
    from vggrepro.reporting.tables.labels import FUSED, MEASURES

    Q = FUSED.join(", ".join(map(str, sides)) for sides in report["scales"])
    low, high = report["interval"]
    spread = f" +- {report['spread']:.2f} over {len(report['C'])} splits" if report["spread"] is not None else ""
    return (
        f"{FUSED.join(report['nets'])} on {report['data']}: {MEASURES[report['measure']]} {report['figure']:.2f} %"
        f"{spread} (95 % interval {low:.2f} - {high:.2f}); Q = {Q}, {report['combine']}"
        f"{', with boxes' if report['boxes'] else ''}; C = {', '.join(f'{C:g}' for C in report['C'])}"
    )
