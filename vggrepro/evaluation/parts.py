"""Answers that are still being computed: small files that any number of ranks add to. No torch."""

import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.boxes.box_set import spans
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.store import read_arrays, write_arrays

_SECONDS_BETWEEN_PARTS = 30.0


class PartialResults:
    """What is computed for each image of a split, until all images are there.

    An image has one entry, or with `counts` any number of them. What a killed evaluation leaves, the next one
    continues, on however many ranks. One object for each rank.
    """

    def __init__(self, file: Path) -> None:
        self.folder = file.with_suffix(".parts")
        self._pending: list[dict[str, NDArray[Any]]] = []
        self._written = time.monotonic()

    def done(self, n: int) -> NDArray[np.bool_]:
        """(n,) which rows are on disk. Raises UserError for a file that cannot be read."""
        done = np.zeros(n, np.bool_)
        for part in self._files():
            done[read_arrays(part)["rows"]] = True
        return done

    def add(self, rows: Ints, values: NDArray[np.float32], counts: Ints | None = None) -> None:
        """Takes rows (k,) with entries (k, ...) or (sum of counts, ...); writes what it has from time to time."""
        self._pending.append(
            {"rows": rows, "values": values, "counts": np.ones_like(rows) if counts is None else counts}
        )
        if time.monotonic() - self._written > _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self) -> None:
        """Writes what has not been written."""
        if self._pending:
            joined = {key: np.concatenate([part[key] for part in self._pending]) for key in self._pending[0]}
            write_arrays(self.folder / f"{uuid.uuid4().hex}.npz", **joined)
            self._pending = []
        self._written = time.monotonic()

    def gather(self, n: int) -> tuple[Ints, NDArray[np.float32]]:
        """(start (n + 1,), entries), those of image i from start[i] to start[i + 1]; after all ranks have flushed.

        Raises UserError when rows are missing: another rank wrote its own where this one does not see them.
        """
        parts = [read_arrays(part) for part in self._files()]
        for part in parts:
            part.setdefault("counts", np.ones_like(part["rows"]))  # as of before December 2026
        counts = np.full(n, -1, np.int64)
        for part in parts:
            counts[part["rows"]] = part["counts"]
        if missing := int((counts < 0).sum()):
            raise UserError(
                f"{missing} of {n} images are missing in {self.folder}: the ranks do not see each other's files; put "
                f"the run directory on a shared file system"
            )
        start = np.concatenate([[0], np.cumsum(counts)])
        values = np.empty((start[-1], *parts[0]["values"].shape[1:]), np.float32)
        for part in parts:
            values[spans(start[part["rows"]], part["counts"])] = part["values"]
        return start, values

    def remove(self) -> None:
        """Removes what has been gathered and stored elsewhere."""
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[!.]*.npz"))
