"""Decoding in other processes: the same images and replacements, and no process left over."""

import multiprocessing
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vggrepro.config.settings import Data
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import open_index, scan_folder
from vggrepro.data.loading.loader import BadImages, Batch, Loader, make_loader
from vggrepro.data.loading.processes import in_order
from vggrepro.data.sampler import MicroBatches, TrainingSampler
from vggrepro.data.views import rescaled_size, uncropped
from vggrepro.errors import UserError

BATCH = 10


def loader(backend: str, processes: int, limit: int = 20) -> Loader:
    mean = (123.68, 116.779, 103.939)
    return Loader(backend, mean, 2, torch.device("cpu"), processes=processes, bad=BadImages(limit))  # type: ignore[arg-type]


def stream(split: Split, steps: int = 4) -> MicroBatches:
    sampler = TrainingSampler(split.size, Data(S=(64, 96)), 64, seed=0)
    of_the_second_rank = (slice(BATCH, 17), slice(17, 20))
    return MicroBatches(sampler, 2 * BATCH, of_the_second_rank, 3, 3 + steps)


def assert_same(actual: Iterator[Batch], expected: Iterator[Batch]) -> int:
    count = 0
    for left, right in zip(actual, expected, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
        assert np.array_equal(left.views.image, right.views.image)
        count += 1
    return count


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_do_not_depend_on_the_number_of_processes(train_split: Split, backend: str, processes: int) -> None:
    """Micro-batches may consist of several pieces."""
    views, beside = stream(train_split), replace(loader(backend, processes), piece=4)
    assert assert_same(beside.batches(train_split, views), loader(backend, 0).batches(train_split, views)) == 8


def test_uncropped_images_of_many_shapes_from_an_archive(photographs: Path, tmp_path: Path, backend: str) -> None:
    with tarfile.open(tmp_path / "photographs.tar", "w") as archive:
        archive.add(photographs, ".")
    index = open_index(str(tmp_path / "photographs.tar"), None, tmp_path / "index", lambda done, total: None)
    split = index.split("val")
    rescaled = rescaled_size(split.size, 96)
    rows = np.arange(len(split))
    views = [uncropped(rows[row : row + 1], split.size[row : row + 1], rescaled[row : row + 1]) for row in rows]
    assert assert_same(loader(backend, 2).batches(split, views), loader(backend, 0).batches(split, views)) == len(split)


def test_processes_replace_and_count_bad_images_like_threads(photographs: Path, tmp_path: Path, backend: str) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    split = scan_folder(tmp_path / "data").split("train")
    for image in (2, 9):
        os.truncate(split.name_of(image), 100)
    using, alone = loader(backend, 2), loader(backend, 0)
    assert assert_same(using.batches(split, stream(split, 6)), alone.batches(split, stream(split, 6))) == 12
    assert using.bad.reasons == alone.bad.reasons
    assert set(using.bad.reasons) == {split.name_of(2), split.name_of(9)}
    with pytest.raises(UserError, match=r"data\.max_bad=1"):
        list(loader(backend, 2, limit=1).batches(split, stream(split, 6)))


def test_closing_leaves_no_process(train_split: Split) -> None:
    with closing(loader("torchvision", 2).batches(train_split, stream(train_split, 1000))) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_killed_process_is_an_error_and_stop_signals_are_ignored(train_split: Split) -> None:
    with closing(loader("torchvision", 2).batches(train_split, stream(train_split, 10_000))) as batches:
        next(batches)
        children = multiprocessing.active_children()
        for child in children:
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):  # to every process, like SLURM
                os.kill(child.pid, number)  # type: ignore[arg-type]
        for _ in range(20):
            next(batches)
        os.kill(children[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"a process that decodes images was killed .*set data.processes lower"):
            list(batches)


class Numbers:
    def part(self, number: int, parts: int) -> Iterator[int]:
        return iter(range(number, 100, parts))


@pytest.mark.parametrize("error", [ConnectionResetError, FileNotFoundError, EOFError])
def test_a_process_killed_while_sending_a_tensor(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel closes a dying process's sockets before its exit code is known."""
    items = in_order(Numbers().part, 2)
    assert next(items) == 0

    def reset(self: object) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", reset)
    with pytest.raises(UserError, match=r"a process that decodes images was killed by SIGKILL \(pid \d+\)"):
        list(items)


class Broken:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def part(self, number: int, parts: int) -> Iterator[int]:
        raise self.error(f"process {number} of {parts}")


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, OSError])
def test_a_bug_in_a_process_is_a_traceback(error: type[Exception]) -> None:
    with pytest.raises(error, match="process 0 of 1"):
        list(in_order(Broken(error).part, 1))


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        ("cpu", {"workers": 8}, 0),
        ("cuda", {"workers": 8}, 4),
        ("cuda", {"workers": 7}, 4),
        ("cuda", {"workers": 1}, 1),
        ("cuda", {"workers": 8, "processes": 0}, 0),
        ("cuda", {"workers": 8, "processes": 100}, 8),
        ("cpu", {"workers": 8, "processes": 2}, 2),
    ],
)
def test_a_rank_with_a_gpu_decodes_in_processes(device: str, settings: dict[str, int], expected: int) -> None:
    data = Data(backend="torchvision", **settings)  # type: ignore[arg-type]
    assert make_loader(data, torch.device(device)).processes == expected
