"""What MLflow loads of a net that was logged: images to class probabilities, by the paper's dense test.

`mlflow.pyfunc` imports this module from the copy of the package in the model's folder, so that neither an installation
nor a checkout is needed. It imports no more than :mod:`vggrepro.pipeline.pretrained` does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.decode import BadImageError, opened, rgb
from vggrepro.errors import UserError
from vggrepro.pipeline.pretrained import Pretrained, load, require_several
from vggrepro.storage.logged_model import NET


def _load_pyfunc(path: str) -> ServedNet:
    return ServedNet(load(Path(path) / NET))


class ServedNet:
    """The dense test of a net (Section 3.2) behind MLflow's interface."""

    def __init__(self, net: Pretrained) -> None:
        self.net = net

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Posteriors (N, classes) of N images of any sizes.

        Args:
            images: arrays (H, W, 3) of RGB grey levels 0-255, uint8 or float, in one array or a list; or encoded files,
                as bytes or in base64; a data frame has them in its first column.
            params: `Q`, shorter sides in px (default: the net's own of Table 4); `flip`, whether mirror images are
                averaged, too.

        Raises:
            UserError: an image cannot be decoded, has another shape, or grey levels out of range; Q is too small.
        """
        given = dict(params or {})
        if hasattr(images, "iloc"):
            images = images.iloc[:, 0].tolist()
        require_several(images)
        Q = [int(side) for side in np.atleast_1d(given.get("Q", self.net.Q))]
        decoded = [_decoded(image, f"image {number}") for number, image in enumerate(images)]
        return self.net.predict(decoded, Q, flip=bool(given.get("flip", self.net.flip)))


def _decoded(image: Any, name: str) -> Any:
    """An encoded image as PIL has it, others as they are. Raises UserError."""
    try:
        if isinstance(image, str):
            image = base64.b64decode(image, validate=True)
        if isinstance(image, bytes):
            with opened(image) as encoded:
                return rgb(encoded)
    except (BadImageError, binascii.Error) as error:
        raise UserError(f"{name} cannot be decoded ({error}); give an encoded image, as bytes or in base64") from None
    return image
