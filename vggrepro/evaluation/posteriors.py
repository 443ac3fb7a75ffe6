"""The posteriors store: the softmax of a whole validation set for one net, one method and one Q, kept once.

Everything else that evaluation prints is arithmetic on these arrays, and needs neither the net nor a GPU. They are
float32, as computed: nothing is rounded, so the order of the guesses is the net's own. No torch.
"""

import json
import shutil
import time
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.files import replacing

_SECONDS_BETWEEN_PARTS = 30.0


@dataclass(frozen=True)
class Protocol:
    """What a set of posteriors is the posterior of."""

    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    data: str
    """Fingerprint of the index."""
    method: str
    """A key of `methods.METHODS`."""
    Q: int
    """Shorter side of the rescaled images, px."""
    flip: bool
    """Averaged over the image, or the crops, and their mirror images."""
    precision: str = "fp32"
    """Of the net's arithmetic; the posteriors themselves are float32."""

    def file(self, folder: Path) -> Path:
        """Where it is stored."""
        flip = "" if self.flip else "-noflip"
        precision = "" if self.precision == "fp32" else f"-{self.precision}"
        return folder / f"{self.method}-Q{self.Q}{flip}{precision}-{self.weights[:12]}-{self.data[:12]}.npz"


@dataclass(frozen=True)
class Posteriors:
    """Softmax posteriors (n, classes) float32 in the index's order, with labels (n,)."""

    protocol: Protocol
    values: NDArray[np.float32]
    labels: NDArray[np.int64]

    def save(self, folder: Path) -> None:
        """Writes all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        protocol = np.array(json.dumps(asdict(self.protocol)))
        _write(self.protocol.file(folder), values=self.values, labels=self.labels, protocol=protocol)


def load(protocol: Protocol, folder: Path) -> Posteriors | None:
    """The stored posteriors of a protocol, or None. Raises UserError for a file that is something else."""
    file = protocol.file(folder)
    if not file.exists():
        return None
    content = _read(file)
    try:
        stored: dict[str, Any] = json.loads(str(content["protocol"]))
        found = Posteriors(Protocol(**stored), content["values"], content["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"posteriors {file} cannot be read ({error}); remove the file and evaluate again") from None
    if found.protocol != protocol:
        raise UserError(f"posteriors {file} are of another protocol ({stored}); remove the file and evaluate again")
    return found


class Parts:
    """Posteriors that are still being made: small files that any number of ranks add to, until all rows are there.

    What a killed evaluation leaves, the next one continues, on however many ranks. One object for each rank.
    """

    def __init__(self, protocol: Protocol, folder: Path) -> None:
        self.protocol = protocol
        self.folder = protocol.file(folder).with_suffix(".parts")
        self._rows: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []
        self._written = time.monotonic()

    def done(self, n: int) -> NDArray[np.bool_]:
        """(n,) which rows are on disk. Raises UserError for a file that cannot be read."""
        done = np.zeros(n, np.bool_)
        for part in self._files():
            done[_read(part)["rows"]] = True
        return done

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Takes rows (k,) with posteriors (k, classes); writes what it has from time to time."""
        self._rows.append(rows)
        self._values.append(values)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self) -> None:
        """Writes what has not been written."""
        if self._rows:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows, values = np.concatenate(self._rows), np.concatenate(self._values)
            _write(self.folder / f"{uuid.uuid4().hex}.npz", rows=rows, values=values)
            self._rows, self._values = [], []
        self._written = time.monotonic()

    def finish(self, labels: NDArray[np.int64], folder: Path) -> None:
        """Turns the parts, once all rows are there, into the stored posteriors. Rank 0 only, after all have flushed.

        Raises UserError when rows are missing: another rank wrote its own where this one does not see them.
        """
        values: NDArray[np.float32] | None = None
        done = np.zeros(len(labels), np.bool_)
        for part in self._files():
            content = _read(part)
            if values is None:
                values = np.empty((len(labels), content["values"].shape[1]), np.float32)
            values[content["rows"]] = content["values"]
            done[content["rows"]] = True
        if values is None or not done.all():
            raise UserError(
                f"{(~done).sum()} of {len(labels)} images are missing in {self.folder}: the ranks do not see each "
                f"other's files; put the run directory on a shared file system"
            )
        Posteriors(self.protocol, values, labels).save(folder)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[!.]*.npz"))


def _write(file: Path, **arrays: NDArray[Any]) -> None:
    """All or nothing: a file with its final name is whole."""
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def _read(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"posteriors {file} cannot be read ({error}); remove the file and evaluate again") from None


def average(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(n, classes) equal-weight mean of posteriors, over Q, methods or nets (Sections 3.2, 4.3, 4.4)."""
    assert len({one.shape for one in sets}) == 1, "posteriors of different data sets"
    return np.stack(sets).mean(axis=0, dtype=np.float64).astype(np.float32)
