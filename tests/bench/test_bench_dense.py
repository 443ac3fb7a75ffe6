"""The dense benchmark: all ways see the same images, and say the same where they should."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vggrepro.bench.dense import run
from vggrepro.config.settings import Config, Data, Evaluation, Model, Run


def small(images: Path, folder: Path, **evaluation: Any) -> Config:
    return Config(
        model=Model(net="A", classes=3, crop=32, width=0.0625),
        data=Data(root=str(images), S=40, backend="torchvision", workers=1),
        evaluation=Evaluation(**evaluation),
        run=Run(root=folder / "runs", device="cpu"),
    )


def test_every_implementation_computes_in_the_configured_precision(images: Path, tmp_path: Path) -> None:
    seen = set()

    def note(module: torch.nn.Module, images: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            seen.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        run(small(images, tmp_path, precision="bf16"), (32,), 2, 1)
    finally:
        handle.remove()
    assert seen == {torch.bfloat16}


def assert_two_rounds(found: dict[str, Any]) -> None:
    """The ratio is the median of the rounds' own."""
    rates = found["details"]["rates"]
    assert all(len(each) == 2 for each in rates.values())
    ratios = sorted(ours / usual for ours, usual in zip(rates["ours"], rates["usual"], strict=True))
    assert found["details"]["ratio_range"] == ratios
    assert found["ratio"] == pytest.approx(sum(ratios) / 2)


def test_keys_and_agreement(images: Path, tmp_path: Path) -> None:
    found = run(small(images, tmp_path), (32, 40), 7, 2)
    assert found["name"] == "dense"
    assert found["unit"] == "images/s"
    assert found["ceiling"] is None, "no peak is known of a CPU"
    details = found["details"]
    assert details["images"] == 7
    assert details["largest_difference"] < 1e-5, "the same posteriors, only faster"
    assert_two_rounds(found)
