"""Verbs that test nets: those of runs, and the authors'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vggrepro.cli.options import JsonOption, QuietOption, SetOption, integers, show
from vggrepro.errors import UserError

if TYPE_CHECKING:
    from vggrepro.evaluation.errors import ErrorRate
    from vggrepro.evaluation.measure import Measured


def evaluate(
    nets: Annotated[list[Path], typer.Argument(help="Run directories or checkpoints; several are fused.")],
    method: Annotated[
        Literal["centre", "dense", "multicrop", "both"],
        typer.Option(help="How the net is applied (Section 3.2); both: the mean of dense and multicrop."),
    ] = "dense",
    scales: Annotated[
        str | None,
        typer.Option(
            help="Q values in px, e.g. 256,384,512; default: each run's Q of Table 3, or of Table 5 for multicrop "
            "and both."
        ),
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report top-1 and top-5 error on the validation split, with posteriors averaged over scales and nets.

    Posteriors are stored in the run directories and reused.
    """
    from vggrepro.evaluation.measure import Measured, fused_Q
    from vggrepro.evaluation.predictions import predictions
    from vggrepro.evaluation.significance import paired_right
    from vggrepro.pipeline.evaluate import evaluate_nets

    evaluated = evaluate_nets(nets, [method], integers(scales) if scales else None, changes)
    if evaluated is None:  # not the first rank
        return
    by_name = {str(tested.net.path): tested for tested in evaluated}
    fused = predictions([tested.test(method) for tested in by_name.values()])
    flip = all(tested.net.config.evaluation.flip for tested in evaluated) and method != "centre"
    report = _report(Measured.of(method, fused_Q(tested.Q for tested in evaluated), fused), flip)
    lines = [_line(report)]
    if len(by_name) > 1:
        report["nets"] = []
        lines[0] = f"{len(by_name)} nets fused: {lines[0]}"
        for name, tested in by_name.items():
            alone = predictions([tested.test(method)])
            test = paired_right(alone.right1, fused.right1)
            difference, interval = test.difference, list(test.interval)
            entry = {"net": name} | _report(Measured.of(method, tested.Q, alone), flip)
            report["nets"].append(
                entry | {"top1_minus_fused": difference, "interval": interval, "p_value": test.p_value}
            )
            lines.insert(
                -1,
                f"{name}: {_line(entry)}\n  top-1 minus the fused nets': {difference:+.2f} points (95 % interval "
                f"{interval[0]:+.2f} to {interval[1]:+.2f}; McNemar's exact p = {test.p_value:.3g})",
            )
    show(report, lines, as_json)


def _report(result: Measured, flip: bool) -> dict[str, Any]:
    return {
        "top1_error": result.top1.percent,
        "top5_error": result.top5.percent,
        "interval_top1": list(result.top1.interval),
        "interval_top5": list(result.top5.interval),
        "n": result.top1.n,
        "method": result.method,
        "scales": list(result.Q),
        "flip": flip,
    }


def _line(report: dict[str, Any]) -> str:
    low, high = report["interval_top1"]
    return (
        f"{report['method']}{'' if report['flip'] or report['method'] == 'centre' else ' without mirror images'} at "
        f"Q = {', '.join(map(str, report['scales']))}, n = {report['n']}: top-1 error "
        f"{report['top1_error']:.2f} % (95 % interval {low:.2f} - {high:.2f}), top-5 {report['top5_error']:.2f} %"
    )


def crosscheck(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of validation images, evenly spaced; default: all.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a net by torchvision's and timm's code beside ours, on the same validation images.

    Ours are the run's dense test and the centre crop; theirs is the centre crop, with their preprocessing and modules.
    Without --limit, our posteriors are stored in the run directory.
    """
    from vggrepro.pipeline.crosscheck import TIMM_REMEDY, crosscheck
    from vggrepro.reporting.documents.blocks import sheet_of, to_markdown

    report = crosscheck(run, limit, changes).report()
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "evaluation": lambda row: row["evaluation"],
        "preprocessing": lambda row: row["preprocessing"],
        "net's code": lambda row: row["module"],
        "top-1 error, % (95 %)": partial(_cell, "top1"),
        "top-5 error, % (95 %)": partial(_cell, "top5"),
        "other answers": lambda row: "-" if row["other_answers"] is None else f"{row['other_answers']:,}",
        "largest difference": lambda row: "-" if row["other_answers"] is None else f"{row['largest_difference']:.2g}",
    }
    n, of = report["n"], report["of"]
    lines = [
        f"{report['net']} on {f'{n:,} of ' if n < of else ''}{of:,} validation images of {report['images']}, "
        f"{report['precision']}",
        "",
        to_markdown([sheet_of(report["evaluations"], columns, numbers=list(columns)[3:])]),
        "other answers: images whose first guess differs from ours, centre; largest difference: of a posterior",
    ]
    if not report["timm"]:
        lines.append(TIMM_REMEDY)
    show(report, lines, as_json)


def _cell(name: str, row: dict[str, Any]) -> str:
    low, high = row[f"interval_{name}"]
    return f"{row[f'{name}_error']:.2f} ({low:.2f} to {high:.2f})"


def localise(
    nets: Annotated[
        list[Path], typer.Argument(help="Runs of nets that predict boxes; boxes of several runs are pooled.")
    ],
    classes_from: Annotated[
        list[Path],
        typer.Option(
            "--classes-from",
            help="Run that guesses five classes per image; several are fused. Default: the best row of the "
            "experiment's Tables 4 to 6.",
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        Literal["dense", "multicrop", "both"],
        typer.Option(help="Method of the posteriors that guess them, with --classes-from."),
    ] = "dense",
    scales: Annotated[
        str | None, typer.Option(help="Q values in px, e.g. 352,384; default: each run's Q of Table 9.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report localisation error on the validation split (Appendix A): five guessed classes, each with a merged box.

    Boxes at all positions are stored in the run directories and reused.
    """
    from vggrepro.pipeline.localise import localise

    found = localise(nets, classes_from, method, integers(scales) if scales else None, changes)
    if found is None:  # not the first rank
        return
    report: dict[str, Any] = {"tested": []}
    guesses, full, random = found.guesses, found.full_image, found.random
    lines = [f"classes from {guesses.source}, top-5 error {guesses.top5:.2f} %; n = {full.n}"]
    for tested in found.tested:
        rate, given = tested.localisation, tested.given_class
        names = {"nets": list(tested.nets), "scales": [list(Q) for Q in tested.Q]}
        report["tested"].append(names | _rate("localisation_error", rate) | _rate("given_class_error", given))
        Q = " + ".join(", ".join(map(str, sides)) for sides in tested.Q)
        lines.append(
            f"{' + '.join(tested.nets)} at Q = {Q}: localisation error {rate.percent:.2f} % (95 % interval "
            f"{rate.interval[0]:.2f} - {rate.interval[1]:.2f}); {given.percent:.2f} % if the class is given"
        )
    baselines = {"whole_image": full, "random_box": random}
    report |= {
        "classes_from": guesses.source,
        "classes_top5_error": guesses.top5,
        "yardsticks": {name: _rate("given_class_error", rate) for name, rate in baselines.items()},
        "n": full.n,
    }
    lines.append(
        f"baselines, the class given: the full image {full.percent:.2f} %, a random box {random.percent:.2f} %"
    )
    show(report, lines, as_json)


def _rate(name: str, rate: ErrorRate) -> dict[str, Any]:
    return {name: rate.percent, f"interval_{name}": list(rate.interval)}


def verify_paper(
    index: Annotated[Path, typer.Option("--index", "-i", help="Index of ILSVRC-2012 with its validation images.")],
    weights_16: Annotated[Path | None, typer.Option(help="VGG_ILSVRC_16_layers.caffemodel (net D).")] = None,
    weights_19: Annotated[Path | None, typer.Option(help="VGG_ILSVRC_19_layers.caffemodel (net E).")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for posteriors.")] = Path("runs/verify-paper"),
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Test the authors' nets against the rows of Tables 3-6 that they determine, before training anything."""
    from vggrepro.pipeline.evaluate import verify_paper
    from vggrepro.reporting.documents.authors_nets import blocks_of
    from vggrepro.reporting.documents.blocks import to_markdown

    files = {net: file for net, file in (("D", weights_16), ("E", weights_19)) if file}
    if not files:
        raise UserError("verify-paper needs --weights-16 or --weights-19: the authors' Caffe files")
    found = verify_paper(files, index, runs, changes)
    if found is None:  # not the first rank
        return
    show(found, [to_markdown(blocks_of(found))], as_json)
