"""The benchmark of features: the usual way says the same, and cheaper ones do not stand in for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Command
from test_bench_dense import assert_two_rounds, small

from vggrepro.bench.features import run
from vggrepro.bench.nets import Bench, bench_of
from vggrepro.models.table1 import architecture_of


def test_keys_and_agreement(images: Path, tmp_path: Path) -> None:
    found = run(small(images, tmp_path), (32, 40), 7, 2)
    assert (found["name"], found["unit"]) == ("features", "images/s")
    assert found["ceiling"] is None, "no peak is known of a CPU"
    details = found["details"]
    assert (details["images"], details["layer"], details["Q"]) == (7, "fc7", [32, 40])
    assert details["largest_difference"] < 1e-5, "the same features, only faster"
    assert_two_rounds(found)
    assert details["centre_crop"] > 0


@pytest.mark.parametrize("changes", [{"flip": False}, {"batch": 3}])
def test_every_implementation_follows_the_configuration(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert run(small(images, tmp_path, **changes), (37,), 5, 1)["details"]["largest_difference"] < 1e-5


def test_a_different_result_is_detected(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mirror image, the difference is no rounding."""
    usual = Bench.per_image

    def careless(bench: Bench, output: Any, Q: int) -> Any:
        bench.config.evaluation.__dict__["flip"] = False
        try:
            return usual(bench, output, Q)
        finally:
            bench.config.evaluation.__dict__["flip"] = True

    monkeypatch.setattr(Bench, "per_image", careless)
    assert run(small(images, tmp_path), (37,), 5, 1)["details"]["largest_difference"] > 1e-3


def test_the_flop_are_those_of_the_layers_that_run(images: Path, tmp_path: Path) -> None:
    """Forward pass of an image of the crop's size, without class scores, and of its mirror image."""
    bench = bench_of(small(images, tmp_path), 1)
    bench.split.size[:] = 32
    net = architecture_of(bench.config)
    fc8 = next(layer for layer in net.layers() if layer.name == "fc8")
    assert bench.flop_per_image((32,)) == 4 * net.multiply_adds
    assert bench.flop_per_image((32,), skipped=("fc8",)) == 4 * (net.multiply_adds - fc8.multiply_adds)
    assert np.isclose(bench.flop_per_image((32, 32)), 8 * net.multiply_adds)


def test_the_command(images: Path, command: Command) -> None:
    sets = ("model.classes=3", "model.crop=32", "model.width=0.0625", "data.S=40", f"data.root={images}")
    words = [word for setting in sets for word in ("--set", setting)]
    found = command.json("bench", "features", "--net", "A", "--images", 3, "--rounds", 1, *words)
    assert found["details"]["Q"] == [37, 55, 73], "Appendix B's three for Caltech, to this crop"
    assert found.keys() == {"name", "ours", "usual", "ratio", "unit", "ceiling", "details"}
