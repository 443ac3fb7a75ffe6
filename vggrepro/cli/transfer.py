"""Verbs of Appendix B: features of other data sets, and linear classifiers on them."""

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
    list[Path], typer.Argument(help="Run directories or checkpoints; features of several are stacked.")
]
ScalesOption = Annotated[
    str | None,
    typer.Option(help="Q values in px, e.g. 256,384,512; default: the paper's for the data set, scaled by crop / 224."),
]
CombineOption = Annotated[
    Literal["average", "stack"] | None,
    typer.Option(help="How features at several Q are combined; default: as the paper does for the data set."),
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
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The .npz file to write, with X, y and more: docs/transfer.md.")
    ],
    scales: ScalesOption = None,
    combine: CombineOption = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Add features of persons' boxes to those of images.")] = False,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write features of another data set's images, for scikit-learn: the last hidden layer, densely applied.

    They are also stored in the run directories and reused.
    """
    from vggrepro.pipeline.features import extract as extract_features
    from vggrepro.pipeline.features import net_at, require_writable, write_features
    from vggrepro.pipeline.session import open_session

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: features are written as .npz; use that suffix")
    require_writable(out)
    sets, settings = _sets([data]), _changes(scales, combine, changes)
    (name,) = sets
    found_nets = [net_at(net, settings, sets) for net in nets]
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
        "scales": [list(spec.Q) for spec in found.specs],
        "combine": combine,
        "layers": layers,
    }
    Q = " + ".join(", ".join(map(str, spec.Q)) for spec in found.specs)
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
        Path | None, typer.Option(help="Write VOC 2012's test results to this folder in the format of its server.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train linear SVMs on features of other data sets: mAP or mean class recall (Appendix B, Tables 11 and 12).

    Tests each net alone, and all of them with stacked features. Features and scores are stored in the run directories
    and reused.
    """
    from vggrepro.pipeline.transfer import transfer_nets

    found = transfer_nets(nets, _changes(scales, combine, changes), submission, sets=_sets(data))
    if found is None:  # not the first rank
        return
    reports = [_report(result) for result in found]
    show({"tested": reports}, map(_line, reports), as_json)


def _sets(data: list[str]) -> dict[str, str]:
    """Parses the data sets of `--data`, by name. Raises UserError."""
    from vggrepro.config.settings import SET_NAME

    sets: dict[str, str] = {}
    for pair in data:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"--data {pair}: expected NAME=PATH, e.g. caltech101=101_ObjectCategories")
        if not re.fullmatch(SET_NAME, name):
            raise UserError(f"--data {pair}: a name consists of letters, digits, _, . and -; use e.g. mine=PATH")
        if name in sets:
            raise UserError(f"--data {pair}: {name} is already {sets[name]}; give each data set its own name")
        sets[name] = path
    return sets


def _changes(scales: str | None, combine: str | None, changes: list[str]) -> list[str]:
    """Translates the options to `section.key=value`. Raises UserError."""
    found = [*changes]
    if scales:
        found.append(f"transfer.scales={list(integers(scales))}")
    if combine:
        found.append(f"transfer.combine={combine}")
    return found


def _report(transferred: Transferred) -> dict[str, Any]:
    protocol = transferred.protocol
    return {
        "data": protocol.set,
        "nets": transferred.note["runs"],
        "measure": protocol.measure,
        "figure": transferred.result.mean,
        "spread": transferred.result.spread,
        "interval": list(transferred.result.interval),
        "splits": transferred.result.figures,
        "scales": [list(net.Q) for net in protocol.nets],
        "combine": protocol.combine,
        "boxes": protocol.boxes,
        "C": list(transferred.C),
        "train": transferred.note["train"],
        "test": transferred.note["test"],
        "classes": transferred.note["classes"],
        "rejected": transferred.note["rejected"],
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
