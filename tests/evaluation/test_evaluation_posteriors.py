"""The posteriors store."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vggrepro.errors import UserError
from vggrepro.evaluation.posteriors import Posteriors, Protocol, average, load

PROTOCOL = Protocol(weights="a" * 64, data="b" * 64, method="dense", Q=384, flip=True)


def some(protocol: Protocol = PROTOCOL, seed: int = 0) -> Posteriors:
    random = np.random.default_rng(seed)
    values = random.dirichlet(np.ones(10), 7).astype(np.float32)
    return Posteriors(protocol, values, np.arange(7))


def test_round_trip(tmp_path: Path) -> None:
    assert load(PROTOCOL, tmp_path) is None
    some().save(tmp_path)
    found = load(PROTOCOL, tmp_path)
    assert found is not None
    assert found.protocol == PROTOCOL
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
def test_every_part_of_the_protocol_keeps_its_own_file(tmp_path: Path, other: dict) -> None:
    some().save(tmp_path)
    changed = dataclasses.replace(PROTOCOL, **other)
    assert load(changed, tmp_path) is None
    some(changed, seed=1).save(tmp_path)
    kept = load(PROTOCOL, tmp_path)
    assert kept is not None
    np.testing.assert_array_equal(kept.values, some().values)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(out: object, **arrays: object) -> None:
        out.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    some().save(tmp_path)
    before = PROTOCOL.file(tmp_path).read_bytes()
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        some(seed=1).save(tmp_path)
    assert PROTOCOL.file(tmp_path).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [PROTOCOL.file(tmp_path).name]


def test_a_file_of_another_protocol_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(PROTOCOL, weights="a" * 12 + "0" * 52)  # the same name, another net
    some(other).save(tmp_path)
    with pytest.raises(UserError, match="another protocol") as refused:
        load(PROTOCOL, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_torn_file_is_one_line(tmp_path: Path, cut: int) -> None:
    some().save(tmp_path)
    file = PROTOCOL.file(tmp_path)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cannot be read .*; remove the file and evaluate again") as refused:
        load(PROTOCOL, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    file = PROTOCOL.file(tmp_path)
    with file.open("wb") as out:
        np.savez(out, values=np.array([{"an": "object"}]), labels=np.arange(1), protocol=np.array("{}"))
    with pytest.raises(UserError, match="cannot be read"):
        load(PROTOCOL, tmp_path)


def test_average_against_numpy() -> None:
    sets = [some(seed=seed).values for seed in range(3)]
    expected = np.zeros((7, 10))
    for one in sets:
        for row in range(7):
            for column in range(10):
                expected[row, column] += one[row, column] / 3
    np.testing.assert_allclose(average(sets), expected, rtol=1e-6)


def test_average_of_different_data_is_refused() -> None:
    with pytest.raises(AssertionError, match="different data"):
        average([some().values, some().values[:6]])
