"""Opens or lists a data set of Appendix B by its name."""

from pathlib import Path
from typing import NamedTuple

from vggrepro.data.images.scan import Progress
from vggrepro.data.transfer import class_folders, voc
from vggrepro.data.transfer.transfer_set import Drawing, TransferSet


def open_transfer(
    name: str, source: Path, settings: Drawing, cache: Path, progress: Progress = lambda done, total: None
) -> TransferSet:
    """Opens a downloaded data set: a key of `paper.facts().transfer`, or a folder of classes under any other name.

    The index is stored in `cache` for reuse. Calls `progress(done, total)` in images. Raises UserError.
    """
    if name in voc.CHALLENGES:
        return voc.open_voc(name, source, settings.seed, cache, progress)
    return class_folders.open_class_folders(name, source, settings, cache, progress)


class Listing(NamedTuple):
    """The size of a data set according to its file lists."""

    classes: int
    images: int
    samples: int  # images, or persons in them


def list_transfer(name: str, source: Path, settings: Drawing) -> Listing:
    """Predicts what :func:`open_transfer` will find if all images are usable. Raises UserError where it would."""
    if name in voc.CHALLENGES:
        return Listing(*voc.listed(name, source))
    members = class_folders.listed(name, source)
    return Listing(class_folders.require_enough(members, settings, source), len(members), len(members))
