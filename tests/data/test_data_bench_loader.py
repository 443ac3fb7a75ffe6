"""The loader's benchmark compares equal work, and reports what a benchmark reports."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggrepro.bench.loader import run, usual_transform
from vggrepro.config.settings import ColourShift, Config, Data, Model
from vggrepro.data.sampler import colour_components


def config(root: Path | None = None, **data: object) -> Config:
    S = {"S": (64, 96), "workers": 1} | data
    return Config(model=Model(net="A", crop=32), data=Data(root=str(root) if root else None, **S))


@pytest.mark.slow
def test_the_report_has_the_keys_of_a_benchmark(photographs: Path) -> None:
    found = run(config(photographs), images=20, batch=4, batches=3, rounds=2)
    assert {"name", "ours", "usual", "ratio", "unit", "ceiling", "details"} <= found.keys()
    assert found["ours"] > 0
    assert found["usual"] > 0
    assert found["details"]["images"] == 20
    if importlib.util.find_spec("nvidia.dali"):
        assert found["ceiling"] > 0


def test_the_baseline_is_the_same_augmentation() -> None:
    """Crops are taken from the rescaled image, and colours are shifted like ours."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    plain = config(S=64, flip=False, colour_shift=ColourShift(mode="off"))
    mean = torch.tensor(plain.data.mean)
    rescaled = np.asarray(image.resize((85, 64), Image.Resampling.BILINEAR)).astype(np.float32)
    found = (usual_transform(plain)(image) + mean[:, None, None]).permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(rescaled, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    assert np.abs(windows - found).max(axis=(2, 3, 4)).min() < 1e-3
    data = config(S=64, flip=False)
    shifted, components = usual_transform(data), colour_components(data.data.colour_shift)
    torch.manual_seed(0)
    grey = Image.new("RGB", (85, 64), (100, 100, 100))
    shifts = torch.stack([shifted(grey)[:, 0, 0] - 100 + mean for _ in range(4000)])
    expected = torch.from_numpy(components.T @ components).float()
    assert torch.allclose(torch.cov(shifts.T), expected, rtol=0.15)
