"""Overhead of the training loop, measured against interleaved bare steps of the same net."""

import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training_runs import StageFile, train_here

from vggrepro.config.recipes import load_stage
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Views
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG

BATCH, STEPS, TURN = 32, 400, 10


class Interleaved(Loader):
    """Loader of synthetic images that trains a bare net between the turns of the loop."""

    bare: list[float]
    ours: list[float]

    def render(self, split: Split, stream: Iterable[Views]) -> Generator[Batch]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, 64, 64, generator=generator) * 60
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(3, (BATCH,), generator=generator)
        started = 0.0
        for number, views in enumerate(stream):
            if split.name == "train" and number % TURN == 0 and number:
                self.ours.append(time.process_time() - started)
                started = time.process_time()
                for _ in range(TURN):
                    self.bare_step(images, labels)
                self.bare.append(time.process_time() - started)
            if number % TURN == 0:
                started = time.process_time()
            yield Batch(images[: len(views)], labels[: len(views)], views)

    bare_step: Callable[[torch.Tensor, torch.Tensor], None]


@pytest.mark.slow
def test_the_loop_adds_less_than_three_per_cent(stage_file: StageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stage_file(
        "A",
        model={"crop": 64, "width": 0.25},
        data={"S": 64},
        evaluation={"single_Q": [64], "multi_Q": [64]},
        train={
            "batch": BATCH, "iterations": STEPS, "log_every": 20, "checkpoint_every": 10**6,
            "validate_every": 10**6, "learning_rate": 1e-4, "stall_after": 0,
        },
    )  # fmt: skip
    net = VGG(architecture_of(load_stage(file, ())[0])).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    init_weights(net, "kaiming", 0)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def bare_step(images: torch.Tensor, labels: torch.Tensor) -> None:
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    ours: list[float] = []
    bare: list[float] = []

    def make_loader(*arguments: Any) -> Loader:
        loader = Interleaved("torchvision", (0.0, 0.0, 0.0), 1, torch.device("cpu"))
        for name, item in (("ours", ours), ("bare", bare), ("bare_step", bare_step)):
            object.__setattr__(loader, name, item)
        return loader

    monkeypatch.setattr("vggrepro.data.loading.loader.make_loader", make_loader)
    # in the foreground, or the turns would overlap
    monkeypatch.setattr("vggrepro.training.step.prefetch", lambda items, device: items)
    train_here(file)
    ratios = [theirs / mine for mine, theirs in zip(_rest(ours), _rest(bare), strict=True)]
    ratio = statistics.median(ratios)
    spread = statistics.quantiles(ratios, n=4)
    print(
        f"bare / loop = {ratio:.4f}, quartiles {spread[0]:.4f} - {spread[2]:.4f}, {len(ratios)} turns of {TURN} steps"
    )
    print(f"{1e3 * statistics.median(bare) / TURN:.1f} ms of CPU a bare step, load {os.getloadavg()[0]:.1f}")
    assert ratio >= 0.97


def _rest(turns: Sequence[float]) -> Sequence[float]:
    return turns[3:]  # after warming up
