"""Verbs for nets: Tables 1 and 2, and other programs' weight files."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vggrepro.cli.options import JsonOption, print_json, show
from vggrepro.errors import UserError


def summary(
    net: Annotated[str | None, typer.Argument(help="A, A-LRN, B, C, D or E; default: all.")] = None,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="With batch normalisation.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Show a recipe's nets instead of the paper's.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="Number of blocks, counted from the input.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the input, px.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor on all channel counts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show layers, output shapes, parameters and multiply-adds (Tables 1 and 2)."""
    from vggrepro.config.recipes import load_graph
    from vggrepro.models.summary import render, summarise
    from vggrepro.models.table1 import architecture, architecture_of
    from vggrepro.paper import facts

    geometry = {"blocks": blocks, "crop": crop, "width": width, "batch_norm": batch_norm or None}
    options: dict[str, Any] = {key: given for key, given in geometry.items() if given is not None}
    if config is None:
        nets = [architecture(name, **options) for name in ([net] if net else facts().architectures)]
    elif options:
        key = next(iter(options)).replace("_", "-")
        raise UserError(f"--{key} with --config {config}: a recipe defines its nets; remove one of the two options")
    else:
        of_classes = (stage for stage in load_graph(config).stages.values() if stage.localisation is None)
        found = [architecture_of(stage) for stage in of_classes if net in (None, stage.model.net)]
        nets = list({(each.name, *each.layers()): each for each in found}.values())  # a net at several S is one
        if not nets:
            raise UserError(f"{net}: no stage of {config} has this net; leave it out to list them")
    if as_json:
        print_json({"nets": summarise(nets)})
    else:
        from rich.console import Console

        Console().print(render(nets))


def import_weights(
    file: Annotated[
        Path, typer.Argument(help="A .caffemodel, MatConvNet's .mat, .safetensors, or a .pth or checkpoint of PyTorch.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to create.")],
    net: Annotated[str | None, typer.Option(help="Expected column of Table 1.")] = None,
    input_as: Annotated[
        Literal["paper", "torchvision"] | None,
        typer.Option("--input", help="Preprocessing of its input: paper (grey levels minus mean) or torchvision."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="The net to take from a checkpoint with several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a run directory from another program's weights, for `vggrepro evaluate`."""
    from vggrepro.pipeline.weights import import_weights

    found = import_weights(file, out, net=net, preprocessing=input_as, key=key)
    show(found, (f"{name:14} {item}" for name, item in found.items()), as_json)


def export_weights(
    net: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors, .pth or .onnx file to write.")],
    dense: Annotated[
        bool, typer.Option("--dense", help="ONNX: the fully-convolutional net for images of any size (Section 3.2).")
    ] = False,
) -> None:
    """Write a net for other programs: .safetensors and .onnx include its preprocessing, .pth has torchvision's keys.

    A .safetensors file comes with a model card, NAME.md: errors, departures from the paper, data, how to load it.
    """
    from vggrepro.pipeline.weights import export_weights

    for written in export_weights(net, out, dense=dense):
        typer.echo(f"wrote {written}")
