"""Verbs about nets themselves: Tables 1 and 2, and other programs' weight files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vggrepro.cli.options import JsonOption, SetOption, print_json, show
from vggrepro.errors import UserError


def summary(
    net: Annotated[str | None, typer.Argument(help="A, A-LRN, B, C, D or E; all of them when left out.")] = None,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="With batch normalisation.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A recipe: its nets in place of the paper's.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Table 1 and 2: layers, output shapes, parameters, multiply-adds."""
    from vggrepro.config.parsing import parse
    from vggrepro.config.recipes import load_graph
    from vggrepro.models.summary import render, summarise
    from vggrepro.models.table1 import architecture_of
    from vggrepro.paper import facts

    if config:
        changes = [*changes, *(["model.batch_norm=true"] if batch_norm else [])]
        stages = [stage for stage in load_graph(config, changes).stages.values() if net in (None, stage.model.net)]
        if not stages:
            raise UserError(f"{net}: no stage of {config} is of this net; leave it out to see which there are")
    else:
        models = [{"net": name, "batch_norm": batch_norm} for name in ([net] if net else facts().architectures)]
        stages = [parse({"model": model}, changes, Path("--set")) for model in models]
    nets = list(dict.fromkeys(map(architecture_of, stages)))
    if as_json:
        print_json({"nets": summarise(nets)})
    else:
        from rich.console import Console

        Console().print(render(nets))


def import_weights(
    file: Annotated[
        Path, typer.Argument(help="A .caffemodel, MatConvNet's .mat, .safetensors, a .pth or checkpoint of torch.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to make.")],
    net: Annotated[str | None, typer.Option(help="The column of Table 1 that it must be of.")] = None,
    input_as: Annotated[
        Literal["paper", "torchvision"] | None,
        typer.Option("--input", help="What its input was: paper (grey levels minus mean) or torchvision's."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which net of a checkpoint that holds several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run directory of another program's weights, for `vggrepro evaluate`."""
    from vggrepro.pipeline.weights import import_weights

    found = import_weights(file, out, net=net, preprocessing=input_as, key=key)
    show(found, (f"{name:14} {item}" for name, item in found.items()), as_json)


def export_weights(
    net: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors, .pth or .onnx file to write.")],
    dense: Annotated[
        bool, typer.Option("--dense", help="ONNX: the net for whole images of any size (Section 3.2).")
    ] = False,
) -> None:
    """Write a net for other programs: .safetensors and .onnx carry its preprocessing, .pth has torchvision's keys.

    Beside .safetensors a model card, NAME.md: errors, departures from the paper, data, how to load it.
    """
    from vggrepro.pipeline.weights import export_weights

    for written in export_weights(net, out, dense=dense):
        typer.echo(f"wrote {written}")
