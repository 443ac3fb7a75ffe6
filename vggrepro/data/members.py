"""An image that was found, wherever it lies."""

from typing import NamedTuple

SPLITS = ("train", "val")
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
VAL_WORDS = {"val", "valid", "validation"}  # what the validation split is called in names
NUMBERED = "\0"  # marks a class that is the number of a WebDataset shard's .cls


class Member(NamedTuple):
    """An image that was found."""

    split: str
    class_name: str
    container: str
    """The archive that holds it, or its folder."""
    name: str
    """File name; in an archive with the folders there."""
    offset: int
    length: int
    archive: bool
    mtime_ns: int = 0
    """When a file of its own changed last."""

    @property
    def file_name(self) -> str:
        """Without folders."""
        return without_folders(self.name)


def without_folders(name: str) -> str:
    """The last part of a path inside an archive."""
    return name.rpartition("/")[2]
