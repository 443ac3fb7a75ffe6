"""The paper as data: Table 1's columns, every hyper-parameter with its section, the figures of Tables 2-12.

The figures themselves are in ``facts.yaml``; this module only gives them types. It imports neither torch nor numpy.
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
"""Mean average precision by 11 points (VOC 2007) or by area (VOC 2012), or mean class recall."""
Regression = Literal["SCR", "PCR"]
"""One box for all classes together (single-class regression), or one for each class (per-class regression)."""
FineTune = Literal["all", "fc"]
"""Which layers of a net that predicts boxes are trained: all, or the fully-connected ones alone."""
Combine = Literal["average", "stack"]
"""What is made of the features at several Q."""
Scale = int | tuple[int, int]
"""A training scale S in pixels of the shorter side: one value, or the range [S_min; S_max] of scale jittering."""


def scale_text(S: Scale) -> str:
    """S as the paper's tables print it."""
    return f"[{S[0]};{S[1]}]" if isinstance(S, tuple) else str(S)


@dataclass(frozen=True)
class Hyperparameter:
    """A value of the paper and where it stands: a section number, with what else it rests on."""

    value: Any
    section: str


@dataclass(frozen=True)
class TestedNet:
    """One column of Table 1, trained at scale ``S`` and tested at the scales ``Q`` (pixels of the shorter side)."""

    net: str
    S: Scale
    Q: tuple[int, ...]


@dataclass(frozen=True)
class PrintedRow:
    """One row of a table that our nets stand in; ``members`` are several where they are fused or pooled."""

    table: int
    members: tuple[TestedNet, ...]

    @property
    def nets(self) -> tuple[str, ...]:
        """The members' columns of Table 1, in the paper's order."""
        return tuple(member.net for member in self.members)

    @property
    def S(self) -> Scale | None:
        """The training scale that all members share; None where they differ (the seven nets of Table 6)."""
        scales = {member.S for member in self.members}
        return scales.pop() if len(scales) == 1 else None

    @property
    def Q(self) -> tuple[int, ...] | None:
        """The test scales that all members share; None where they differ (the seven nets of Table 6)."""
        scales = {member.Q for member in self.members}
        return scales.pop() if len(scales) == 1 else None


@dataclass(frozen=True)
class PrintedErrors(PrintedRow):
    """Of Tables 3-6 (Sections 4.1-4.4): errors in per cent on the validation set.

    ``top5_test`` is the test set's, where the paper prints it.
    """

    method: Method
    top1: float
    top5: float
    top5_test: float | None = None


@dataclass(frozen=True)
class PrintedBoxes(PrintedRow):
    """Of Tables 8 and 9 (Appendix A): localisation errors in per cent.

    ``error`` is the validation set's, ``error_test`` the test set's where the paper prints it.
    """

    regression: Regression
    fine_tune: FineTune
    error: float
    error_test: float | None = None


@dataclass(frozen=True)
class System:
    """One row of Table 7 (Section 4.5) or 10 (Appendix A): errors in per cent, None where the paper prints none."""

    method: str
    top1: float | None = None
    top5: float | None = None
    top5_test: float | None = None
    error: float | None = None
    """Of localisation, as ``error_test``."""
    error_test: float | None = None


@dataclass(frozen=True)
class TransferTask:
    """A data set of Table 11 or 12 on which features are tested, and how (Appendix B)."""

    table: int
    measure: Measure
    classes: int
    images: int
    """Of the data set itself, unlabelled ones included."""
    scales: tuple[int, ...]
    """Q at which features are taken, px."""
    combine: Combine
    unlabelled: int = 0
    """Test images whose labels only the challenge's server has."""
    splits: int | None = None
    """Random splits into training and test images; None where the data set says which is which."""
    train_per_class: int | None = None
    test_per_class: int | None = None
    """Most of a class; None: all the rest."""


@dataclass(frozen=True)
class TransferFigure:
    """One figure of Table 11 or 12, per cent; `nets` are several where their features are stacked, or none of ours."""

    method: str
    set: str
    figure: float
    spread: float | None = None
    boxes: bool = False
    """Table 12: features of the person's box beside those of the image."""
    nets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that ``facts.yaml`` states; the keys of the mappings are Table 1's columns (A, A-LRN, B, C, D, E)."""

    architectures: Mapping[str, tuple[tuple[str, ...], ...]]
    """Table 1: the blocks between max-pools, each layer written ``conv3-64`` or ``LRN``."""
    weight_layers_printed: Mapping[str, int]
    """The head of Table 1."""
    parameters_printed_millions: Mapping[str, int]
    """Table 2 as printed."""
    parameters: Mapping[str, int]
    """The exact counts behind Table 2: 1000 classes, with biases."""
    parameters_batch_norm: Mapping[str, int]
    """The same with batch normalisation after every convolution (not in the paper)."""
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
        """The rows of Table 3, 4, 5 or 6 in the paper's order."""
        return self.tables[number]


@cache
def facts() -> Facts:
    """Read ``facts.yaml`` (once a process)."""
    with (Path(__file__).parent / "facts.yaml").open(encoding="utf-8") as file:
        raw = _frozen(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    made = {
        "hyperparameters": {name: Hyperparameter(**entry) for name, entry in raw["hyperparameters"].items()},
        "tables": _rows(PrintedErrors, raw["tables"]),
        "localisation": _rows(PrintedBoxes, raw["localisation"]),
        "transfer": {name: TransferTask(**task) for name, task in raw["transfer"].items()},
        "transfer_figures": tuple(TransferFigure(**row) for row in raw["transfer_figures"]),
    }
    systems = ("state_of_the_art", "localisation_state_of_the_art")
    return Facts(**raw | made | {name: tuple(System(**row) for row in raw[name]) for name in systems})


def value(name: str) -> Any:
    """The paper's value of the hyper-parameter ``name``, e.g. ``value("batch_size") == 256``; lists are tuples.

    Raises:
        KeyError: no such hyper-parameter in ``facts.yaml``.
    """
    return facts().hyperparameters[name].value


@cache
def ilsvrc_classes() -> tuple[str, ...]:
    """The 1000 WordNet ids of ILSVRC-2012's classes, sorted: the order of classes of every net trained on it."""
    return tuple(Path(__file__).with_name("ilsvrc2012_wnids.txt").read_text(encoding="ascii").split())


def _rows(kind: Callable[..., T], tables: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[int, tuple[T, ...]]:
    """Printed rows by the number of their table; `nets` in the file are their members."""

    def row(table: int, nets: Sequence[Mapping[str, Any]], **rest: Any) -> T:
        return kind(table, tuple(TestedNet(**net) for net in nets), **rest)

    return {table: tuple(row(table, **one) for one in rows) for table, rows in tables.items()}


def _frozen(raw: Any) -> Any:
    """Lists, however deep, as tuples."""
    if isinstance(raw, dict):
        return {key: _frozen(item) for key, item in raw.items()}
    return tuple(map(_frozen, raw)) if isinstance(raw, list) else raw
