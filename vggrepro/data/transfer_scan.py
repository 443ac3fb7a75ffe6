"""A data set of Appendix B, opened by its name."""

from collections.abc import Callable
from pathlib import Path

from vggrepro.data.class_folders import open_class_folders
from vggrepro.data.transfer import Drawing, TransferSet
from vggrepro.data.voc import TASKS, open_voc


def open_transfer(
    name: str,
    source: Path,
    settings: Drawing,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TransferSet:
    """A key of `paper.facts().transfer`, or a folder of classes of any other name, as it is downloaded.

    Nothing is extracted. The index is kept in `cache`, so that the next time is quick; `progress(done, total)` is told
    the images looked at. Raises UserError.
    """
    if name in TASKS:
        return open_voc(name, source, settings.seed, cache, progress)
    return open_class_folders(name, source, settings, cache, progress)
