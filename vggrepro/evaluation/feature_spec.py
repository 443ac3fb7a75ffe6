"""How the paper tests features of a data set, and what a configuration changes of it (Appendix B). No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vggrepro.config.settings import Config, Transfer
from vggrepro.data.transfer.transfer_set import Drawing
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of
from vggrepro.paper import Combine, TransferTask, facts, value

_OTHER = TransferTask(table=11, measure="recall", classes=0, images=0, scales=facts().transfer["caltech101"].scales,
                      combine="stack", splits=3, train_per_class=30, test_per_class=50)  # fmt: skip
"""How a folder of classes that the paper does not know is tested: as Caltech-101."""


def task_of(name: str) -> TransferTask:
    """How the paper tests a data set; one that it does not know is tested as Caltech-101."""
    return facts().transfer.get(name, _OTHER)


def drawing_of(name: str, settings: Transfer) -> Drawing:
    """How a data set is split."""
    task = task_of(name)
    return Drawing(
        settings.seed,
        settings.splits,
        settings.train_per_class or task.train_per_class or _OTHER.train_per_class or 1,
        settings.test_per_class or task.test_per_class,
    )


def scales_at(crop: int, scales: tuple[int, ...]) -> tuple[int, ...]:
    """The paper's Q in the proportion of a net's crop to its own, px."""
    return tuple(dict.fromkeys(round(Q * crop / value("crop")) for Q in scales))


@dataclass(frozen=True)
class FeatureSpec:
    """One way to make descriptors of a data set's samples."""

    Q: tuple[int, ...]
    """Shorter sides, px."""
    combine: Combine
    boxes: bool = False
    """The descriptor of a person's box beside that of the image."""


def feature_specs(name: str, config: Config) -> list[FeatureSpec]:
    """How a net is tested on a data set: first as the paper's tables have it, then what its text compares that with.

    On VOC, fewer scales and stacked ones; on Caltech, averaged ones; of actions, first the image alone and then its
    person's box as well. Where the configuration says scales or combination, that alone. Raises UserError for a Q that
    is too small for the net.
    """
    task, settings, crop = task_of(name), config.transfer, config.model.crop
    smallest = architecture_of(config).smallest_side
    if min(settings.scales, default=smallest) < smallest:
        raise UserError(f"Q = {min(settings.scales)} is smaller than {config.name} takes; use {smallest} or more")

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
