"""A data set of Appendix B by its name: opened, or only looked at."""

from pathlib import Path
from typing import NamedTuple

from vggrepro.data.images.scan import Progress
from vggrepro.data.transfer import class_folders, voc
from vggrepro.data.transfer.transfer_set import Drawing, TransferSet


def open_transfer(
    name: str, source: Path, settings: Drawing, cache: Path, progress: Progress = lambda done, total: None
) -> TransferSet:
    """A key of `paper.facts().transfer`, or a folder of classes of any other name, as it is downloaded.

    Nothing is extracted. The index is kept in `cache`, so that the next time is quick; `progress(done, total)` is told
    the images looked at. Raises UserError.
    """
    if name in voc.CHALLENGES:
        return voc.open_voc(name, source, settings.seed, cache, progress)
    return class_folders.open_class_folders(name, source, settings, cache, progress)


class Listing(NamedTuple):
    """What is there by lists of files."""

    classes: int
    images: int
    samples: int
    """Images, or persons in them."""


def look(name: str, source: Path, settings: Drawing) -> Listing:
    """What :func:`open_transfer` will find if all images are sound; none is read. Raises UserError where it would."""
    if name in voc.CHALLENGES:
        return Listing(*voc.listed(name, source))
    members = class_folders.listed(name, source)
    return Listing(class_folders.require_enough(members, settings, source), len(members), len(members))
