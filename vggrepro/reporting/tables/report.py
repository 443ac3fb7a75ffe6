"""The report as data: the output of `vggrepro tables --json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from vggrepro.paper import Combine, Measure
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.storage.ledger import Departure

Verdict = Literal["agrees", "differs", "not measured", "cannot be measured", "not comparable"]
FigureName = Literal["top1", "top5", "only"]
"""The two errors of Tables 3-7, or the only figure of a row: localisation error or Appendix B's score."""
_SUFFIXES: Mapping[FigureName, str] = {"top1": "_top1", "top5": "_top5", "only": ""}


class Record(BaseModel):
    """Base of all parts of the JSON report: frozen, without extra fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Measurement(Record):
    """A printed and a measured figure, per cent, and their difference in percentage points."""

    printed: float | None = None
    measured: float | None = None
    interval: tuple[float, float] | None = None
    """95 % interval: Wilson's for errors, over the choice of test samples for scores."""
    difference: float | None = None
    """Measured minus printed; None if they are not comparable."""


class SeedMean(Record):
    """A figure over several seeds, per cent."""

    printed: float | None = None
    mean: float | None = None
    spread: float | None = None
    """Sample standard deviation over the seeds, points."""


def _describe_flat(schema: dict[str, Any], model: type[RowLabels]) -> None:
    """Describes the flat figures that :meth:`RowLabels._flatten` writes in the JSON schema."""
    parts = model.figure_model.model_json_schema()["properties"]
    schema["properties"].pop("figures", None)
    schema["properties"] |= {key: parts[part] for key, (_, part) in model.keys_of_figures().items()}


class RowLabels(Record):
    """Labels of a table row.

    In JSON and CSV the parts of a figure are keys of the row: `printed_top1`, or `printed` for a single figure.
    """

    model_config = ConfigDict(json_schema_extra=_describe_flat)
    figure_model: ClassVar[type[Record]]

    group: str | None = None
    """Id of the group of runs; None in Tables 1 and 2, which need no run, and in Tables 11 and 12."""
    table: int
    net: str
    """A column of Table 1, several joined by `+`, a custom net, a baseline, or the name of a system."""
    S: str | None = None
    Q: str | None = None
    method: str | None = None
    regression: str | None = None
    """SCR or PCR: one box for all classes, or one per class."""
    fine_tune: str | None = None
    """all or fc: the layers of a localisation net that were trained."""
    flip: bool | None = None
    """Whether mirror images are tested as well; None without a run. A centre crop is never mirrored."""
    precision: str | None = None
    """Floating-point precision of the test."""
    guesses: str | None = None
    """Source of the five class guesses per image in Table 9; in Table 8 the true class is given."""
    set: str | None = None
    """Name of the data set in Tables 11 and 12."""
    data: str | None = None
    """Fingerprint of its images, targets and boxes."""
    layer: str | None = None
    """Layer whose activations are the features."""
    combine: Combine | None = None
    """How features at several Q are combined."""
    boxes: bool | None = None
    """Whether features of the person's box are added to those of the image."""
    measure: Measure | None = None
    """Measure of the score in Tables 11 and 12."""
    split: Literal["val", "test"] | None = "val"
    """The labels of the test set were never published, so its printed figures cannot be measured. None in 11 and 12."""

    @classmethod
    def keys_of_figures(cls) -> dict[str, tuple[FigureName, str]]:
        """Returns the figure and its part for each key of the flat form."""
        parts = cls.figure_model.model_fields
        return {part + suffix: (name, part) for part in parts for name, suffix in _SUFFIXES.items()}

    @model_serializer(mode="wrap")
    def _flatten(self, nested: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        row = nested(self)
        figures = row.pop("figures", {})
        flat = {key: figures.get(name, {}).get(part) for key, (name, part) in self.keys_of_figures().items()}
        return row | {key: number for key, number in flat.items() if number is not None or not info.exclude_defaults}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, row: dict[str, Any]) -> dict[str, Any]:
        keys = cls.keys_of_figures()
        figures: dict[FigureName, dict[str, Any]] = row.get("figures", {})
        for key, (name, part) in keys.items():
            if row.get(key) is not None:
                figures.setdefault(name, {})[part] = row[key]
        return {key: label for key, label in row.items() if key not in keys} | {"figures": figures}


class Row(RowLabels):
    """A row of a table."""

    figure_model = Measurement

    figures: dict[FigureName, Measurement] = {}
    printed_spread: float | None = None
    """Printed spread of a score over three random splits, points."""
    spread: float | None = None
    """Sample standard deviation of a score over the splits, points; None for a single split."""
    splits: int | None = None
    C: list[float] | None = None
    """Regularisation of the SVMs, chosen for each split."""
    classes: int | None = None
    train: int | None = None
    """Number of training samples per split."""
    n: int | None = None
    """Number of images, or of distinct test samples."""
    verdict: Verdict
    run: str | None = None
    """`experiment:stage`, several joined by `+`."""
    departures: int | None = None
    """Number of settings in which the runs depart from the paper."""
    note: str = ""
    printed_count: int | None = None
    """Table 1: weight layers. Table 2: millions of parameters."""
    measured_count: int | None = None
    """Table 1: weight layers. Table 2: parameters."""

    @property
    def top1(self) -> Measurement:
        """Top-1 error of Tables 3-7; empty in other tables."""
        return self.figures.get("top1", Measurement())

    @property
    def top5(self) -> Measurement:
        """Top-5 error of Tables 3-7; empty in other tables."""
        return self.figures.get("top5", Measurement())

    @property
    def main(self) -> Measurement:
        """Main figure of the row: the top-1 error, or the only figure."""
        return self.figures.get("only", self.top1)


class Spread(RowLabels):
    """A row of Tables 3-6, 8 or 9 over several seeds."""

    figure_model = SeedMean

    figures: dict[FigureName, SeedMean] = {}
    seeds: int
    runs: list[str]


class RunNote(Record):
    """Provenance of a run's figures."""

    name: str
    directory: str
    net: str
    S: str
    seed: int
    step: int
    iterations: int
    finished: bool
    imported: bool
    """Whether the net was imported from another program; seed and steps then have no meaning."""
    weights: str | None
    """SHA-256 of the final net."""
    git_commit: str | None
    git_dirty: bool | None
    """Whether the code had uncommitted changes."""
    mlflow_run: str | None
    """Id of its MLflow run."""
    departures: list[Departure]
    unused: list[str]
    """Stored results of another net or index, which no figure here uses."""

    @classmethod
    def of(cls, run: StoredRun) -> RunNote:
        """Returns the note of a run."""
        environment = run.read_json("environment.json") or {}
        return cls(
            name=run.name,
            directory=run.place,
            net=run.net,
            S=run.config.data.S_text,
            seed=run.config.run.seed,
            step=run.config.train.iterations if run.finished else run.step,
            iterations=run.config.train.iterations,
            finished=run.finished,
            imported=any(departure.setting == "weights" for departure in run.departures),
            weights=run.weights,
            git_commit=environment.get("git_commit"),
            git_dirty=environment.get("git_dirty"),
            mlflow_run=run.mlflow_run,
            departures=run.departures,
            unused=run.unused_results,
        )


class Group(Record):
    """Runs with the same images, classes and geometry."""

    id: str
    title: str
    papers: bool
    """Whether the paper's figures apply: its validation set, classes and geometry."""
    weight_layers: dict[str, int] = {}
    """Weight layers of the runs' nets that are columns of Table 1."""
    runs: list[RunNote]


class Report(Record):
    """All tables and claims. The JSON schema is in `tables.schema.json`."""

    format: Literal["vggrepro tables 2"] = "vggrepro tables 2"
    groups: list[Group]
    rows: list[Row]
    """Rows of Tables 1-12, in their order."""
    seeds: list[Spread]
    claims: list[Claim]
    transfer_claims: list[Claim] = []
    """Claims of Appendix B."""
    transfer_runs: list[RunNote] = []
    """Runs of Tables 11 and 12 that belong to no group."""
    dense_over_centre: list[Claim] = []
    """Gain of each net by the dense test over its centre crop; the paper has no such figures."""
    start_from_parent: list[Claim] = []
    """Gain of each net by another net's weights over random ones; the paper has no such figures."""
    left_out: list[str]
    """Runs that have not begun and belong to no group."""


if __name__ == "__main__":  # renews the schema
    (Path(__file__).parents[1] / "tables.schema.json").write_text(
        json.dumps(Report.model_json_schema(), indent=1) + "\n"
    )
