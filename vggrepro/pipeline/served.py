"""Model that MLflow loads: class probabilities of images by the paper's dense test.

`mlflow.pyfunc` imports this module from the copy of the package in the model's folder, without an installation or a
checkout. It has no imports beyond those of :mod:`vggrepro.pipeline.pretrained`.
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
    """Dense test of a net (Section 3.2) with MLflow's interface."""

    def __init__(self, net: Pretrained) -> None:
        self.net = net

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Computes posteriors, shape (n, classes), of n images of any sizes.

        Args:
            images: an array or list of RGB images, shape (H, W, 3), with grey levels 0-255 as uint8 or float; or
                encoded files as bytes or in base64. A data frame has images in its first column.
            params: `Q`, shorter sides in pixels (default: the net's Q of Table 4), and `flip`, whether the posteriors
                of mirror images are included in the average.

        Raises:
            UserError: an image cannot be decoded or has another shape or grey levels out of range, or Q is too small.
        """
        settings = dict(params or {})
        if hasattr(images, "iloc"):
            images = images.iloc[:, 0].tolist()
        require_several(images)
        Q = [int(side) for side in np.atleast_1d(settings.get("Q", self.net.Q))]
        decoded = [_decoded(image, f"image {number}") for number, image in enumerate(images)]
        return self.net.predict(decoded, Q, flip=bool(settings.get("flip", self.net.flip)))


def _decoded(image: Any, name: str) -> Any:
    """Decodes an encoded image; returns other images unchanged. Raises UserError."""
    try:
        if isinstance(image, str):
            image = base64.b64decode(image, validate=True)
        if isinstance(image, bytes):
            with opened(image) as encoded:
                return rgb(encoded)
    except (BadImageError, binascii.Error) as error:
        raise UserError(f"{name} cannot be decoded ({error}); give an encoded image, as bytes or in base64") from None
    return image
