"""What nets compute for every image of a split: each rank's share of it, stored once all images are there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.config.settings import Precision
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Ints, Views
from vggrepro.evaluation.parts import PartialResults
from vggrepro.evaluation.store import Key
from vggrepro.models.precision import autocast
from vggrepro.progress import progress
from vggrepro.ranks.collectives import from_every_rank, from_first_rank
from vggrepro.ranks.watch import Watch
from vggrepro.storage.directory import RunDirectory

Output = TypeVar("Output")


@dataclass(frozen=True)
class Computation:
    """One answer to compute and store."""

    key: Key[Any]
    predict: Callable[[Batch], NDArray[np.floating]]
    """A batch's (N, entries, ...), an image's in a row."""
    answer: Callable[[Ints, NDArray[np.float32]], Any]
    """What to store, of (start (n + 1,), all entries): those of image i from start[i] to start[i + 1]."""


def store_over_split(
    computations: Sequence[Computation],
    run: RunDirectory,
    loader: Loader,
    split: Split,
    views: Sequence[Views],
    watch: Watch,
    precision: Precision,
    doing: str,
) -> None:
    """Computes answers from the same decoded images and stores them; every rank calls it, with all views of the split.

    What an interrupted call computed, the next one continues, on however many ranks; batches do not depend on their
    number, so neither do answers. `doing` is shown. Raises UserError, and Interrupted on every rank.
    """
    topology, n = watch.topology, len(split)
    parts = [PartialResults(computation.key.file(run)) for computation in computations]
    done = from_first_rank([part.done(n) for part in parts] if topology.is_first else None)
    complete = np.logical_and.reduce(done)
    left = [view for view in views if not complete[view.image].all()]
    share = -(-int((~complete).sum()) // topology.world)

    def predict(batch: Batch) -> None:
        rows = batch.views.image
        for computation, part, there in zip(computations, parts, done, strict=True):
            if not there[rows].all():
                predicted = computation.predict(batch)
                counts = np.full(len(rows), predicted.shape[1])
                part.add(rows, predicted.reshape(-1, *predicted.shape[2:]).astype(np.float32), counts)

    tested = 0
    with progress(f"{run.path.resolve().name}: {doing}", share, shown=topology.is_first) as update:
        try:
            for batch, _ in outputs(predict, loader, split, left, watch, precision, doing):
                tested += len(batch.views)
                update(tested, "")
        finally:  # an interrupt loses nothing that was computed
            for part in parts:
                part.flush()
    from_every_rank(None)  # until every rank has written
    if topology.is_first:
        for computation, part in zip(computations, parts, strict=True):
            computation.key.save(run, computation.answer(*part.gather(n)))
            part.remove()


def outputs(
    apply: Callable[[Batch], Output],
    loader: Loader,
    split: Split,
    views: Sequence[Views],
    watch: Watch,
    precision: Precision,
    doing: str,
) -> Iterator[tuple[Batch, Output]]:
    """This rank's share of the views of a split, batch by batch, with what a net makes of it.

    Raises Interrupted on every rank when one is to stop.
    """
    topology = watch.topology
    for batch in watch.attend(loader.batches(split, views[topology.rank :: topology.world]), doing):
        with torch.inference_mode(), autocast(loader.device, precision):
            output = apply(batch)
        yield batch, output
