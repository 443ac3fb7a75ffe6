"""Summaries of `vggrepro bench profile`, and the implementations of `benchmarks/step_ways.py`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_bench_gpu_script import load
from torch.autograd import DeviceType

from vggrepro.bench import profile
from vggrepro.bench.step import small
from vggrepro.config.parsing import override
from vggrepro.config.settings import Config


@pytest.fixture
def config() -> Config:
    changes = ["model.crop=32", "model.width=0.0625", "train.batch=2", "run.device=cpu"]
    return override(small(), changes, Path("test"))


def event(name: str, start: float, end: float, kind: DeviceType = DeviceType.CUDA, **rest: Any) -> Any:
    known = {"cpu_parent": None, "is_user_annotation": False} | rest
    return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end), **known)


def test_kernels_overlap_and_leave_gaps() -> None:
    events = [
        event("gemm", 0, 400),
        event("pool", 300, 500),  # on another stream
        event("gemm", 700, 1000),
        event("Optimizer.step#SGD.step", 0, 1000, is_user_annotation=True),
        event("cudaLaunchKernel", 0, 2000, DeviceType.CPU),
    ]
    found = profile.kernels(events, DeviceType.CUDA, steps=2, top=1)
    assert found["busy_ms"] == pytest.approx(0.4)  # 500 + 300 of 1000 us in two steps
    assert found["idle_share"] == pytest.approx(0.2)
    assert found["launches"] == 1.5
    assert found["kinds_of_kernels"] == 2
    assert found["top"] == [{"kernel": "gemm", "ms": 0.35, "share": pytest.approx(700 / 900), "launches": 1.0}]
    assert found["top_share"] == pytest.approx(700 / 900)


def test_a_step_is_profiled(config: Config) -> None:
    found = profile.run(config, steps=2, top=3)
    details = found["details"]
    assert len(details["top"]) == 3
    assert details["images_per_s"] == pytest.approx(2e3 / details["step_ms"])
    assert details["host_ms"] > 0
    assert 0 <= details["idle_share"] < 1
    assert any("onvolution" in kernel["kernel"] for kernel in profile.run(config, steps=1, top=100)["details"]["top"])


def test_ways_are_timed_in_turns_and_a_broken_one_is_reported(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_as = []
    monkeypatch.setattr(torch, "compile", lambda net, *, dynamic, mode: compiled_as.append(mode) or net)
    ways = ["eager", "default", "train.precision=bf16", "train.precision=fp7"]
    found = load("step_ways").compare(config, ways, steps=1, rounds=2)
    assert compiled_as == ["default"]
    assert found["details"]["usual is"] == "eager"
    assert "fp7" in found["details"]["train.precision=fp7"]["failed"]
    assert all(found["details"][way]["ratio_to_eager"] > 0 for way in ways[:3])
    assert found["ours"] == max(found["details"][way]["images_per_s"] for way in ways[:3])
