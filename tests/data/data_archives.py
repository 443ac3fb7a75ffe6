"""The shared archives of real images; not in conftest.py, of which there are several."""

import tarfile
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def unpacked(name: str, folder: Path) -> Path:
    """A shared archive, unpacked; skips the test where it is absent."""
    archive = SHARED / name
    if not archive.exists():
        pytest.skip(f"{name} is not there")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder
