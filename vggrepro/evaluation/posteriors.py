"""The posteriors store: the softmax of a whole validation set for one net, one method and one Q, kept once.

Everything else that evaluation prints is arithmetic on these arrays, and needs neither the net nor a GPU. They are
float32, as computed: nothing is rounded, so the order of the guesses is the net's own. No torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.parts import Parts, read_arrays, write_arrays


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
        protocol = np.array(json.dumps(asdict(self.protocol)))
        write_arrays(self.protocol.file(folder), values=self.values, labels=self.labels, protocol=protocol)


def load(protocol: Protocol, folder: Path) -> Posteriors | None:
    """The stored posteriors of a protocol, or None. Raises UserError for a file that is something else."""
    file = protocol.file(folder)
    if not file.exists():
        return None
    content = read_arrays(file)
    try:
        stored: dict[str, Any] = json.loads(str(content["protocol"]))
        found = Posteriors(Protocol(**stored), content["values"], content["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(file, error) from None
    if found.protocol != protocol:
        raise UserError(f"posteriors {file} are of another protocol ({stored}); remove the file and evaluate again")
    return found


def described(file: Path) -> tuple[Protocol, int]:
    """(protocol, number of images) of a stored file, without reading its posteriors. Raises UserError."""
    content = read_arrays(file, "protocol", "labels")
    try:
        return Protocol(**json.loads(str(content["protocol"]))), len(content["labels"])
    except (ValueError, TypeError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"posteriors {file} cannot be read ({error}); remove the file and evaluate again")


def finish(parts: Parts, protocol: Protocol, labels: NDArray[np.int64], folder: Path) -> None:
    """Turns the parts, once all rows are there, into the stored posteriors. Rank 0 only, after all have flushed.

    Raises UserError when rows are missing.
    """
    _, values = parts.gather(len(labels))
    Posteriors(protocol, values, labels).save(folder)
    parts.remove()


def average(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(n, classes) equal-weight mean of posteriors, over Q, methods or nets (Sections 3.2, 4.3, 4.4)."""
    assert len({one.shape for one in sets}) == 1, "posteriors of different data sets"
    return np.stack(sets).mean(axis=0, dtype=np.float64).astype(np.float32)
