"""Compares runs: their settings, errors and predictions. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import Field

from vggrepro.config.parsing import flatten, override
from vggrepro.errors import UserError
from vggrepro.evaluation.predictions import Predictions
from vggrepro.reporting.documents import figures
from vggrepro.reporting.documents.blocks import (
    DASH,
    Block,
    Figure,
    Heading,
    Sheet,
    Text,
    count_text,
    interval_text,
    sheet_of,
)
from vggrepro.reporting.documents.claim_blocks import p_text
from vggrepro.reporting.documents.run_notes import run_sheet
from vggrepro.reporting.stored.predictions import PredictionCache, paired_top1
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables.report import Record, RunNote
from vggrepro.storage.status import relocated

if TYPE_CHECKING:
    from vggrepro.data.images.index import Index

_METHODS = ("centre", "dense", "multicrop", "both")  # from the fewest views to the most
_CLASSES_SHOWN = 10
_MOST_SHOWN = 16
_THUMBNAIL_PX = 160


Scales = Literal["one Q", "several Q"]
Origin = Literal["configuration", "environment", "data", "ledger"]


class Difference(Record):
    """A setting in which the runs differ; values in the order of the runs, None if a run lacks it."""

    kind: Origin
    key: str
    values: list[Any]


class ErrorsByRun(Record):
    """Errors of the runs under a protocol, in the order of the runs; None if posteriors are missing."""

    method: str
    scales: Scales
    Q: list[str]
    top1: list[float | None]
    interval_top1: list[tuple[float, float] | None]
    top5: list[float | None]
    interval_top5: list[tuple[float, float] | None]
    n: list[int | None]


class PairedTest(Record):
    """A comparison of two runs on the same images under a protocol."""

    method: str
    scales: Scales
    first: str
    second: str
    difference: float
    """Top-1 error of the first run minus that of the second, in points."""
    interval: tuple[float, float]
    """95 %, paired."""
    p_value: float
    """McNemar's exact test, two-sided."""
    only_first_right: int
    only_second_right: int
    n: int


class ClassErrors(Record):
    """Top-1 errors of the runs on a class, in per cent."""

    name: str
    n: int
    errors: list[float]


class Disagreement(Record):
    """An image that only the first or only the second run classifies correctly."""

    row: int
    """Row of the validation split."""
    file: str | None = None
    true: str
    guesses: list[str]


class RunComparison(Record):
    """The output of `vggrepro compare`, without images."""

    format: Literal["vggrepro comparison 1"] = "vggrepro comparison 1"
    runs: list[str]
    made_by: list[RunNote]
    """Provenance of each run."""
    differences: list[Difference]
    errors: list[ErrorsByRun]
    paired: list[PairedTest]
    shown: str | None = None
    """Protocol of `classes` and `disagreements`: the one with the most views that the first two runs share."""
    classes: list[ClassErrors] = Field(default_factory=list)
    """Classes on which the first two runs differ most."""
    disagreements: list[Disagreement] = Field(default_factory=list)
    """Images on which the confidence of the first two runs in the true class differs most."""
    notes: list[str]


def compare(runs: Sequence[StoredRun], index: Index | None, notes: Sequence[str] = ()) -> RunComparison:
    """Compares two or more runs; `index` names classes and images.

    Raises UserError if there are fewer than two different runs, or if a run predicts boxes.
    """
    names = [run.name for run in runs]
    for run in runs:
        if run.config.localisation:
            raise UserError(f"{run.name} predicts boxes, which `vggrepro compare` does not compare; see the tables")
    if len(runs) < 2 or len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError(f"compare needs two different runs or more, got {', '.join(names) or 'none'}; name another")
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    cache = PredictionCache()
    errors, paired = [], []
    same_images = len({run.dataset.get("fingerprint") for run in runs}) == 1
    shown: tuple[str, Predictions, Predictions] | None = None
    protocols: list[tuple[int, Scales]] = [(3, "one Q"), (4, "several Q")]
    for (table, scales), method in product(protocols, _METHODS):
        predictions = [cache.of([(run, run.Q_of(table))], method) for run in runs]
        if not any(predictions):
            continue
        Q = [", ".join(map(str, run.Q_of(table))) for run in runs]
        errors.append(_errors_of(predictions, method=method, scales=scales, Q=Q))
        if not same_images:
            continue
        for (a, first), (b, second) in combinations(zip(names, predictions, strict=True), 2):
            if first and second:
                test = vars(paired_top1(first, second))
                paired.append(PairedTest(method=method, scales=scales, first=a, second=b, **test))
        if predictions[0] and predictions[1]:
            shown = f"{method}, Q = {' | '.join(dict.fromkeys(Q[:2]))}", predictions[0], predictions[1]
    return RunComparison(
        runs=names,
        made_by=[RunNote.of(run) for run in runs],
        differences=list(_differences(runs)),
        errors=errors,
        paired=paired,
        shown=shown[0] if shown else None,
        classes=_by_class(*shown[1:], index) if shown else [],
        disagreements=_disagreements(*shown[1:], index) if shown else [],
        notes=[*notes, *_caveats(runs, names, same_images, tested=bool(errors))],
    )


def _errors_of(predictions: Sequence[Predictions | None], **protocol: Any) -> ErrorsByRun:
    columns: dict[str, Any] = {"n": [found and len(found.labels) for found in predictions]}
    for key in ("top1", "top5"):
        rates = [getattr(found, key) if found else None for found in predictions]
        columns[key] = [rate and rate.percent for rate in rates]
        columns[f"interval_{key}"] = [rate and rate.interval for rate in rates]
    return ErrorsByRun(**protocol, **columns)


def _caveats(runs: Sequence[StoredRun], names: Sequence[str], same_images: bool, *, tested: bool) -> Iterator[str]:
    """Yields what limits the comparison."""
    if not same_images:
        yield "The runs are of different images: their errors are not comparable, and no paired test is made."
    if len({(run.config.evaluation.flip, run.config.evaluation.precision) for run in runs}) > 1:
        yield "The runs are tested differently: evaluation.flip or evaluation.precision, see below."
    elif not any(run.config.evaluation.flip for run in runs):
        yield "Tested without mirror images."
    if not tested:
        yield "No run has stored posteriors; `vggrepro evaluate RUN` makes them."
    if any(any(run.run_directory.transfers.glob("[!.]*.npz")) for run in runs):
        yield "Tests on other data sets are not compared here: see Tables 11 and 12, `vggrepro tables`."
    unfinished = [f"{name} (step {run.step:,})" for name, run in zip(names, runs, strict=True) if not run.finished]
    if unfinished:
        yield f"Not finished: {', '.join(unfinished)}."


def open_images(runs: Sequence[StoredRun]) -> tuple[Index | None, str]:
    """Opens the index that all runs were made with; otherwise returns None and the reason."""
    fingerprints = {run.dataset.get("fingerprint") for run in runs}
    if len(fingerprints) > 1:
        return None, ""
    from vggrepro.data.dataset import open_data

    run = runs[0]
    # the configuration of an imported net names no data, but its first test does
    places = [f"data.{key}={json.dumps(place)}" for key, place in run.dataset.get("opened_as", {}).items() if place]
    try:
        index = open_data(override(relocated(run.config, run.path), places, run.path), training=False)
    except UserError as error:
        return None, f"Classes and images have no names here: {error}."
    if index.fingerprint not in fingerprints:
        return None, f"Classes and images have no names here: {index.source} is not what it was when the runs began."
    return index, ""


def _differences(runs: Sequence[StoredRun]) -> Iterator[Difference]:
    sources: dict[Origin, list[dict[str, Any]]] = {
        "configuration": [flatten(run.config.model_dump(mode="json")) for run in runs],
        "environment": [flatten(run.read_json("environment.json") or {}) for run in runs],
        "data": [flatten(run.dataset) for run in runs],
        "ledger": [{departure.setting: departure.run for departure in run.departures} for run in runs],
    }
    for kind, trees in sources.items():
        for key in dict.fromkeys(key for tree in trees for key in tree):
            values = [tree.get(key) for tree in trees]
            if any(value != values[0] for value in values):
                yield Difference(kind=kind, key=key, values=values)


def _class_name(label: int, index: Index | None) -> str:
    return index.classes[label] if index else f"class {label}"


def _by_class(first: Predictions, second: Predictions, index: Index | None) -> list[ClassErrors]:
    of_first, of_second = first.wrong_by_class(), second.wrong_by_class()
    found = [
        ClassErrors(
            name=_class_name(label, index),
            n=int((first.labels == label).sum()),
            errors=[100 * of_first[label], 100 * of_second[label]],
        )
        for label in of_first
    ]
    return sorted(found, key=lambda item: -abs(item.errors[0] - item.errors[1]))[:_CLASSES_SHOWN]


def _disagreements(first: Predictions, second: Predictions, index: Index | None) -> list[Disagreement]:
    differing = np.flatnonzero(first.right1 != second.right1)
    gap = np.abs(first.confidence - second.confidence)[differing]
    chosen = differing[np.argsort(-gap, kind="stable")[:_MOST_SHOWN]]
    split = index.split("val") if index else None
    return [
        Disagreement(
            row=int(row),
            file=split.name_of(int(row)) if split else None,
            true=_class_name(int(first.labels[row]), index),
            guesses=[_class_name(int(run.guess[row]), index) for run in (first, second)],
        )
        for row in chosen
    ]


def blocks_of(made: RunComparison, runs: Sequence[StoredRun], index: Index | None) -> list[Block]:
    """Returns the blocks of a comparison; `index` adds thumbnails."""
    blocks: list[Block] = [Heading(1, " against ".join(made.runs))]
    blocks += [Text(note) for note in made.notes]
    if made.errors:
        blocks += [Heading(2, "Errors"), _error_sheet(made)]
        blocks.append(Text("Per cent on the validation split, with 95 % intervals (Wilson)."))
    if made.paired:
        blocks += [Heading(2, "Paired tests, top-1"), sheet_of(made.paired, _PAIRED, list(_PAIRED)[3:])]
        blocks.append(
            Text("Difference: first minus second, points, with its 95 % interval; p: McNemar's exact test, two-sided.")
        )
    blocks += [Heading(2, "Runs"), run_sheet(made.made_by), Heading(2, "What differs")]
    for kind in get_args(Origin):
        if differences := [difference for difference in made.differences if difference.kind == kind]:
            rows = [(item.key, *(DASH if cell is None else str(cell) for cell in item.values)) for item in differences]
            blocks += [Heading(3, kind.capitalize()), Sheet(("setting", *made.runs), rows)]
    if not made.differences:
        blocks.append(Text("Nothing: configuration, environment, data and departures are the same."))
    if any(run.records("train") for run in runs):
        curves = dict(zip(made.runs, runs, strict=True))
        blocks.append(Figure(figures.learning_curves(curves), "Learning curves"))
    if made.classes:
        rows = [(item.name, str(item.n), *(f"{error:.1f}" for error in item.errors)) for item in made.classes]
        sheet = Sheet(("class", "images", *made.runs[:2]), rows, numbers=frozenset({1, 2, 3}))
        blocks += [Heading(2, "Classes on which they differ most"), sheet]
        blocks.append(Text(f"Top-1 error in per cent ({made.shown}). Of many classes some differ by chance."))
    if made.disagreements:
        blocks.append(Heading(2, "Images on which they disagree most"))
        blocks.append(Text(f"One of the two is right; their posteriors of the true class differ most ({made.shown})."))
        rows = [(str(item.row), item.true, *item.guesses, item.file or DASH) for item in made.disagreements]
        if index:
            title = f"True class; below it the first guesses of {made.runs[0]} | {made.runs[1]}"
            blocks.append(Figure(_contact_sheet(made, index), title))
        blocks.append(Sheet(("row", "true class", *made.runs[:2], "file"), rows))
    return blocks


def _contact_sheet(made: RunComparison, index: Index) -> bytes:
    import io

    from PIL import Image

    split = index.split("val")
    images, titles = [], []
    for item in made.disagreements:
        with Image.open(io.BytesIO(split.read(item.row))) as image:
            small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        images.append(np.asarray(small))
        titles.append(f"{item.true}\n{item.guesses[0]} | {item.guesses[1]}")
    return figures.sheet(images, titles)


def _error_sheet(made: RunComparison) -> Sheet:
    rows = []
    for protocol in made.errors:
        Q = " | ".join(protocol.Q if len(set(protocol.Q)) > 1 else protocol.Q[:1])
        n = " | ".join(dict.fromkeys(map(count_text, protocol.n)))
        top1, top5 = (protocol.top1, protocol.interval_top1), (protocol.top5, protocol.interval_top5)
        for k, (errors, intervals) in ((1, top1), (5, top5)):
            cells = (
                DASH if error is None else f"{error:.2f} ({interval_text(interval, '.2f')})"
                for error, interval in zip(errors, intervals, strict=True)
            )
            rows.append((protocol.method, Q, f"top-{k}", *cells, n))
    columns = frozenset(range(3, 4 + len(made.runs)))
    return Sheet(("method", "Q", "error", *made.runs, "n"), rows, numbers=columns)


_PAIRED: Mapping[str, Callable[[PairedTest], str]] = {
    "method": lambda test: test.method,
    "scales": lambda test: test.scales,
    "runs": lambda test: f"{test.first} - {test.second}",
    "difference": lambda test: f"{test.difference:+.2f}",
    "95 % interval": lambda test: interval_text(test.interval, "+.2f"),
    "p": lambda test: p_text(test.p_value),
    "only one right": lambda test: f"{test.only_first_right} / {test.only_second_right}",
    "n": lambda test: count_text(test.n),
}
"""Columns of the paired tests; the first three are texts."""
