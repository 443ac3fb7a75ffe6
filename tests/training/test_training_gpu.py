"""Training on a CUDA device; `make test-gpu` runs these."""

from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import torch
from training_runs import StageFile, last, losses, train_here

from vggrepro.config.recipes import load_stage
from vggrepro.config.settings import Data
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Batch, make_loader
from vggrepro.data.loading.prefetch import prefetch
from vggrepro.data.sampler import MicroBatches, TrainingSampler
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.topology import Topology
from vggrepro.training.step import Trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"precision": "fp32"}, 1e-3),
        ({"precision": "tf32"}, 2e-2),
        ({"precision": "bf16"}, 0.2),
        ({"precision": "fp32", "compile": True}, 1e-3),
        ({"precision": "fp32", "micro_batch": 3}, 1e-3),
    ],
)
def test_the_device_has_the_loss_curve_of_the_cpu(
    stage_file: StageFile, settings: dict[str, object], tolerance: float
) -> None:
    expected = losses(train_here(stage_file("cpu")))
    found = losses(train_here(stage_file("cuda", train=settings, run={"name": "cuda", "device": "cuda"})))
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_run_on_the_device_can_resume_on_the_cpu(stage_file: StageFile) -> None:
    on_cpu = losses(train_here(stage_file("cpu")))
    file = stage_file("moved", run={"name": "moved", "device": "cuda"})
    run = train_here(file)
    for stored in run.checkpoints.glob("*.pt"):
        if stored.name not in ("step-00000004.pt", "best.pt"):
            stored.unlink()
    train_here(file, "run.device=cpu")
    assert losses(run) == pytest.approx(on_cpu, rel=1e-3)
    assert last(run).step == 12


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_does_not_wait_for_the_device(stage_file: StageFile, compiled: bool) -> None:
    device = torch.device("cuda", 0)
    config, _ = load_stage(stage_file("A", train={"compile": compiled, "micro_batch": 4}), ())
    net = VGG(architecture_of(config))
    init_weights(net, "kaiming", 0)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(net, config, Topology(), device)
    images = torch.randn(4, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    ready = (Batch(images, labels, None) for _ in count())  # type: ignore[arg-type]
    with closing(prefetch(trainer.completed(ready, 0), device)) as batches:
        for step in range(3):
            trainer.step(step, batches, 0.01)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # of all threads
        try:
            for step in range(3, 6):
                trainer.step(step, batches, 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.bad_step() is None


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_on_the_device_equal_those_on_the_host(images: Path, processes: int) -> None:
    """Batches are copied and converted on a separate stream, while the device is busy on another."""
    split = scan_folder(images).split("train")
    sampler = TrainingSampler(split.size, Data(S=(40, 60)), 32, 0)
    views = MicroBatches(sampler, 8, (slice(0, 8),), 0, 40)
    data = Data(S=(40, 60), workers=2, processes=processes)
    device = torch.device("cuda", 0)
    work = torch.randn(4096, 4096, device=device)
    found = []
    for batch in make_loader(data, device).batches(split, views):
        for _ in range(3):
            work = (work @ work).clamp(-1, 1)
        found.append(batch.images * 2)  # behind the products, when the batches after it are there
        del batch
    for ours, theirs in zip(found, make_loader(data, torch.device("cpu")).batches(split, views), strict=True):
        assert torch.equal(ours.cpu(), theirs.images * 2)


def test_deterministic_training_is_bitwise_repeatable(stage_file: StageFile) -> None:
    settings = {"cudnn": "deterministic"}
    first, second = (
        train_here(stage_file(name, train=settings, run={"name": name, "device": "cuda"})) for name in ("one", "two")
    )
    assert losses(first) == losses(second)
    theirs, ours = last(first).weights, last(second).weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
