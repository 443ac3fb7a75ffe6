"""Drawing of a class map: scores over the image, in the cell of each position."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggrepro.show.views import Box, Place, ScoredImage

if TYPE_CHECKING:
    import altair as alt

LONGER_SIDE = 310
"""Longer side of a drawn image in px: three fit side by side into a window of 1280 px, one into a phone's 420."""
PICKED = "picked"
"""Name of the selection: the clicked position."""
_MOST_PIXELS = 2 * LONGER_SIDE  # longer side of the image sent to the browser
_SCHEME: Literal["viridis"] = "viridis"  # perceptually uniform, and readable with colour blindness


def class_map(
    scored: ScoredImage, values: NDArray[np.float32], title: str, limits: tuple[float, float], chosen: Place | None
) -> alt.LayerChart:
    """Draws the image at one Q with a value (rows, columns) in the cell of each position.

    Args:
        scored: the image and its positions.
        values: the values shown by colour.
        title: title of the colour bar.
        limits: values at the ends of the colour bar.
        chosen: the position whose window is outlined, with its field of view dashed; or None.
    """
    import altair as alt

    height, width = scored.pixels.shape[:2]
    scale = LONGER_SIDE / max(height, width)
    across = alt.Scale(domain=[0, width], nice=False)
    down = alt.Scale(domain=[height, 0], nice=False)

    def layer(rows: list[dict[str, object]]) -> alt.Chart:
        return alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("left:Q", scale=across, axis=None),
            x2="right:Q",
            y=alt.Y("top:Q", scale=down, axis=None),
            y2="bottom:Q",
        )

    frame = _edges((0, 0, width, height)) | {"url": _data_url(scored.pixels)}
    image = layer([frame]).mark_image(aspect=False).encode(url="url:N")
    cells = [
        _edges(scored.cell(place))
        | {"row": place.row + 1, "column": place.column + 1, "value": round(float(values[place.row, place.column]), 4)}
        for place in scored.places()
    ]
    colour = alt.Color(
        "value:Q",
        scale=alt.Scale(scheme=_SCHEME, domain=list(limits), clamp=True),
        legend=alt.Legend(title=title, orient="bottom", direction="horizontal", gradientLength=200),
    )
    picked = alt.selection_point(name=PICKED, fields=["row", "column"], on="click", clear=False, toggle=False)
    overlay = (
        layer(cells)
        .mark_rect(opacity=0.6, stroke="white", strokeWidth=0.4, cursor="pointer")
        .encode(color=colour, tooltip=["row:Q", "column:Q", alt.Tooltip("value:Q", title=title)])
        .add_params(picked)
    )
    layers = [image, overlay]
    if chosen is not None:
        window, seen = layer([_edges(scored.window(chosen))]), layer([_edges(scored.field_of_view(chosen))])
        common: Any = {"fillOpacity": 0, "clip": True, "tooltip": None}
        layers += [
            seen.mark_rect(stroke="white", strokeWidth=1.5, strokeDash=[5, 4], **common),
            window.mark_rect(stroke="black", strokeWidth=4, **common),
            window.mark_rect(stroke="white", strokeWidth=2, **common),
        ]
    # Streamlit's own would shrink the image by the height of the colour bar
    autosize = alt.AutoSizeParams(type="pad", contains="padding")
    return alt.LayerChart(layer=layers, autosize=autosize, width=round(width * scale), height=round(height * scale))


def limits_of(maps: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Returns the smallest and largest value of several maps, which share a colour bar; never equal."""
    low, high = (float(end) for end in (min(m.min() for m in maps), max(m.max() for m in maps)))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _edges(box: Box) -> dict[str, object]:
    return dict(zip(("left", "top", "right", "bottom"), box, strict=True))


def _data_url(pixels: NDArray[np.uint8]) -> str:
    """Encodes an image as a PNG data URL, at most at the drawn size."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
