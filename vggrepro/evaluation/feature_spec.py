"""Protocols for testing features on a data set: the paper's and a configuration's (Appendix B). No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vggrepro.config.settings import Config, Transfer
from vggrepro.data.transfer.transfer_set import Drawing
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of
from vggrepro.paper import Combine, TransferTask, facts, value

_OTHER = TransferTask(table=11, measure="recall", classes=0, images=0, scales=facts().transfer["caltech101"].scales,
                      combine="stack", splits=3, train_per_class=30, test_per_class=50)  # fmt: skip
"""Protocol of a folder of classes that is not in the paper: Caltech-101's."""


def task_of(name: str) -> TransferTask:
    """Returns the paper's protocol for a data set; others are tested as Caltech-101."""
    return facts().transfer.get(name, _OTHER)


def drawing_of(name: str, settings: Transfer) -> Drawing:
    """Returns how a data set is split."""
    task = task_of(name)
    return Drawing(
        settings.seed,
        settings.splits,
        settings.train_per_class or task.train_per_class or _OTHER.train_per_class or 1,
        settings.test_per_class or task.test_per_class,
    )


def scales_at(crop: int, scales: tuple[int, ...]) -> tuple[int, ...]:
    """Scales the paper's Q in proportion to a net's crop, px."""
    return tuple(dict.fromkeys(round(Q * crop / value("crop")) for Q in scales))


@dataclass(frozen=True)
class FeatureSpec:
    """A way to make descriptors of the samples of a data set."""

    Q: tuple[int, ...]
    """Shorter sides, px."""
    combine: Combine
    boxes: bool = False
    """Whether the descriptor of a person's box is added to that of the image."""


def feature_specs(name: str, config: Config) -> list[FeatureSpec]:
    """Returns the tests of a net on a data set: first that of the paper's tables, then those its text compares.

    The comparisons are fewer or stacked scales on VOC, averaged scales on Caltech, and the person's box added to the
    image for actions. Scales or combinations set in the configuration are not varied. Raises UserError for a Q that is
    too small for the net.
    """
    task, settings, crop = task_of(name), config.transfer, config.model.crop
    smallest = architecture_of(config).smallest_side
    if min(settings.scales, default=smallest) < smallest:
        raise UserError(f"Q = {min(settings.scales)} is too small for {config.name}; use at least {smallest}")

    Q = tuple(dict.fromkeys(settings.scales)) or scales_at(crop, task.scales)
    first = FeatureSpec(Q, settings.combine or task.combine)
    if task.table == 12:
        return [first, replace(first, boxes=True)]
    specs = [first]
    if not settings.combine and len(Q) > 1:
        specs.append(replace(first, combine="average" if first.combine == "stack" else "stack"))
    fewer = scales_at(crop, value("transfer_fewer_scales"))
    if not settings.scales and len(fewer) < len(Q):
        specs.append(replace(first, Q=fewer))
    return specs
