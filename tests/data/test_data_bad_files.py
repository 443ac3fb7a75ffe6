"""Files that go bad while training runs: no crash, no hang, counted, limited, the same after a resumption."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data.index import Split
from vggrepro.data.loader import BadImages, Batch, Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.scan import scan_folder
from vggrepro.data.views import centre
from vggrepro.errors import UserError

BATCH, STEPS = 8, 12


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    match how:
        case "deleted":
            file.unlink()
        case "truncated":
            os.truncate(file, len(content) // 2)
        case "emptied":
            os.truncate(file, 0)
        case "overwritten":  # as long as before, so that only the decoder can tell
            file.write_bytes(bytes(len(content)))
        case "mangled":  # a header that means nothing
            other = b"\xff\xd8\xff\xfe" + bytes(2)
            file.write_bytes((other + content)[: len(content)])
        case "unreadable":
            file.unlink()
            file.mkdir()


SPOILS = ["deleted", "truncated", "emptied", "overwritten", "mangled", "unreadable"]


@pytest.fixture
def split(photographs: Path, tmp_path: Path) -> Split:
    shutil.copytree(photographs, tmp_path / "data")
    return scan_folder(tmp_path / "data").split("train")


def loader(backend: str, limit: int = 20) -> Loader:
    return Loader(backend, (0.0, 0.0, 0.0), 2, torch.device("cpu"), bad=BadImages(limit))


def sampler(split: Split) -> TrainingSampler:
    return TrainingSampler(split.size, Data(S=(64, 96), colour_shift=ColourShift(mode="off")), 64, seed=0)


def batches(loader: Loader, split: Split, first: int = 0, last: int = STEPS) -> Iterator[Batch]:
    return loader.batches(split, (sampler(split).views(step * BATCH, BATCH) for step in range(first, last)))


@pytest.mark.parametrize("how", SPOILS)
def test_another_image_takes_the_place(split: Split, backend: str, how: str) -> None:
    """The rest of the batch is untouched; the place shows what the sampler holds for it in the next epoch."""
    healthy = list(batches(loader(backend), split))
    image = int(healthy[4].views.image[3])
    spoil(Path(split.name_of(image)), how)
    using = loader(backend)
    found = list(batches(using, split))
    assert len(found) == STEPS
    assert list(using.bad.reasons) == [split.name_of(image)]
    for before, after in zip(healthy, found, strict=True):
        assert image not in after.views.image
        assert len(set(after.views.image)) == BATCH
        kept = before.views.image != image
        assert torch.equal(after.images[kept], before.images[kept])
        assert np.array_equal(after.labels, split.label[after.views.image])
        for row in np.flatnonzero(~kept):
            (alone,) = loader(backend).batches(split, [after.views[int(row) : int(row) + 1]])
            assert torch.equal(alone.images[0], after.images[row])


def test_they_may_go_bad_at_any_moment(split: Split, backend: str) -> None:
    """Every way of spoiling in turn, under a running pipeline."""
    using = loader(backend)
    spoiled: list[int] = []
    shown = 0
    for step, batch in enumerate(batches(using, split, last=6 * STEPS)):
        shown += len(batch.views)
        assert batch.images.isfinite().all()
        assert len(set(batch.views.image)) == BATCH
        if step % 4 == 0 and len(spoiled) < len(SPOILS):
            spoil(Path(split.name_of(len(spoiled) * 3)), SPOILS[len(spoiled)])
            spoiled.append(len(spoiled) * 3)
    assert shown == 6 * STEPS * BATCH
    assert set(using.bad.reasons) == {split.name_of(image) for image in spoiled}


def test_resuming_finds_the_same_replacements(split: Split, backend: str) -> None:
    for image in (2, 3, 11):
        spoil(Path(split.name_of(image)), "deleted")
    whole = list(batches(loader(backend), split))
    resumed = list(batches(loader(backend), split, first=7))
    for left, right in zip(whole[7:], resumed, strict=True):
        assert np.array_equal(left.views.image, right.views.image)
        assert torch.equal(left.images, right.images)


def test_the_limit_stops_the_run_and_names_the_image(split: Split, backend: str) -> None:
    for image in range(4):
        spoil(Path(split.name_of(image)), "deleted")
    with pytest.raises(UserError, match=r"JPEG is bad since it was indexed \(.*\), and data.max_bad=3;"):
        list(batches(loader(backend, 3), split))
    assert len(list(batches(loader(backend, 4), split))) == STEPS


def test_zero_stops_at_once(split: Split, backend: str) -> None:
    spoil(Path(split.name_of(5)), "truncated")
    with pytest.raises(UserError, match=r"data.max_bad=0"):
        list(batches(loader(backend, 0), split))


def test_a_data_set_that_has_vanished_ends_the_run(split: Split, backend: str) -> None:
    for image in range(len(split)):
        spoil(Path(split.name_of(image)), "deleted")
    with pytest.raises(UserError, match="no image of train is left"):
        list(batches(loader(backend, 1000), split))


def test_testing_counts_every_image_and_so_stops(split: Split, backend: str) -> None:
    spoil(Path(split.name_of(5)), "overwritten")
    with pytest.raises(UserError, match="an error rate counts every image"):
        list(loader(backend).batches(split, [centre(np.arange(8), split.size[:8], 80, 64)]))


def test_they_are_reported_once(split: Split, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(Path(split.name_of(5)), "deleted")
    list(batches(loader(backend), split))
    assert capsys.readouterr().err.count("is bad since it was indexed") == 1
