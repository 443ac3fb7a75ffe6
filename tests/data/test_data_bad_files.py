"""Files that go bad during training are replaced, counted and limited, and are the same after a resumption.

Failures of the machine never make an image bad: they pass, or they are an error in one line.
"""

import errno
import io
import itertools
import os
import resource
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import forks, set_up_fork
from PIL import Image
from programs import Command
from tiny import CONFIGS, set_words

from vggrepro.config.settings import ColourShift, Data
from vggrepro.data import decode
from vggrepro.data.decode import BadImageError, opened, read
from vggrepro.data.images import open_archives
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import BadImages, Batch, Loader
from vggrepro.data.loading.processes import in_order
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import centre
from vggrepro.errors import UserError
from vggrepro.preflight.images import _reading

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
        case "overwritten":  # the same length as before, so that only the decoder notices
            file.write_bytes(bytes(len(content)))
        case "mangled":  # an invalid header
            other = b"\xff\xd8\xff\xfe" + bytes(2)
            file.write_bytes((other + content)[: len(content)])
        case "unreadable":
            file.unlink()
            file.mkdir()


SPOILS = ["deleted", "truncated", "emptied", "overwritten", "mangled", "unreadable"]


@pytest.fixture
def split(photographs: Path, tmp_path: Path, inspected_in_process: None) -> Split:
    shutil.copytree(photographs, tmp_path / "data")
    return scan_folder(tmp_path / "data").split("train")


def loader(backend: str, limit: int = 20) -> Loader:
    return Loader(backend, (0.0, 0.0, 0.0), 2, torch.device("cpu"), bad=BadImages(limit))


def sampler(split: Split) -> TrainingSampler:
    return TrainingSampler(split.size, Data(S=(64, 96), colour_shift=ColourShift(mode="off")), 64, seed=0)


def batches(loader: Loader, split: Split, first: int = 0, last: int = STEPS) -> Iterator[Batch]:
    return loader.batches(split, (sampler(split).views(step * BATCH, BATCH) for step in range(first, last)))


@pytest.mark.parametrize("how", SPOILS)
def test_a_bad_image_is_replaced(split: Split, backend: str, how: str) -> None:
    """The rest of the batch is unchanged; the row shows the sampler's image from the next epoch."""
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
        untouched = before.views.image != image
        assert torch.equal(after.images[untouched], before.images[untouched])
        assert np.array_equal(after.labels, split.label[after.views.image])
        for row in np.flatnonzero(~untouched):
            (alone,) = loader(backend).batches(split, [after.views[int(row) : int(row) + 1]])
            assert torch.equal(alone.images[0], after.images[row])


def test_images_may_go_bad_at_any_time(split: Split, backend: str) -> None:
    """Spoils images in every way in turn, under a running pipeline."""
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
    uninterrupted = list(batches(loader(backend), split))
    resumed = list(batches(loader(backend), split, first=7))
    for left, right in zip(uninterrupted[7:], resumed, strict=True):
        assert np.array_equal(left.views.image, right.views.image)
        assert torch.equal(left.images, right.images)


def test_exceeding_the_limit_stops_the_run_and_names_the_image(split: Split, backend: str) -> None:
    for image in range(4):
        spoil(Path(split.name_of(image)), "deleted")
    with pytest.raises(UserError, match=r"JPEG is bad since it was indexed \(.*\), and data.max_bad=3;"):
        list(batches(loader(backend, 3), split))
    assert len(list(batches(loader(backend, 4), split))) == STEPS


def test_limit_zero_stops_at_the_first_bad_image(split: Split, backend: str) -> None:
    spoil(Path(split.name_of(5)), "truncated")
    with pytest.raises(UserError, match=r"data.max_bad=0"):
        list(batches(loader(backend, 0), split))


def test_a_vanished_data_set_ends_the_run(split: Split, backend: str) -> None:
    for image in range(len(split)):
        spoil(Path(split.name_of(image)), "deleted")
    with pytest.raises(UserError, match="train has no readable image left"):
        list(batches(loader(backend, 1000), split))


def test_a_bad_image_stops_testing(split: Split, backend: str) -> None:
    spoil(Path(split.name_of(5)), "overwritten")
    with pytest.raises(UserError, match="an error rate counts every image"):
        list(loader(backend).batches(split, [centre(np.arange(8), split.size[:8], 80, 64)]))


def test_bad_images_are_reported_once(split: Split, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(Path(split.name_of(5)), "deleted")
    list(batches(loader(backend), split))
    assert capsys.readouterr().err.count("is bad since it was indexed") == 1


# Failures of the machine


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Forgets the failures of earlier tests."""
    yield
    decode._warned.clear()
    decode._given_up.clear()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *waits: monkeypatch.setattr(decode, "_WAITS_S", waits)


def fail_to_open(monkeypatch: pytest.MonkeyPatch, number: int, of: Callable[[str], bool] = lambda path: True) -> None:
    """Makes opening images fail with an errno."""
    really = os.open

    def refuse(path: str, *flags: int, **others: int) -> int:
        if str(path).endswith((".JPEG", ".tar")) and of(str(path)):
            raise OSError(number, os.strerror(number), path)
        return really(path, *flags, **others)

    monkeypatch.setattr(os, "open", refuse)


def put_shards(photographs: Path, folder: Path, n: int) -> None:
    images = itertools.cycle(file.read_bytes() for file in sorted(photographs.rglob("*.JPEG")))
    for number in range(n):
        with tarfile.open(folder / f"{'val' if number < 2 else 'train'}-{number:04d}.tar", "w") as tar:
            for name, content in ((f"{number}.jpg", next(images)), (f"{number}.cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(photographs: Path, tmp_path: Path, inspected_in_process: None) -> Split:
    put_shards(photographs, tmp_path, 172)
    return scan_folder(tmp_path).split("train")


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def read_under_a_limit(split: Split, backend: str, results: Connection) -> None:
    set_up_fork()
    before, most = files_open(), 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    def read_counted(image: int) -> bytes:
        nonlocal most
        encoded = split.read(image)
        most = max(most, files_open() - 1)
        return encoded

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_counted, [*range(len(split))] * 5))
    using = loader(backend)
    images = [batch.images.numpy() for batch in batches(using, split)]
    with suppress(OSError):  # like other parts of the program
        while True:
            os.open(os.devnull, os.O_RDONLY)
    found += [split.read(image) for image in range(len(split))]
    results.send((found, images, using.bad.reasons, most - before))


def test_more_archives_than_file_descriptors(shards: Split, backend: str) -> None:
    receives, sends = forks.Pipe(duplex=False)
    process = forks.Process(target=read_under_a_limit, args=(shards, backend, sends))
    process.start()
    sends.close()
    found, images, bad, most = receives.recv()
    assert len(shards) == 170
    assert found == [shards.read(image) for image in range(170)] * 6
    assert not bad
    for pixels, batch in zip(images, batches(loader(backend), shards), strict=True):
        assert np.array_equal(pixels, batch.images)
    assert 20 <= most <= 25 + 8, "a quarter of the limit, plus one per thread"


def test_at_most_256_archives_stay_open(shards: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_archives, "_MOST_OPEN", 50)
    before = files_open()
    other = scan_folder(Path(shards.containers[0]).parent).split("train")
    for image in range(170):
        assert shards.read(image) == other.read(image)
    assert files_open() - before == 50, "all splits together"
    shards.read(0)
    with pytest.MonkeyPatch.context() as patched:
        fail_to_open(patched, errno.EACCES)
        for image in (0, *range(146, 170)):  # the most recently used
            shards.read(image)
    del other
    assert files_open() - before < 50


def test_out_of_file_descriptors(split: Split, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    patience(0.01, 0.01)
    fail_to_open(monkeypatch, errno.EMFILE)
    with pytest.raises(UserError, match=r"JPEG cannot be read \(Too many open files\); raise `ulimit -n`$"):
        split.read(0)


def test_an_archive_with_a_stale_handle_is_reopened(shards: Split) -> None:
    healthy = shards.read(3)
    file = shards._archives._open[id(shards._archives), shards.containers[shards.container[3]]]
    folder = os.open("/", os.O_RDONLY)
    os.dup2(folder, file.number)  # unreadable
    os.close(folder)
    assert shards.read(3) == healthy


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_reads_are_retried_while_files_are_away(
    split: Split,
    shards: Split,
    backend: str,
    kind: str,
    patience: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder disappears and reappears under reading threads: the images are the same, and none is replaced."""
    patience(*[0.02] * 200)
    of, place = (split, Path(split.containers[0])) if kind == "folder" else (shards, Path(shards.containers[5]))
    monkeypatch.setattr(open_archives, "_MOST_OPEN", 1)  # otherwise an open archive stays readable
    healthy = list(batches(loader(backend), of))
    shown = [int(image) for batch in healthy for image in batch.views.image]
    assert str(place) in [of.containers[number] for number in of.container[shown]]
    using, away = loader(backend), place.with_name("away")

    def go_and_come() -> None:
        for n in range(100):
            place.rename(away)
            time.sleep(0.1)
            away.rename(place)
            time.sleep(0.01)
            if n >= 3 and decode._warned:  # a reader was there in time, also on a busy machine
                break

    mover = threading.Thread(target=go_and_come)
    mover.start()
    found = list(batches(using, of))
    while mover.is_alive():
        found = list(batches(using, of))
    mover.join()
    assert not using.bad.reasons
    for before, after in zip(healthy, found, strict=True):
        assert np.array_equal(before.views.image, after.views.image)
        assert torch.equal(before.images, after.images)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3, "one line per minute, and patience is 4 s here"
    assert all("cannot be read (No such file or directory); trying again for 4 s" in line for line in lines)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_permanent_failure_is_an_error(
    split: Split,
    shards: Split,
    backend: str,
    kind: str,
    patience: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    patience(0.2, 0.2)
    of = split if kind == "folder" else shards
    for place in of.containers:
        Path(place).rename(place + ".away")
    text = r" cannot be read \(No such file or directory\); is the file system mounted\?$"
    with pytest.raises(UserError, match=text):
        list(batches(loader(backend), of))
    assert capsys.readouterr().err.count("trying again") == 1


def test_a_failure_that_another_image_waited_for_is_not_retried(
    tmp_path: Path, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise hundreds of images that are read ahead would delay the end."""
    patience(20.0, 40.0)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for name in ("a", "b", "c"):
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            read(str(tmp_path / "away" / name), 0, 10)
    assert waits == [20.0, 40.0]


def test_missing_permission_is_not_retried(
    split: Split,
    backend: str,
    patience: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patience(600)
    name = split.name_of(5)
    fail_to_open(monkeypatch, errno.EACCES, lambda path: path == name)
    with pytest.raises(UserError, match=rf"^{name} cannot be read \(Permission denied\); change its permissions$"):
        list(batches(loader(backend), split))
    assert not capsys.readouterr().err, "neither another image nor another decoder replaces it"


@pytest.mark.parametrize(
    "number", ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EAGAIN", "ENFILE", "ENODEV"]
)
def test_transient_failures_do_not_make_images_bad(
    split: Split, number: str, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(0.01)
    healthy = split.read(2)
    failures = iter([True] * 3)
    with pytest.MonkeyPatch.context() as patched:
        fail_to_open(patched, getattr(errno, number), lambda path: next(failures, False))
        assert split.read(2) == healthy
    fail_to_open(monkeypatch, getattr(errno, number))
    with pytest.raises(UserError, match="cannot be read"):
        split.read(2)


def test_a_folder_that_reappears_before_the_check(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = split.read(2)
    gone = iter([True])
    fail_to_open(monkeypatch, errno.ENOENT, lambda path: next(gone, False))
    assert split.read(2) == healthy


def test_an_error_midway_is_not_the_end_of_a_file(
    split: Split, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience()
    really = os.pread

    def partly(file: int, length: int, offset: int) -> bytes:
        if offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(file, length, offset)[:1000]

    monkeypatch.setattr(os, "pread", partly)
    with pytest.raises(UserError, match="Input/output error"):
        split.read(2)
    monkeypatch.setattr(os, "pread", lambda file, length, offset: really(file, min(length, 1000), offset))
    assert len(split.read(2)) == split.length[2]


@pytest.mark.parametrize("how", ["gone", "folder", "broken link", "loop"])
def test_defects_of_a_file_make_it_bad(tmp_path: Path, how: str, patience: Callable[..., None]) -> None:
    patience(600)
    file = tmp_path / "1.JPEG"
    if how == "folder":
        file.mkdir()
    elif "l" in how:
        file.symlink_to(file if how == "loop" else tmp_path / "nowhere")
    with pytest.raises(BadImageError, match="unreadable"):
        read(str(file), 0, 10)


def test_a_link_to_an_unmounted_folder(tmp_path: Path, patience: Callable[..., None]) -> None:
    patience()
    (tmp_path / "1.JPEG").symlink_to(tmp_path / "not" / "mounted.JPEG")
    with pytest.raises(UserError, match="is the file system mounted"):
        read(str(tmp_path / "1.JPEG"), 0, 10)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("step", ["convert", "resize"])
def test_lack_of_memory_does_not_make_images_bad(split: Split, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, step, raising(MemoryError()))
    with pytest.raises(UserError, match=r"images cannot be decoded \(Cannot allocate memory\); free some memory"):
        list(batches(loader("torchvision"), split))


def test_a_decoder_that_cannot_open_files_is_an_error(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL imports modules on demand; its own exceptions have no errno, and are defects of the file."""
    encoded = split.read(0)
    monkeypatch.setattr(Image.Image, "convert", raising(OSError(errno.EMFILE, "Too many open files", "x.py")))
    with pytest.raises(UserError, match=r"images cannot be decoded \(Too many open files\); raise `ulimit -n`"):
        list(batches(loader("torchvision"), split))
    monkeypatch.undo()
    for error, expected in ((OSError("broken data stream"), BadImageError), (OSError("out of memory"), MemoryError)):
        with pytest.raises(expected), opened(encoded):
            raise error


class Fails:
    """Yields an item, then fails, like a decoding process."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def part(self, number: int, parts: int) -> Iterator[int]:
        yield number
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("x.tar cannot be read (Stale file handle)"), r"^x\.tar cannot be read \(Stale file handle\)$"),
        (MemoryError(), r"^images cannot be decoded \(Cannot allocate memory\); free some memory"),
        (OSError(errno.EMFILE, ""), "raise `ulimit -n`$"),
        (RuntimeError("no shared memory: Too many open files (24)"), r"\(Too many open files\); raise `ulimit -n`$"),
    ],
)
def test_an_error_in_a_process_arrives_as_a_single_line(error: Exception, expected: str) -> None:
    items = in_order(Fails(error).part, 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(UserError, match=expected):
        list(items)


def test_the_doctor_reports_the_error(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = scan_folder(photographs)
    fail_to_open(monkeypatch, errno.EACCES)
    (check,) = _reading(index)
    assert (check.name, check.status, check.remedy) == ("reading", "fail", "change its permissions")
    assert check.found.endswith("JPEG cannot be read (Permission denied)")


def test_the_command_ends_with_the_error(
    settings: list[str], command: Command, patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(0.01)
    fail_to_open(monkeypatch, errno.ESTALE)
    status, _, err = command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*settings))
    assert status == 2, err
    assert err.splitlines()[-1].endswith("cannot be read (Stale file handle); is the file system mounted?")
    assert "is bad since" not in err
