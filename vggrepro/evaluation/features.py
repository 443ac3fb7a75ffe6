"""The store of features: what the last hidden layer says of each image, at one Q; and descriptors made of it. No torch.

Features are stored as the net gives them. Normalising, averaging or stacking them over Q and nets (Appendix B) is
arithmetic on what is stored.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.evaluation.parts import read_arrays, write_arrays
from vggrepro.paper import Combine


@dataclass(frozen=True)
class FeatureProtocol:
    """What a set of features is of."""

    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    layer: str
    """fc7, or of a net without fully-connected layers its last pooling."""
    data: str
    """Fingerprint of the index."""
    Q: int
    """Shorter side of the rescaled images, or boxes, px."""
    flip: bool
    """Averaged over the image and its mirror image."""
    precision: str = "fp32"
    boxes: str = ""
    """Fingerprint of the boxes where features are of these; empty where they are of whole images."""

    def file(self, folder: Path) -> Path:
        """Where it is stored."""
        what = f"-boxes-{self.boxes[:12]}" if self.boxes else ""
        flip = "" if self.flip else "-noflip"
        precision = "" if self.precision == "fp32" else f"-{self.precision}"
        name = f"{self.layer}-Q{self.Q}{what}{flip}{precision}-{self.weights[:12]}-{self.data[:12]}.npz"
        return folder / name


def save_features(protocol: FeatureProtocol, values: NDArray[np.float32], folder: Path) -> None:
    """Writes (n, units), all or nothing."""
    write_arrays(protocol.file(folder), values=values, protocol=np.array(_text(protocol)))


def load_features(protocol: FeatureProtocol, folder: Path) -> NDArray[np.float32] | None:
    """The stored features (n, units) of a protocol, or None. Raises UserError for a file that is something else."""
    file = protocol.file(folder)
    if not file.exists():
        return None
    content = read_arrays(file)
    if str(content.get("protocol")) != _text(protocol) or "values" not in content:
        raise UserError(f"features {file} are of another protocol; remove the file and compute them again")
    return content["values"]


def descriptors(at_scales: Iterable[NDArray[np.float32]], combine: Combine) -> NDArray[np.float32]:
    """(n, d) descriptors of length 1, of features (n, units) at several Q, each of which is normalised first.

    Of averaged ones two are in memory at a time.
    """
    each = map(normalised, at_scales)
    if combine == "stack":
        return stacked(list(each))
    total = next(each)
    for one in each:
        total += one
    return normalised(total)  # as their mean would be


def stacked(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(n, sum of d) descriptors of length 1, of several (n, d) side by side: of Q, nets, or image and box."""
    joined = np.concatenate(sets, axis=1)
    joined /= _lengths(joined)
    return joined


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their Euclidean length; a row of zeros stays one."""
    return values / _lengths(values)


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1) what rows are divided by; 1 for a row of zeros. Needs no second array of gigabytes."""
    length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))[:, None]
    return np.where(length > 0, length, 1).astype(np.float32)


def _text(protocol: FeatureProtocol) -> str:
    return json.dumps(asdict(protocol), sort_keys=True)
