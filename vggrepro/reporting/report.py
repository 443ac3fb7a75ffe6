"""The report as data: what `vggrepro tables --json` prints."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vggrepro.paper import Measure
from vggrepro.reporting.claims import Claim

Verdict = Literal["agrees", "differs", "not measured", "cannot be measured", "not comparable"]


class Record(BaseModel):
    """Base of what goes into the JSON report: frozen, nothing beside what is declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Row(Record):
    """One row of a table. Errors, intervals and differences in per cent or percentage points."""

    group: str | None
    """The group of runs it belongs to; None in Tables 1 and 2, which need no run."""
    table: int
    net: str
    """A column of Table 1, several joined by ` + `, the user's own net, or in Table 7 the system."""
    S: str | None = None
    Q: str | None = None
    method: str | None = None
    flip: bool | None = None
    """Whether mirror images are tested too; None where there is no run. A centre crop is never mirrored."""
    precision: str | None = None
    """Of the arithmetic of the test."""
    split: Literal["val", "test"] = "val"
    """The labels of the test set were never published: what is printed of it cannot be measured."""
    printed_top1: float | None = None
    printed_top5: float | None = None
    measured_top1: float | None = None
    measured_top5: float | None = None
    interval_top1: tuple[float, float] | None = None
    """95 %, Wilson."""
    interval_top5: tuple[float, float] | None = None
    difference_top1: float | None = None
    """Measured minus printed; None where they are not comparable."""
    difference_top5: float | None = None
    n: int | None = None
    verdict: Verdict
    run: str | None = None
    """`experiment:stage`, several joined by ` + `."""
    departures: int | None = None
    """Settings in which the runs depart from the paper."""
    note: str = ""
    printed_count: int | None = None
    """Table 1: weight layers. Table 2: millions of parameters."""
    measured_count: int | None = None
    """Table 1: weight layers. Table 2: parameters."""


class BoxRow(Record):
    """One row of Tables 8-10 (Appendix A). Errors, intervals and differences in per cent or percentage points."""

    group: str
    table: int
    net: str
    """D, several joined by ` + ` where their boxes are pooled, a yardstick, or in Table 10 the system."""
    S: str | None = None
    Q: str | None = None
    regression: str | None = None
    """SCR or PCR: one box for all classes, or one for each."""
    fine_tune: str | None = None
    """all or fc: which layers were trained."""
    guesses: str | None = None
    """Who named the five classes of each image; None in Table 8, where the true one is given."""
    split: Literal["val", "test"] = "val"
    printed: float | None = None
    measured: float | None = None
    interval: tuple[float, float] | None = None
    """95 %, Wilson."""
    difference: float | None = None
    """Measured minus printed; None where they are not comparable."""
    n: int | None = None
    verdict: Verdict
    run: str | None = None
    """`experiment:stage`, several joined by ` + `."""
    departures: int | None = None
    note: str = ""


class TransferRow(Record):
    """One figure of Table 11 or 12 (Appendix B), in per cent, and what was measured beside it."""

    table: int
    set: str
    """The data set, by its name."""
    data: str | None = None
    """Fingerprint of images, targets and boxes."""
    net: str
    """A column of Table 1, several joined by ` + ` where features are stacked, the user's net, or another method."""
    layer: str | None = None
    """Whose activations the features are."""
    Q: str | None = None
    combine: Literal["average", "stack"] | None = None
    """What is made of the features at several Q."""
    boxes: bool = False
    """Features of the person's box beside those of the image."""
    measure: Measure
    printed: float | None = None
    printed_spread: float | None = None
    """Over three random splits, points."""
    measured: float | None = None
    """Mean over the splits."""
    spread: float | None = None
    """Sample standard deviation over the splits, points; None for one split."""
    interval: tuple[float, float] | None = None
    """95 %, over the choice of test samples."""
    difference: float | None = None
    """Measured minus printed; None where they are not comparable."""
    splits: int | None = None
    C: list[float] = []
    """Of the SVMs, chosen for each split."""
    classes: int | None = None
    train: int | None = None
    """Samples that a split learns from."""
    n: int | None = None
    """Distinct test samples."""
    verdict: Verdict
    run: str | None = None
    """`experiment:stage`, several joined by ` + `."""
    departures: int | None = None
    note: str = ""


class Spread(Record):
    """One protocol over several seeds."""

    group: str
    table: int
    net: str
    S: str
    Q: str
    method: str
    seeds: int
    printed_top1: float | None = None
    printed_top5: float | None = None
    mean_top1: float
    spread_top1: float
    """Sample standard deviation over the seeds, points."""
    mean_top5: float
    spread_top5: float
    runs: list[str]


class BoxSpread(Record):
    """One protocol of Table 8 or 9 over several seeds."""

    group: str
    table: int
    net: str
    S: str
    Q: str
    regression: str
    fine_tune: str
    seeds: int
    mean: float
    spread: float
    """Sample standard deviation over the seeds, points."""
    runs: list[str]


class Departed(Record):
    """One line of a fidelity ledger."""

    setting: str
    paper: Any
    run: Any
    why: str


class RunNote(Record):
    """The way back from a number to what made it."""

    name: str
    directory: str
    net: str
    S: str
    seed: int
    step: int
    iterations: int
    finished: bool
    imported: bool
    """From another program's file: what is said of seed and steps is not its own."""
    weights: str | None
    """SHA-256 of the final net."""
    git_commit: str | None
    git_dirty: bool | None
    """Whether the code had changes that the commit lacks."""
    mlflow_run: str | None
    """Id of its MLflow run."""
    departures: list[Departed]
    unused: list[str]
    """Stored answers of another net or index, which no number here is made of."""


class Group(Record):
    """Runs of the same images, classes and geometry."""

    id: str
    title: str
    papers: bool
    """Whether the paper's figures apply: its validation set, classes and geometry."""
    runs: list[RunNote]


class Report(Record):
    """All tables. The schema is in `tables.schema.json`."""

    format: Literal["vggrepro tables 1"] = "vggrepro tables 1"
    groups: list[Group]
    rows: list[Row]
    seeds: list[Spread]
    claims: list[Claim]
    boxes: list[BoxRow] = []
    """Tables 8-10, which Appendix A has."""
    box_seeds: list[BoxSpread] = []
    transfer: list[TransferRow] = []
    """Tables 11 and 12, which Appendix B has."""
    transfer_claims: list[Claim] = []
    """What Appendix B claims."""
    transfer_runs: list[RunNote] = []
    """The runs of Tables 11 and 12 that belong to no group."""
    dense_over_centre: list[Claim] = []
    """What each net of Table 3 gains by the dense test over its centre crop; the paper has no such figures."""
    start_from_parent: list[Claim] = []
    """What each net gains by the weights of another net over random ones; the paper has no such figures either."""
    left_out: list[str]
    """Runs that have not begun, and so belong to no group."""


if __name__ == "__main__":  # renews the schema
    (Path(__file__).parent / "tables.schema.json").write_text(json.dumps(Report.model_json_schema(), indent=1) + "\n")
