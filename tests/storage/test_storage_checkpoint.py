"""Checkpoints are written atomically and checked when read."""

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vggrepro.config.settings import Config, Model
from vggrepro.errors import UserError
from vggrepro.storage import checkpoint
from vggrepro.storage.checkpoint import Checkpoint


def make(step: int = 3, fill: float = 1.0) -> Checkpoint:
    """Makes a small checkpoint with all fields."""
    return Checkpoint(
        config=Config(model=Model(net="A")).model_dump(mode="json"),
        step=step,
        weights={"w": torch.full((3, 5), fill), "b": torch.zeros(3)},
        preprocessing={"channels": "RGB", "mean": [1.0, 2.0, 3.0]},
        provenance={"classes": ["ant", "bee"], "parent": None},
        training={"momentum": {"w": torch.ones(3, 5)}, "state": {"step": step, "best_error": None}},
    )


def test_a_checkpoint_survives_a_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "step-00000003.pt"
    checkpoint.save(make(), file)
    back = checkpoint.load(file)
    assert back.stage == Config(model=Model(net="A"))
    assert torch.equal(back.weights["w"], make().weights["w"])
    assert torch.equal(back.training["momentum"]["w"], torch.ones(3, 5))
    assert (back.step, back.preprocessing, back.provenance) == (3, make().preprocessing, make().provenance)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    checkpoint.save(make(), tmp_path / "final.pt")
    assert torch.load(tmp_path / "final.pt", weights_only=True)["step"] == 3


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"format": "vggrepro checkpoint 1", "weights": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_a_truncated_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "step-00000003.pt"
    checkpoint.save(make(), file)
    content = file.read_bytes()
    for length in {0, 1, 100, len(content) // 2, len(content) - 300, len(content) - 1}:
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged or not a checkpoint") as refusal:
            checkpoint.load(file)
        assert "\n" not in str(refusal.value)


def test_a_damaged_tensor_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "step-00000003.pt"
    checkpoint.save(replace(make(), weights={"w": torch.randn(100_000)}), file)
    damaged = bytearray(file.read_bytes())
    damaged[200_000:204_096] = bytes(4096)  # a block that never reached the disk
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged or not a checkpoint .checksum of"):
        checkpoint.load(file)


def test_other_files_are_an_error(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "missing.pt")


def test_newest_skips_damaged_checkpoints_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "missing") is None
    for step in (5, 10, 15, 20_000_000, 100_000_000):
        checkpoint.save(make(step), checkpoint.step_file(tmp_path, step))
    checkpoint.save(make(99), tmp_path / "final.pt")
    (tmp_path / ".step-00000020.pt.123").write_bytes(b"half")  # what a killed writer leaves
    for step in (15, 20_000_000, 100_000_000):
        checkpoint.step_file(tmp_path, step).write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 10
    assert [record.args[0].args[0].split()[1] for record in caplog.records] == [
        str(checkpoint.step_file(tmp_path, step)) for step in (100_000_000, 20_000_000, 15)
    ]


def test_prune_removes_only_old_step_checkpoints(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(make(step), checkpoint.step_file(tmp_path, step))
    checkpoint.save(make(), tmp_path / "final.pt")
    os.link(checkpoint.step_file(tmp_path, 2), checkpoint.best_file(tmp_path))
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt", "final.pt", "step-00000004.pt", "step-00000005.pt",
    ]  # fmt: skip
    assert checkpoint.load(checkpoint.best_file(tmp_path)).step == 2


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkpoint.step_file(tmp_path, 3)
    checkpoint.save(make(3, fill=1.0), file)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written.*No space left"):
        checkpoint.save(make(3, fill=2.0), file)
    assert checkpoint.load(file).weights["w"].unique().tolist() == [1.0]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_hash_depends_only_on_names_shapes_and_values() -> None:
    weights = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    same = {"w": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3), "b": torch.zeros(2)}
    assert checkpoint.weights_hash(weights) == checkpoint.weights_hash(same)
    image = torch.randn(2, 3, 4, 4)
    last = image.to(memory_format=torch.channels_last)
    assert checkpoint.weights_hash({"w": image}) == checkpoint.weights_hash({"w": last})
    others = (
        {"v": weights["w"], "b": weights["b"]},
        {"w": weights["w"].reshape(3, 2), "b": weights["b"]},
        {"w": weights["w"] + 1e-6, "b": weights["b"]},
        {"w": weights["w"].double(), "b": weights["b"]},
    )
    assert len({checkpoint.weights_hash(other) for other in (weights, *others)}) == 5
