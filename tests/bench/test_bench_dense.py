"""The dense benchmark: all ways see the same pictures, and say the same where they should."""

from pathlib import Path

import pytest

from vggrepro.bench.dense import run
from vggrepro.config import Config, Data, Model, Run


def test_keys_and_agreement(pictures: Path, tmp_path: Path) -> None:
    config = Config(
        model=Model(net="A", classes=3, crop=32, width=0.0625),
        data=Data(root=str(pictures), S=40, backend="torchvision", workers=1),
        run=Run(root=tmp_path / "runs", device="cpu"),
    )
    found = run(config, (32, 40), 7, 2)
    assert found["name"] == "dense"
    assert found["unit"] == "pictures/s"
    assert found["ceiling"] is None, "no peak is known of a CPU"
    details = found["details"]
    assert details["pictures"] == 7
    assert details["largest_difference"] < 1e-5, "the same posteriors, only faster"
    assert all(len(rates) == 2 for rates in details["rates"].values())
    ratios = sorted(
        ours / usual for ours, usual in zip(details["rates"]["ours"], details["rates"]["usual"], strict=True)
    )
    assert details["ratio_range"] == ratios
    assert found["ratio"] == pytest.approx(sum(ratios) / 2)
