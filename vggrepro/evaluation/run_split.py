"""Computation of nets over all images of a split, divided among ranks and stored once all images are complete."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.config.settings import Precision
from vggrepro.data.boxes.box_set import spans
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Ints, Views
from vggrepro.errors import UserError
from vggrepro.evaluation.store import Arrays, Key, read_arrays, write_arrays
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.progress import progress
from vggrepro.ranks.collectives import from_every_rank, from_first_rank
from vggrepro.ranks.watch import Watch
from vggrepro.storage.directory import RunDirectory

Output = TypeVar("Output")
_SECONDS_BETWEEN_PARTS = 30.0


@dataclass(frozen=True)
class Computation:
    """A result to compute and store."""

    key: Key[Any]
    predict: Callable[[Batch], NDArray[np.floating]]
    """Maps a batch to entries of its images, shape (N, entries, ...)."""
    to_value: Callable[[Ints, NDArray[np.float32]], Any]
    """Maps (start (n + 1,), all entries) to the value to store; image i has the entries start[i] to start[i + 1]."""


@dataclass(frozen=True)
class SplitPass:
    """Shows a rank's images of a split to nets."""

    split: Split
    loader: Loader
    watch: Watch
    precision: Precision

    def outputs(
        self, apply: Callable[[Batch], Output], views: Sequence[Views], doing: str
    ) -> Iterator[tuple[Batch, Output]]:
        """Yields this rank's batches of the views and their outputs. Raises Interrupted on every rank."""
        topology = self.watch.topology
        for batch in self.watch.until_stopped(
            self.loader.batches(self.split, views[topology.rank :: topology.world]), doing
        ):
            with torch.inference_mode(), autocast(self.loader.device, self.precision):
                output = apply(batch)
            yield batch, output

    def store(self, computations: Sequence[Computation], run: RunDirectory, views: Sequence[Views], doing: str) -> None:
        """Computes results from the same decoded images and stores them; every rank calls it with all views.

        An interrupted computation is continued by the next call, on any number of ranks. Batches, and so results, do
        not depend on that number. `doing` is displayed. Raises UserError, and Interrupted on every rank.
        """
        set_arithmetic(self.loader.device, self.precision)
        topology, n = self.watch.topology, len(self.split)
        parts = [PartialResults(computation.key.file(run)) for computation in computations]
        done = from_first_rank([part.done(n) for part in parts] if topology.is_first else None)
        complete = np.logical_and.reduce(done)
        remaining_views = [view for view in views if not complete[view.image].all()]
        rank_images = -(-int((~complete).sum()) // topology.world)

        def predict(batch: Batch) -> None:
            rows = batch.views.image
            for computation, part, done_rows in zip(computations, parts, done, strict=True):
                if not done_rows[rows].all():
                    part.add(rows, computation.predict(batch))

        tested = 0
        with progress(f"{run.path.resolve().name}: {doing}", rank_images, shown=topology.is_first) as update:
            try:
                for batch, _ in self.outputs(predict, remaining_views, doing):
                    tested += len(batch.views)
                    update(tested, "")
            finally:  # an interrupt loses no results
                for part in parts:
                    part.flush()
        from_every_rank(None)  # waits until every rank has written
        if topology.is_first:
            for computation, part in zip(computations, parts, strict=True):
                computation.key.save(run, computation.to_value(*part.gather(n)))
                shutil.rmtree(part.folder)


class PartialResults:
    """Results for some images of a split in small files, which all ranks add to until the split is complete.

    An evaluation continues the files of a killed one, on any number of ranks. Each rank has its object.
    """

    def __init__(self, file: Path) -> None:
        self.folder = file.with_suffix(".parts")
        self._pending: list[Arrays] = []
        self._written = time.monotonic()

    def done(self, n: int) -> NDArray[np.bool_]:
        """Returns which rows are on disk, shape (n,). Raises UserError for a file that cannot be read."""
        done = np.zeros(n, np.bool_)
        for part in self._read("rows"):
            done[part["rows"]] = True
        return done

    def add(self, rows: Ints, entries: NDArray[np.floating]) -> None:
        """Adds rows (k,) with entries (k, entries per row, ...); writes pending rows from time to time."""
        values = entries.reshape(-1, *entries.shape[2:]).astype(np.float32)
        self._pending.append({"rows": rows, "values": values, "counts": np.full(len(rows), entries.shape[1])})
        if time.monotonic() - self._written > _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self) -> None:
        """Writes pending rows."""
        if self._pending:
            joined = {key: np.concatenate([part[key] for part in self._pending]) for key in self._pending[0]}
            write_arrays(self.folder / f"{uuid.uuid4().hex}.npz", **joined)
            self._pending = []
        self._written = time.monotonic()

    def gather(self, n: int) -> tuple[Ints, NDArray[np.float32]]:
        """Returns (start (n + 1,), entries) after all ranks have flushed; image i has entries start[i] to start[i + 1].

        Raises UserError if rows are missing because ranks do not share a file system.
        """
        counts = np.full(n, -1, np.int64)
        for part in self._read("rows", "counts"):
            counts[part["rows"]] = part.get("counts", 1)  # files from before December 2026 have one entry per row
        if missing := int((counts < 0).sum()):
            raise UserError(
                f"{missing} of {n} images are missing in {self.folder}: the ranks do not see each other's files; put "
                f"the run directory on a shared file system"
            )
        start = np.concatenate([[0], np.cumsum(counts)])
        values = np.empty(0, np.float32)
        for part in self._read("rows", "values"):
            if not values.size:
                values = np.empty((start[-1], *part["values"].shape[1:]), np.float32)
            values[spans(start[part["rows"]], counts[part["rows"]])] = part["values"]
        return start, values

    def _read(self, *names: str) -> Iterator[Arrays]:
        """Reads the named arrays of each part."""
        return (read_arrays(file, *names) for file in sorted(self.folder.glob("[!.]*.npz")))
