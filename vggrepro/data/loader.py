"""From views to batches on a device, by whichever backend."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee

import torch

from vggrepro.config import Config, Data
from vggrepro.data import sample_set
from vggrepro.data.index import Index, Split, open_index
from vggrepro.data.views import Views
from vggrepro.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Pictures as the net sees them."""

    images: torch.Tensor
    """(N, 3, h, w) float32, channels last in memory, RGB 0-255 minus mean."""
    labels: torch.Tensor
    """(N,) int64."""
    views: Views


@dataclass(frozen=True)
class Loader:
    """Renders views of one data set; the same for training and testing, so that both see one decoder and one filter."""

    backend: str
    mean: tuple[float, float, float]
    workers: int
    device: torch.device

    def batches(self, split: Split, stream: Iterable[Views]) -> Iterator[Batch]:
        """The batches of a stream of views, in its order; rendered ahead of their use."""
        if self.backend == "dali":
            from vggrepro.data.dali import render
        else:
            from vggrepro.data.torchvision import render
        rendered, views = tee(stream)
        for images, batch in zip(render(split, rendered, mean=self.mean, workers=self.workers), views, strict=True):
            labels = torch.from_numpy(split.label[batch.picture])
            yield Batch(images.to(self.device), labels.to(self.device), batch)


def make_loader(data: Data, device: torch.device, local_ranks: int) -> Loader:
    """The loader a configuration asks for. Raises UserError when DALI is asked for and missing."""
    present = importlib.util.find_spec("nvidia.dali") is not None
    if data.backend == "dali" and not present:
        raise UserError(
            "data.backend=dali, but nvidia-dali is not installed; install it or set data.backend=torchvision"
        )
    workers = data.workers or max(1, len(os.sched_getaffinity(0)) // local_ranks)
    backend = ("dali" if present else "torchvision") if data.backend == "auto" else data.backend
    return Loader(backend, data.mean, workers, device)


def open_data(config: Config, progress: Callable[[int, int], None] = lambda done, total: None) -> Index:
    """The data set of a configuration, held against it. Raises UserError."""
    root = config.data.root
    if root == sample_set.ROOT:
        root = str(sample_set.ensure(config.run.root / "data"))
    elif root is not None and root.startswith("builtin:"):
        raise UserError(f"data.root={root} is not built in; known: {sample_set.ROOT}")
    index = open_index(root, config.data.index, config.run.root / "index", progress)
    if len(index.classes) != config.model.classes:
        raise UserError(
            f"model.classes={config.model.classes}, but {index.source} has {len(index.classes)}; "
            f"set model.classes={len(index.classes)} or another data.root"
        )
    for name in ("train", "val"):
        if not len(index.split(name)):
            raise UserError(f"{index.source} has no usable picture in {name}; see `vggrepro index`")
    if rejected := index.split("val").rejected:
        raise UserError(
            f"{rejected} validation pictures of {index.source} cannot be read, and an error rate counts all of them; "
            f"`vggrepro index` names them: replace or remove them"
        )
    return index
