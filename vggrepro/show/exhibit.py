"""A trained net with its test settings, run directory and validation images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Config
from vggrepro.data.dataset import open_data
from vggrepro.data.decode import BadImageError, blaming_the_machine, opened, rgb
from vggrepro.data.images.index import Split
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Measured, NetResults
from vggrepro.models.table1 import require_class_scores
from vggrepro.models.weights import read
from vggrepro.pipeline.pretrained import Pretrained, load
from vggrepro.pipeline.weights import checkpoint_of
from vggrepro.progress import progress
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import Departure, read_ledger
from vggrepro.storage.status import locate, relocated, stage_at

_METHODS = ("centre", "dense", "multicrop", "both")


@dataclass(frozen=True)
class Exhibit:
    """A trained net with its test settings, run directory and validation images."""

    name: str
    """The run directory, checkpoint or weight file, as it was named."""
    net: Pretrained
    stage: Config
    """How it was trained and is tested, as far as its file tells."""
    run: RunDirectory | None
    """Run directory; None for a weight file, whose training is unknown."""
    images: Split | None
    """Validation images; None if they cannot be opened."""
    why_no_images: str = ""

    def class_name(self, label: int) -> str:
        """Returns the name of a class; its number if the net's file has no names."""
        return self.net.classes[label] if self.net.classes else f"class {label}"

    def pixels(self, image: int) -> NDArray[np.uint8]:
        """Returns the pixels (h, w, 3) of a validation image, decoded as in `vggrepro evaluate`. Raises UserError."""
        assert self.images is not None
        name = self.images.name_of(image)
        try:
            encoded = self.images.read(image)
        except BadImageError as error:
            raise UserError(f"{name} cannot be shown: {error}; choose another image") from None
        return decoded(encoded, name)

    def errors(self) -> Iterator[Measured]:
        """Reads the stored errors of the net, by method, at its Q of Tables 3 and 4.

        Raises UserError for an unreadable file.
        """
        data = self.run.read_json("dataset.json") if self.run else None
        if self.run is None or data is None:
            return
        results = NetResults(self.run, self.net.weights, data["fingerprint"], self.stage.evaluation)
        for method in _METHODS:
            for Q in dict.fromkeys((self.stage.single_Q, self.stage.multi_Q)):
                if found := results.measured(method, Q):
                    yield found

    def departures(self) -> list[Departure] | None:
        """Reads the run's departures from the paper; None without a ledger. Raises UserError."""
        return read_ledger(self.run) if self.run else None


@cache  # the page is run anew at each change
def open_exhibit(source: str) -> Exhibit:
    """Loads a net from a run directory, a checkpoint or a weight file, and opens its validation images.

    Raises UserError for the reasons of `pipeline.pretrained.load`, and for a net without class scores.
    """
    net = load(source)
    require_class_scores(net.net.architecture)
    file, folder = locate(Path(source))
    if not checkpoint.is_checkpoint(file):
        stage = checkpoint_of(read(file), Path("runs/imported/net")).stage
        return Exhibit(source, net, stage, None, None, "the images of a weight file are unknown")
    if not (folder / "config.yaml").exists():
        stage = checkpoint.load(file).stage
        return Exhibit(source, net, stage, None, None, "the checkpoint is not in a run directory")
    stage = stage_at(folder)
    images, reason = _validation_images(net, relocated(stage, folder))
    return Exhibit(source, net, stage, RunDirectory(folder), images, reason)


def _validation_images(net: Pretrained, stage: Config) -> tuple[Split | None, str]:
    """Opens the validation images; returns None and the reason without any."""
    try:
        with progress("reading image headers", None) as update:
            index = open_data(stage, lambda done, total: update(done, f"of {total}"), training=False)
    except UserError as error:
        return None, str(error)
    if net.classes is not None and index.classes != net.classes:
        return None, f"{index.source} has other classes than the net was trained on"
    return index.split("val"), ""


def decoded(encoded: bytes, name: str) -> NDArray[np.uint8]:
    """Decodes an image file of any mode to pixels (h, w, 3), without EXIF rotation. Raises UserError with its name."""
    try:
        with blaming_the_machine(), opened(encoded) as image:
            return np.asarray(rgb(image))
    except BadImageError as error:
        raise UserError(f"{name} cannot be shown: {error}; choose another image, a JPEG, PNG or WebP, say") from None
