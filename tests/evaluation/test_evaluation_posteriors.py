"""The posteriors store."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vggrepro.errors import UserError
from vggrepro.evaluation.posteriors import Posteriors, PosteriorsKey, average
from vggrepro.storage.directory import RunDirectory

KEY = PosteriorsKey(weights="a" * 64, data="b" * 64, method="dense", Q=384, flip=True)


def some(seed: int = 0) -> Posteriors:
    random = np.random.default_rng(seed)
    values = random.dirichlet(np.ones(10), 7).astype(np.float32)
    return Posteriors(values, np.arange(7))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_round_trip(run: RunDirectory) -> None:
    assert KEY.load(run) is None
    KEY.save(run, some())
    found = KEY.load(run)
    assert found is not None
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, some().values)
    np.testing.assert_array_equal(found.labels, np.arange(7))


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "c" * 64},
        {"data": "c" * 64},
        {"method": "multicrop"},
        {"Q": 256},
        {"flip": False},
        {"precision": "bf16"},
    ],
)
def test_every_part_of_the_protocol_has_a_separate_file(run: RunDirectory, other: dict) -> None:
    KEY.save(run, some())
    changed = dataclasses.replace(KEY, **other)
    assert changed.load(run) is None
    changed.save(run, some(seed=1))
    stored = KEY.load(run)
    assert stored is not None
    np.testing.assert_array_equal(stored.values, some().values)


def test_no_partial_file_is_left(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(out: object, **arrays: object) -> None:
        out.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    KEY.save(run, some())
    before = KEY.file(run).read_bytes()
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        KEY.save(run, some(seed=1))
    assert KEY.file(run).read_bytes() == before
    assert [file.name for file in run.posteriors.iterdir()] == [KEY.file(run).name]


def test_a_file_of_another_protocol_is_refused(run: RunDirectory) -> None:
    other = dataclasses.replace(KEY, weights="a" * 12 + "0" * 52)  # the same name, another net
    other.save(run, some())
    with pytest.raises(UserError, match="another protocol") as refused:
        KEY.load(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_file_is_a_one_line_error(run: RunDirectory, cut: int) -> None:
    KEY.save(run, some())
    file = KEY.file(run)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cannot be read .*; remove the file and evaluate again") as refused:
        KEY.load(run)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_not_executed(run: RunDirectory) -> None:
    file = KEY.file(run)
    file.parent.mkdir()
    with file.open("wb") as out:
        np.savez(out, values=np.array([{"an": "object"}]), labels=np.arange(1), protocol=np.array("{}"))
    with pytest.raises(UserError, match="cannot be read"):
        KEY.load(run)


def test_average_against_numpy() -> None:
    sets = [some(seed=seed).values for seed in range(3)]
    expected = np.zeros((7, 10))
    for values in sets:
        for row in range(7):
            for column in range(10):
                expected[row, column] += values[row, column] / 3
    np.testing.assert_allclose(average(sets), expected, rtol=1e-6)


def test_average_of_different_data_is_refused() -> None:
    with pytest.raises(AssertionError, match="different data"):
        average([some().values, some().values[:6]])
