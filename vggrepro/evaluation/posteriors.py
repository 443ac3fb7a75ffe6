"""The posteriors store: the softmax of a whole validation set for one net, one method and one Q, kept once.

Everything else that evaluation prints is arithmetic on these arrays, and needs neither the net nor a GPU.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """What a set of posteriors is the posterior of."""

    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    data: str
    """Fingerprint of the index."""
    method: str
    Q: int
    """Shorter side of the rescaled pictures, px."""
    flip: bool
    """Averaged over the picture and its mirror image."""

    def file(self, folder: Path) -> Path:
        """Where it is stored."""
        flip = "" if self.flip else "-noflip"
        return folder / f"{self.method}-Q{self.Q}{flip}-{self.weights[:12]}-{self.data[:12]}.npz"


@dataclass(frozen=True)
class Posteriors:
    """Softmax posteriors (n, classes) float32 in the index's order, with labels (n,)."""

    protocol: Protocol
    values: NDArray[np.float32]
    labels: NDArray[np.int64]

    def save(self, folder: Path) -> None:
        """Writes all or nothing."""
        file = self.protocol.file(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as out:
                protocol = json.dumps(asdict(self.protocol))
                np.savez(out, values=self.values, labels=self.labels, protocol=np.array(protocol))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def load(protocol: Protocol, folder: Path) -> Posteriors | None:
    """The stored posteriors of a protocol, or None. Raises UserError for a file that is something else."""
    file = protocol.file(folder)
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            stored: dict[str, Any] = json.loads(str(content["protocol"]))
            found = Posteriors(Protocol(**stored), content["values"], content["labels"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"posteriors {file} cannot be read ({error}); remove the file and evaluate again") from None
    if found.protocol != protocol:
        raise UserError(f"posteriors {file} are of another protocol ({stored}); remove the file and evaluate again")
    return found


def average(sets: Sequence[Posteriors]) -> NDArray[np.float32]:
    """(n, classes) equal-weight mean over Q, methods or nets (Sections 3.2, 4.4); all must be of one data set."""
    assert len({one.protocol.data for one in sets}) == 1, "posteriors of different data sets"
    return np.stack([one.values for one in sets]).mean(axis=0, dtype=np.float64).astype(np.float32)
