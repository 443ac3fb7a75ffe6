"""Only arrays grow with the number of images, not the number of Python objects."""

import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from layouts_as_files import tar_of
from programs import call_in_two_threads

from vggrepro.config.settings import Data
from vggrepro.data.boxes import box_scan
from vggrepro.data.images import columns, verify
from vggrepro.data.images import scan as scan_module
from vggrepro.data.images.archive_members import Member
from vggrepro.data.images.index import Index, load
from vggrepro.data.images.scan import open_index, scan
from vggrepro.data.images.sources import find
from vggrepro.data.images.verify import Finding
from vggrepro.data.sampler import TrainingSampler, permutation

FEW, MANY = 2_000, 20_000


def saved(images: int, file: Path) -> Path:
    """Builds an index of `n` images without files."""
    rows = range(images)
    words = pa.dictionary(pa.int16(), pa.string())
    table = pa.table(
        {
            "container": pa.array(["/gone/images.tar"] * images).dictionary_encode(),
            "name": pa.array([f"train/a/{row}.JPEG" for row in rows]),
            "offset": pa.array([row * 1000 for row in rows]),
            "length": pa.array([900] * images),
            "split": pa.DictionaryArray.from_arrays(
                pa.array([int(10 * row > 9 * images) for row in rows], pa.int8()), pa.array(["train", "val"])
            ),
            "label": pa.array([0] * images),
            "size": pa.array([(300 + row % 50, 400) for row in rows], pa.list_(pa.int64(), 2)),
            "format": pa.array(["JPEG"] * images, words),
            "status": pa.array(["ok"] * images, words),
        }
    )
    Index(table, ("a",), "nowhere", "header", ("/gone/images.tar",)).save(file)
    return file


def objects_left(make: Callable[[], object]) -> int:
    """Counts the memory blocks of the result of `make`."""
    before = result = None
    for _ in range(3):  # the first calls fill caches
        result = None
        gc.collect()
        before = sys.getallocatedblocks()
        result = make()
        gc.collect()
    assert before is not None
    assert result is not None
    return sys.getallocatedblocks() - before


def opened(file: Path) -> object:
    index = load(file)
    train = index.split("train")
    sampler = TrainingSampler(train.size, Data(S=(256, 512)), 224, seed=0)
    return index, index.split("val").take(np.arange(100)), index.fingerprint, sampler.views(0, 64), index.summary()


@pytest.mark.parametrize("make", [opened, lambda file: box_scan._Images(load(file))])
def test_an_open_index_has_no_object_per_image(make: Callable[[Path], object], tmp_path: Path) -> None:
    few, many = (saved(images, tmp_path / str(images)) for images in (FEW, MANY))
    assert abs(objects_left(lambda: make(many)) - objects_left(lambda: make(few))) < 100


def test_splits_are_cached_views(tmp_path: Path) -> None:
    index = load(saved(FEW, tmp_path / "index"))
    train = index.split("train")
    assert train is index.split("train")
    assert not any(column.flags.owndata for column in (train.offset, train.length, train.label, train.size))


def test_a_permutation_is_computed_once_per_epoch() -> None:
    sampler = TrainingSampler(np.full((FEW, 2), 300), Data(S=(256, 512)), 224, seed=0)
    for step in (0, 300_000):
        permutation.cache_clear()
        sampler.views(step * FEW, 64)
        assert permutation.cache_info().misses == 1


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Tar of 50 tars of 40 files each, and a flat tar of 50 files with labels."""
    root = tmp_path / "data"
    root.mkdir()
    wnids = [f"n{number:08}" for number in range(50)]
    inner = {wnid: tar_of((f"{wnid}_{image}.JPEG", b"x") for image in range(40)) for wnid in wnids}
    (root / "train.tar").write_bytes(tar_of((f"{wnid}.tar", content) for wnid, content in inner.items()))
    (root / "val.tar").write_bytes(tar_of((f"ILSVRC2012_val_{n:08}.JPEG", b"x") for n in range(1, 51)))
    labels = (f"ILSVRC2012_val_{n:08}.JPEG {wnid}\n" for n, wnid in enumerate(wnids, 1))
    (root / "val_labels.txt").write_text("".join(labels))
    return root


def alive(kind: type) -> int:
    return sum(type(item) is kind for item in gc.get_objects())


def verify_here(chunks: Iterable[Sequence[Member]], how: str, mean: bool = False) -> Iterator[list[Finding]]:
    """Gives every image a distinct width, which identifies its finding."""
    return ([Finding(image.length + image.offset % 7919 + 1, 30, "JPEG", "ok") for image in chunk] for chunk in chunks)


def test_a_scan_holds_few_images_in_memory(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_AT_ONCE", 64)
    monkeypatch.setattr(scan_module, "verify", verify_here)
    listed, seen = [], []
    assert len(find([archives], None, lambda found: listed.append(alive(Member))).members) == 2050
    scan([archives], journal=tmp_path / "journal", progress=lambda done, total: seen.append(alive(Finding)))
    assert max(listed) < 500
    assert len(seen) == -(-2050 // 64)
    assert max(seen) < 200


def test_chunks_are_consumed_as_they_are_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_AHEAD", 3)
    monkeypatch.setattr(verify._Worker, "findings", lambda worker, images: list(images))
    taken: list[int] = []
    found = verify.verify((taken.append(n) or [n] for n in range(100)), "header")  # type: ignore[func-returns-value]
    assert next(found) == [0]
    assert len(taken) == 4
    assert list(found) == [[n] for n in range(1, 100)]


def test_a_journal_resumes_after_its_last_line(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"
    monkeypatch.setattr(scan_module, "verify", verify_here)

    def interrupt(done: int, total: int) -> None:
        if done > 1000:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        scan([archives], journal=journal, progress=interrupt)
    before, parsed = journal.read_bytes(), []
    real = json.loads
    monkeypatch.setattr(scan_module.json, "loads", lambda line: parsed.append(line) or real(line))
    after = []
    scan([archives], journal=journal, progress=lambda done, total: after.append(journal.read_bytes()))
    assert parsed == before.splitlines(keepends=True)
    assert all(content.startswith(before) for content in after)
    assert len(after[-1].splitlines()) == -(-2050 // 64)


def test_an_outdated_journal_is_restarted(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"
    monkeypatch.setattr(scan_module, "verify", verify_here)
    journal.write_text(f"{'0' * 64}\n{json.dumps([[1, 1, 'PNG', 'rejected: long ago', None]])}\n")
    assert scan([archives], journal=journal).summary()["usable"] == 2050


@pytest.mark.parametrize("stopped", [(3, 3), (9, 5), (30, 31)])
def test_two_scans_may_share_a_journal(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: tuple[int, int]
) -> None:
    """A second scan starts midway through the first; both are stopped, and a third resumes."""
    monkeypatch.setattr(scan_module, "verify", verify_here)
    right, journal, calls = scan([archives]), tmp_path / "journal", {"first": 0, "second": 0}

    def second(done: int, total: int) -> None:
        calls["second"] += 1
        if calls["second"] == stopped[1]:
            raise InterruptedError

    def first(done: int, total: int) -> None:
        calls["first"] += 1
        if calls["first"] == 1:
            with pytest.raises(InterruptedError):
                scan([archives], journal=journal, progress=second)
        if calls["first"] == stopped[0]:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        scan([archives], journal=journal, progress=first)
    assert scan([archives], journal=journal).table.equals(right.table)


def test_only_a_single_process_scans(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []

    def noted(chunks: Iterable[Sequence[Member]], how: str, mean: bool = False) -> Iterator[list[Finding]]:
        scans.append(how)
        return verify_here(chunks, how, mean)

    monkeypatch.setattr(scan_module, "verify", noted)
    call_in_two_threads(lambda: open_index(str(archives), None, tmp_path / "cache", lambda done, total: None))
    assert scans == ["header"]


def test_every_image_may_have_a_different_reason(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more reasons than 16 bits can number."""
    images = find([archives]).members
    many = images.take(np.arange(40_000) % len(images))
    findings = scan_module.Findings(Finding(0, 0, "", f"rejected: {number}") for number in range(40_000))
    statuses = scan_module._table(many, findings, sorted(images.class_names()))["status"]
    assert set(statuses.to_pylist()) == {f"rejected: {number}" for number in range(40_000)}
