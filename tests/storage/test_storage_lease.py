"""Replaced attempts do not write to the run directory."""

from pathlib import Path

import pytest

from vggrepro.storage import lease


def test_the_last_attempt_to_take_a_directory_holds_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease.holder(tmp_path / "run") is None
    lease.take(tmp_path / "run", "12:0")
    lease.take(tmp_path / "run", "12:1")
    assert lease.holder(tmp_path / "run") == "12:1"
    monkeypatch.setenv(lease.VARIABLE, "12:1")
    lease.require(tmp_path / "run")
    monkeypatch.setenv(lease.VARIABLE, "12:0")
    with pytest.raises(lease.LeaseLost, match="taken over by attempt 12:1; attempt 12:0 leaves it alone"):
        lease.require(tmp_path / "run")


def test_processes_without_a_launcher_need_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease.take(tmp_path, "12:0")
    monkeypatch.delenv(lease.VARIABLE, raising=False)
    lease.require(tmp_path)
    monkeypatch.setenv(lease.VARIABLE, "12:1")
    lease.require(tmp_path / "new")
