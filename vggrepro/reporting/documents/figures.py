"""Figures as PNG bytes, drawn by matplotlib without a display. No torch: tensors arrive as arrays."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.evaluation.predictions import Predictions
from vggrepro.paper import facts
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables.report import Report, Row
from vggrepro.storage.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
_PER_ROW = 8
_MOST_INSIDE = 3  # runs whose legend does not cover their curves
_OUTCOMES = {"supported": "#009e73", "not supported": "#d55e00", "undecided at this n": "#666666"}


_EFFECTS: Mapping[str, tuple[str, str, bool | None]] = {
    "start": ("The start from another net, against random weights (Section 3.1)", "3.1", None),
    "dense_testing": ("Dense testing against the centre crop (Section 3.2)", "3.2", None),
    "nets": ("The nets of Section 4.1 against each other", "4.1", False),
    "jitter_in_training": ("Scale jitter in training against a fixed S (Section 4.1)", "4.1", True),
    "several_scales": ("Several Q against one (Section 4.2)", "4.2", None),
    "multicrop": ("Multi-crop, dense, and both (Section 4.3)", "4.3", None),
    "fusion": ("Two nets against one (Section 4.4)", "4.4", None),
}
"""Title, section of the claims and, if the section has both, whether they are about jitter, by name of the figure."""


def learning_curves(runs: Mapping[str, RunDirectory | StoredRun]) -> bytes:
    """Draws training loss and validation error (centre crop); dotted lines mark drops of the learning rate."""
    figure, ((loss, error),) = _figure(1, 2, 10, 3.8)
    for number, (name, run) in enumerate(runs.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        train, validation = run.records("train"), run.records("validation")
        _line(loss, train, "loss", label=name, color=colour)
        if any("box_error" in record for record in validation):
            _line(error, validation, "box_error", label=f"{name}, box of the true class", color=colour, marker=".")
        else:
            _line(error, validation, "top1_error", label=f"{name}, top-1", color=colour, marker=".")
            _line(error, validation, "top5_error", label=f"{name}, top-5", color=colour, linestyle="--", linewidth=1)
        for before, after in pairwise(train):
            if after["learning_rate"] < before["learning_rate"]:
                for axes in (loss, error):
                    axes.axvline(after["step"], color=colour, linestyle=":", linewidth=1)
    loss.set(xlabel="iteration", ylabel="training loss")
    error.set(xlabel="iteration", ylabel="centre-crop error, %", ylim=(0, 100))
    for axes in (loss, error):
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(runs) > _MOST_INSIDE else {}
        axes.legend(fontsize=8, **beside)
    return _png(figure)


def _line(axes: Axes, records: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    axes.plot([record["step"] for record in records], [float(record[key]) for record in records], **style)


def error_by_depth(report: Report, group: str) -> bytes | None:
    """Draws top-1 error by depth, a colour per training scale; the paper's figures as open marks."""
    measured = next((other.weight_layers for other in report.groups if other.id == group), {})
    layers = {net: measured.get(net, printed) for net, printed in facts().weight_layers_printed.items()}
    rows = [row for row in _rows(report, group, (3,)) if row.net in layers]
    if not rows:
        return None
    figure, ((axes,),) = _figure(1, 1, 6, 4)
    nets = [net for net in layers if any(row.net == net for row in rows)]
    scales = list(dict.fromkeys(row.S for row in rows))
    for number, S in enumerate(scales):
        shown = [row for row in rows if row.S == S]
        x = [nets.index(row.net) + 0.16 * (number - (len(scales) - 1) / 2) for row in shown]
        _draw_errors(axes, x, shown, _COLOURS[number % len(_COLOURS)], f"S = {S}")
    axes.set_xticks(range(len(nets)), [f"{net}\n{layers[net]}" for net in nets])
    axes.set(xlabel="net, weight layers", ylabel="top-1 error, %", title="Dense, one Q; bars: 95 % intervals")
    axes.legend(fontsize=8)
    return _png(figure)


def error_by_scale(report: Report, group: str) -> bytes | None:
    """Draws top-1 error of each net and S at one Q and at several; the paper's figures as open marks."""
    rows = _rows(report, group, (3, 4))
    if not rows:
        return None
    places = list(dict.fromkeys((row.net, row.S) for row in rows))
    figure, ((axes,),) = _figure(1, 1, max(5.0, 0.9 * len(places) + 2), 4)
    for number, table in enumerate((3, 4)):
        shown = [row for row in rows if row.table == table]
        x = [places.index((row.net, row.S)) + 0.16 * (2 * number - 1) for row in shown]
        _draw_errors(axes, x, shown, _COLOURS[number], ("one Q", "several Q")[number])
    axes.set_xticks(range(len(places)), [f"{net}\nS = {S}" for net, S in places], fontsize=8)
    axes.set(ylabel="top-1 error, %", title="Dense; bars: 95 % intervals")
    axes.legend(fontsize=8)
    return _png(figure)


def effects(claims: Sequence[Claim], title: str) -> bytes:
    """Draws the effect of each claim with its 95 % interval, coloured by verdict."""
    figure, ((axes,),) = _figure(1, 1, 9, 1.1 + 0.3 * len(claims))
    labelled: set[str] = set()
    for place, claim in enumerate(claims):
        assert claim.effect is not None
        assert claim.interval is not None
        reach = np.abs(np.array(claim.interval) - claim.effect)[:, None]
        label = None if claim.verdict in labelled else claim.verdict
        labelled.add(claim.verdict)
        colour = _OUTCOMES[claim.verdict]
        axes.errorbar([claim.effect], [place], xerr=reach, fmt="o", color=colour, capsize=3, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    short = [claim.subject for claim in claims]
    texts = short if len(set(short)) == len(claims) else [claim.claim for claim in claims]
    axes.set_yticks(range(len(claims)), texts, fontsize=8)
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.set_title(title, fontsize=10)
    over = " or ".join(dict.fromkeys(str(claim.over) for claim in claims))
    axes.legend(fontsize=8)
    axes.set_xlabel(f"points of top-1 error gained, with the 95 % interval over {over}", fontsize=9)
    return _png(figure)


def of_report(report: Report, group: str) -> dict[str, bytes]:
    """Draws a group of runs: PNGs by name, without those that would be empty."""
    errors = {"error_by_depth": error_by_depth(report, group), "error_by_scale": error_by_scale(report, group)}
    made = {name: png for name, png in errors.items() if png}
    claims = [*report.start_from_parent, *report.dense_over_centre, *report.claims]
    for name, (title, section, jitter) in _EFFECTS.items():
        shown = [
            claim
            for claim in claims
            if (claim.group, claim.section) == (group, section)
            and claim.interval
            and jitter in (None, "jitter" in claim.claim)
        ]
        if shown:
            made[f"effect_of_{name}"] = effects(shown, title)
    return made


def _rows(report: Report, group: str, tables: Sequence[int]) -> list[Row]:
    """Selects measured rows, and all rows if the paper's figures apply."""
    papers = {other.id for other in report.groups if other.papers}
    return [
        row
        for row in report.rows
        if row.group == group
        and row.table in tables
        and row.split == "val"
        and (row.top1.measured is not None or group in papers)
    ]


def _draw_errors(axes: Axes, x: Sequence[float], rows: Sequence[Row], colour: str, label: str) -> None:
    """Draws measured errors with their intervals, and printed ones as open marks."""
    open_marks = [(at, row.top1.printed) for at, row in zip(x, rows, strict=True) if row.top1.printed is not None]
    comparable = [row.verdict != "not comparable" for row in rows]
    if open_marks and any(comparable):
        shown = axes.plot(*zip(*open_marks, strict=True), "o", mfc="none", mec=colour, label=f"{label}, the paper")
        shown[0].set(markersize=9, zorder=3)  # visible around a measured error of the same value
    measured = [
        (at, row) for at, row in zip(x, rows, strict=True) if row.top1.interval and row.top1.measured is not None
    ]
    if measured:
        y = np.array([row.top1.measured for _, row in measured])
        ends = np.array([row.top1.interval for _, row in measured]).T
        reach = np.abs(ends - y)
        axes.errorbar([at for at, _ in measured], y, yerr=reach, fmt="o", color=colour, capsize=3, label=label)


def lines(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x: str, y: str) -> bytes:
    """Draws a panel per title, with a curve (x values, y values) per label and a line at 0; all share the y axis."""
    figure, grid = _figure(1, len(panels), 5 * len(panels), 3.8)
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=True):
        for number, (label, (across, up)) in enumerate(curves.items()):
            axes.plot(across, up, "o-", color=_COLOURS[number % len(_COLOURS)], label=label)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.sharey(grid.flat[0])
        axes.legend(fontsize=8)
    return _png(figure)


def crops_sheet(images: NDArray[np.float32], mean: Sequence[float], titles: Sequence[str]) -> bytes:
    """Draws training crops, shape (n, height, width, 3), RGB grey levels minus `mean`."""
    return sheet([image + np.asarray(mean, np.float32) for image in images], titles)


def sheet(images: Sequence[NDArray[Any]], titles: Sequence[str]) -> bytes:
    """Draws images of any size, shape (height, width, 3), grey levels 0-255, side by side with titles."""
    figure, places = _image_grid(len(images), 1.8)
    for axes, image, title in zip(places, images, titles, strict=False):
        axes.imshow(np.clip(image, 0, 255).astype(np.uint8))
        axes.set_title(title, fontsize=7)
    return _png(figure)


def boxes_sheet(
    images: Sequence[NDArray[Any]], boxes: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> bytes:
    """Draws images, shape (height, width, 3), grey levels, with true boxes in green and predicted ones in orange.

    Boxes have shape (k, 4): left, top, right, bottom in px of the image.
    """
    from matplotlib.patches import Rectangle

    figure, places = _image_grid(len(images), 1.6)
    for axes, image, both in zip(places, images, boxes, strict=False):
        axes.imshow(np.clip(image, 0, 255).astype(np.uint8), extent=(0, image.shape[1], image.shape[0], 0))
        for colour, some in zip((_COLOURS[2], _COLOURS[1]), both, strict=True):
            for left, top, right, bottom in some:
                axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.5))
        axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    return _png(figure)


def _image_grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Makes a grid of axes for images; `height` is the height of a row in inches."""
    rows = math.ceil(count / _PER_ROW)
    figure, grid = _figure(rows, _PER_ROW, 1.5 * _PER_ROW, height * rows)
    for axes in grid.flat:
        axes.axis("off")
    return figure, list(grid.flat)


def confusion(predictions: Predictions, classes: Sequence[str], protocol: str, worst: int = 12) -> bytes:
    """Draws the fraction of first guesses per true class (row), for the classes with the largest top-1 error."""
    chosen = worst_classes(predictions, worst)
    counts = np.zeros((len(chosen), len(chosen) + 1))
    column = {label: number for number, label in enumerate(chosen)}
    for row, label in enumerate(chosen):
        guesses = predictions.guess[predictions.labels == label]
        for guess in guesses:
            counts[row, column.get(int(guess), len(chosen))] += 1 / len(guesses)
    side = 1.5 + 0.45 * len(chosen)
    figure, ((axes,),) = _figure(1, 1, side + 1, side)
    axes.imshow(100 * counts, cmap="Blues", vmin=0, vmax=100)
    for (row, at), share in np.ndenumerate(counts):
        if share >= 0.005:
            axes.text(at, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if share > 0.5 else "black")  # fmt: skip
    names = [classes[label] for label in chosen]
    axes.set_xticks(range(len(chosen) + 1), [*names, "others"], rotation=90, fontsize=7)
    axes.set_yticks(range(len(chosen)), names, fontsize=7)
    title = f"The {len(chosen)} worst classes, % of each\n({protocol})"
    axes.set(xlabel="first guess", ylabel="true class", title=title)
    return _png(figure)


def worst_classes(predictions: Predictions, count: int) -> list[int]:
    """Returns class numbers by falling top-1 error."""
    shares = predictions.wrong_by_class()
    return sorted(shares, key=lambda label: -shares[label])[:count]


def filters(weights: NDArray[np.float32]) -> bytes:
    """Draws the filters of conv1_1, shape (n, 3, k, k), RGB, each stretched to all grey levels."""
    low = weights.min(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(weights.max(axis=(1, 2, 3), keepdims=True) - low, 1e-12)
    pixels = ((weights - low) / span).transpose(0, 2, 3, 1)
    columns = min(16, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    side = pixels.shape[1] + 1  # a white pixel between filters
    board = np.ones((rows * side - 1, columns * side - 1, 3))
    for number, pixel in enumerate(pixels):
        top, left = number // columns * side, number % columns * side
        board[top : top + side - 1, left : left + side - 1] = pixel
    figure, ((axes,),) = _figure(1, 1, 0.5 * columns, 0.5 * rows)
    axes.axis("off")
    axes.imshow(board, interpolation="nearest")
    return _png(figure)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """Makes a figure, width and height in inches, and its axes, shape (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
