"""A rank's share of what a net computes for every image of a split, kept in parts until all are there."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.config.settings import Precision
from vggrepro.data.index import Split
from vggrepro.data.loader import Batch, Loader
from vggrepro.data.views import Views
from vggrepro.evaluation.parts import Parts
from vggrepro.models.precision import autocast
from vggrepro.progress import progress
from vggrepro.ranks.collectives import from_every_rank, from_first_rank
from vggrepro.ranks.watch import Watch


@torch.inference_mode()
def compute(
    parts: Parts,
    predict: Callable[[Batch], NDArray[np.floating]],
    loader: Loader,
    split: Split,
    views: Sequence[Views],
    watch: Watch,
    precision: Precision,
    *,
    name: str,
    doing: str,
) -> None:
    """Adds this rank's share of what is not done to the parts: (N, entries, ...) of a batch, an image's in a row.

    Every rank calls it, with all views of the split, and all have written when it returns. `name: doing` is shown.
    Raises UserError, and Interrupted on every rank when one was asked to stop; what was computed by then is kept.
    """
    topology, n = watch.topology, len(split)
    done = from_first_rank(parts.done(n) if topology.is_first else None)
    left = [one for one in views if not done[one.image].all()][topology.rank :: topology.world]
    tested, share = 0, -(-int((~done).sum()) // topology.world)
    with progress(f"{name}: {doing}", share, shown=topology.is_first) as update:
        try:
            for batch in watch.attend(loader.batches(split, left), doing):
                with autocast(loader.device, precision):
                    predicted = predict(batch)
                rows = batch.views.image
                counts = np.full(len(rows), predicted.shape[1])
                parts.add(rows, predicted.reshape(-1, *predicted.shape[2:]).astype(np.float32), counts)
                tested += len(rows)
                update(tested, "")
        finally:  # an interrupt loses nothing that was computed
            parts.flush()
    from_every_rank(None)  # until every rank has written
