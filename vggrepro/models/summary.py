"""Tables 1 and 2 for JSON and for the terminal. No torch."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vggrepro.models.table1 import Architecture, architecture
from vggrepro.paper import facts


def summarise(nets: Sequence[Architecture]) -> list[dict[str, Any]]:
    """Returns geometry, totals and ``layers`` (the fields of ``table1.Layer``) of each net.

    ``parameters_printed`` is Table 2's figure in millions, or None if the net is not the paper's.
    """
    return [
        {
            "net": net.name,
            "blocks": len(net.blocks),
            "batch_norm": net.batch_norm,
            "classes": net.classes,
            "crop": net.crop,
            "width": net.width,
            "field_of_view": net.field_of_view,
            "weight_layers": net.weight_layers,
            "parameters": net.parameters,
            "parameters_printed": _printed_millions(net),
            "multiply_adds": net.multiply_adds,
            "layers": [asdict(layer) for layer in net.layers()],
        }
        for net in nets
    ]


def render(nets: Sequence[Architecture]) -> Table:
    """Renders the layers of a single net, or a row per net (Table 2), for the terminal."""
    return _layers_table(nets[0]) if len(nets) == 1 else _nets_table(nets)


def _layers_table(net: Architecture) -> Table:
    printed = _printed_millions(net)
    title = f"Net {net.name}, {net.crop}x{net.crop} input; one place of its last layer sees {net.field_of_view} px"
    if printed is not None:
        title += f" (Table 2: {printed} million parameters)"
    table = Table(title=title, show_footer=True)
    table.add_column("layer", "total")
    table.add_column("kernel", justify="right")
    table.add_column("output", f"{net.weight_layers} weight layers", justify="right")
    table.add_column("parameters", f"{net.parameters:,}", justify="right")
    table.add_column("multiply-adds", f"{net.multiply_adds:,}", justify="right")
    for layer in net.layers():
        table.add_row(
            layer.name,
            f"{layer.kernel}x{layer.kernel}" if layer.kernel else "",
            " x ".join(map(str, layer.shape)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        )
    return table


def _nets_table(nets: Sequence[Architecture]) -> Table:
    table = Table("net", title="Table 2: parameters")
    for column in ("weight layers", "parameters", "printed (millions)", "multiply-adds (billions)"):
        table.add_column(column, justify="right")
    for net in nets:
        printed = _printed_millions(net)
        table.add_row(
            net.name,
            str(net.weight_layers),
            f"{net.parameters:,}",
            "" if printed is None else str(printed),
            f"{net.multiply_adds / 1e9:.3f}",
        )
    return table


def _printed_millions(net: Architecture) -> int | None:
    """Returns Table 2's figure if ``net`` is a column of Table 1 in the paper's geometry."""
    printed = facts().parameters_printed_millions.get(net.name)
    return printed if printed and net.layers() == architecture(net.name).layers() else None
