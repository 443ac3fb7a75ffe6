"""The paper as data: Table 1's columns, all hyper-parameters with their sections, the figures of Tables 2-12.

The values are in ``facts.yaml``; this module gives them types. It imports neither torch nor numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
Method = Literal["dense", "multicrop", "both"]
Measure = Literal["mAP11", "mAP", "recall"]
"""Mean average precision over 11 points (VOC 2007) or by area (VOC 2012), or mean class recall."""
Regression = Literal["SCR", "PCR"]
"""Single-class regression, with one box for all classes, or per-class regression."""
FineTune = Literal["all", "fc"]
"""Layers of a localisation net that are trained: all, or the fully-connected ones."""
Combine = Literal["average", "stack"]
"""How features at several Q are combined."""
Scale = int | tuple[int, int]
"""Training scale S, the shorter side in px: a value, or the range (S_min, S_max) of scale jittering."""


def scale_text(S: Scale) -> str:
    """Formats S as in the paper's tables: "256" or "[256;512]"."""
    return f"[{S[0]};{S[1]}]" if isinstance(S, tuple) else str(S)


@dataclass(frozen=True)
class Hyperparameter:
    """A value of the paper with its section and other sources."""

    value: Any
    section: str


@dataclass(frozen=True)
class TestedNet:
    """A column of Table 1, trained at scale ``S`` and tested at the scales ``Q``, px of the shorter side."""

    net: str
    S: Scale
    Q: tuple[int, ...]


@dataclass(frozen=True)
class PrintedRow:
    """A printed row of nets of Table 1; several ``members`` are fused or pooled."""

    table: int
    members: tuple[TestedNet, ...]

    @property
    def nets(self) -> tuple[str, ...]:
        """Columns of Table 1 of the members, in the paper's order."""
        return tuple(member.net for member in self.members)

    @property
    def S(self) -> Scale | None:
        """Training scale that all members share; None if they differ (the seven nets of Table 6)."""
        scales = {member.S for member in self.members}
        return scales.pop() if len(scales) == 1 else None

    @property
    def Q(self) -> tuple[int, ...] | None:
        """Test scales that all members share; None if they differ (the seven nets of Table 6)."""
        scales = {member.Q for member in self.members}
        return scales.pop() if len(scales) == 1 else None


@dataclass(frozen=True)
class PrintedErrors(PrintedRow):
    """A row of Tables 3-6 (Sections 4.1-4.4): validation errors, and the test set's if printed, per cent."""

    method: Method
    top1: float
    top5: float
    top5_test: float | None = None


@dataclass(frozen=True)
class PrintedBoxes(PrintedRow):
    """A row of Tables 8 and 9 (Appendix A): validation error, and the test set's if printed, per cent."""

    regression: Regression
    fine_tune: FineTune
    error: float
    error_test: float | None = None


@dataclass(frozen=True)
class System:
    """A row of Table 7 (Section 4.5) or 10 (Appendix A): errors in per cent, None if not printed."""

    method: str
    top1: float | None = None
    top5: float | None = None
    top5_test: float | None = None
    error: float | None = None
    """Localisation error, as ``error_test``."""
    error_test: float | None = None


@dataclass(frozen=True)
class TransferTask:
    """A data set of Table 11 or 12, and the protocol of testing features on it (Appendix B)."""

    table: int
    measure: Measure
    classes: int
    images: int
    """Images of the data set, including unlabelled ones."""
    scales: tuple[int, ...]
    """Q at which features are computed, px."""
    combine: Combine
    unlabelled: int = 0
    """Test images whose labels are known to the challenge's server only."""
    splits: int | None = None
    """Random splits into training and test images; None if the data set defines the split."""
    train_per_class: int | None = None
    test_per_class: int | None = None
    """Limit on the test images of a class; None for all others."""


@dataclass(frozen=True)
class TransferFigure:
    """A figure of Table 11 or 12, per cent. Features of several `nets` are stacked; other methods have none."""

    method: str
    set: str
    figure: float
    spread: float | None = None
    boxes: bool = False
    """Whether features of the person's box are added to those of the image (Table 12)."""
    nets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Content of ``facts.yaml``; mappings by net have Table 1's columns (A, A-LRN, B, C, D, E) as keys."""

    architectures: Mapping[str, tuple[tuple[str, ...], ...]]
    """Table 1: blocks between max-pools, with layers written ``conv3-64`` or ``LRN``."""
    weight_layers_printed: Mapping[str, int]
    """Head of Table 1."""
    parameters_printed_millions: Mapping[str, int]
    """Table 2 as printed."""
    parameters: Mapping[str, int]
    """Exact counts behind Table 2: 1000 classes, with biases."""
    parameters_batch_norm: Mapping[str, int]
    """Exact counts with batch normalisation after every convolution (not in the paper)."""
    hyperparameters: Mapping[str, Hyperparameter]
    tables: Mapping[int, tuple[PrintedErrors, ...]]
    """Tables 3-6."""
    state_of_the_art: tuple[System, ...]
    """Table 7."""
    localisation: Mapping[int, tuple[PrintedBoxes, ...]]
    """Tables 8 and 9."""
    localisation_state_of_the_art: tuple[System, ...]
    """Table 10."""
    transfer: Mapping[str, TransferTask]
    """Appendix B's data sets by name."""
    transfer_figures: tuple[TransferFigure, ...]
    """Tables 11 and 12."""

    def table(self, number: int) -> tuple[PrintedErrors, ...]:
        """Returns the rows of Table 3, 4, 5 or 6 in the paper's order."""
        return self.tables[number]


@cache
def facts() -> Facts:
    """Reads ``facts.yaml``, once per process."""
    with (Path(__file__).parent / "facts.yaml").open(encoding="utf-8") as file:
        raw = _frozen(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    typed = {
        "hyperparameters": {name: Hyperparameter(**entry) for name, entry in raw["hyperparameters"].items()},
        "tables": _rows(PrintedErrors, raw["tables"]),
        "localisation": _rows(PrintedBoxes, raw["localisation"]),
        "transfer": {name: TransferTask(**task) for name, task in raw["transfer"].items()},
        "transfer_figures": tuple(TransferFigure(**row) for row in raw["transfer_figures"]),
    }
    systems = ("state_of_the_art", "localisation_state_of_the_art")
    return Facts(**raw | typed | {name: tuple(System(**row) for row in raw[name]) for name in systems})


def value(name: str) -> Any:
    """Returns the paper's value of a hyper-parameter, e.g. ``value("batch_size") == 256``; lists are tuples.

    Raises:
        KeyError: ``facts.yaml`` does not have the hyper-parameter.
    """
    return facts().hyperparameters[name].value


@cache
def ilsvrc_classes() -> tuple[str, ...]:
    """Returns the 1000 sorted WordNet ids of ILSVRC-2012: the class order of every net trained on it."""
    return tuple(Path(__file__).with_name("ilsvrc2012_wnids.txt").read_text(encoding="ascii").split())


def _rows(kind: Callable[..., T], tables: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[int, tuple[T, ...]]:
    """Returns printed rows by table; `nets` in the file become their members."""

    def row(table: int, nets: Sequence[Mapping[str, Any]], **rest: Any) -> T:
        return kind(table, tuple(TestedNet(**net) for net in nets), **rest)

    return {table: tuple(row(table, **entry) for entry in rows) for table, rows in tables.items()}


def _frozen(raw: Any) -> Any:
    """Converts nested lists to tuples."""
    if isinstance(raw, dict):
        return {key: _frozen(item) for key, item in raw.items()}
    return tuple(map(_frozen, raw)) if isinstance(raw, list) else raw
