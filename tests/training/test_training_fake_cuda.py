"""Training step on a fake CUDA device: nothing waits, nothing is copied, and tensors have the expected layouts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, DeviceLog, fake_cuda, on_fake_cuda
from torch import Tensor, nn

from vggrepro.config.settings import Config, Data, Model, Train
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.topology import Topology
from vggrepro.training import exchange
from vggrepro.training.health import activation_scales
from vggrepro.training.step import Trainer

BATCH, CLASSES, CROP = 8, 10, 64


def config_of(net: str = "A", **train: Any) -> Config:
    model = Model(net=net, classes=CLASSES, crop=CROP, width=0.0625, dropout=0.5)
    return Config(model=model, train=Train(batch=BATCH, **train))


def trainer_of(config: Config, topology: Topology | None = None) -> Trainer:
    return Trainer(on_fake_cuda(lambda: VGG(architecture_of(config))), config, topology or Topology(), CUDA)


def batches(trainer: Trainer, log: DeviceLog) -> list[Batch]:
    """Makes the batches of a step, with their masks, on the device."""
    half = trainer.config.train.precision == "bf16"
    found = []
    for rows in trainer.shard.rows:
        n = rows.stop - rows.start
        shape = (n, CROP, CROP, 3)
        images = torch.empty(shape, device=CUDA, dtype=torch.bfloat16 if half else torch.float32).permute(0, 3, 1, 2)
        masks = tuple(torch.empty((n, units), dtype=torch.bool, device=CUDA) for units in trainer.net.fc_widths)
        labels = torch.empty(n, dtype=torch.int64, device=CUDA)
        found.append(Batch(images, labels, None, masks))  # type: ignore[arg-type]
    log.clear()
    return found


class Ranks(nn.Module):
    """Replaces DistributedDataParallel, whose C++ reducer waits for autograd's engine."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Tensor:
        return self.module(*arguments)

    def register_comm_hook(self, state: object, hook: object) -> None:
        pass

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        yield


class Work:
    def wait(self) -> None:
        pass


def gathered(full: Tensor, part: Tensor, async_op: bool) -> Work:
    """Checks that NCCL gets contiguous tensors of one type on the device."""
    assert async_op
    assert full.device == part.device == CUDA
    assert full.dtype == part.dtype
    assert full.is_contiguous()
    assert part.is_contiguous()
    return Work()


@pytest.mark.parametrize("net", ["A", "A-LRN", "C", "E"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_neither_waits_nor_copies(
    monkeypatch: pytest.MonkeyPatch, net: str, precision: str, micro_batch: int | None, ranks: int
) -> None:
    monkeypatch.setattr(exchange, "DistributedDataParallel", Ranks)
    monkeypatch.setattr(exchange.distributed, "all_gather_into_tensor", gathered)
    config = config_of(net, precision=precision, micro_batch=micro_batch, comm="factor")
    with fake_cuda() as log:
        trainer = trainer_of(config, Topology(0, ranks, 0, ranks))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert torch.backends.cudnn.benchmark
        for step in range(3):
            copy = iter(batches(trainer, log))
            trainer.step(step, copy, 0.01)
            assert next(copy, None) is None
        assert log.copies == []
        assert log.synchronised == 0
        assert log.strided == [], "a convolution of maps that are not channels-last"
        # the last maps are flattened channel by channel, as the weights of fc6 have them: the only change of layout
        maps = architecture_of(config).layers()[-4].shape
        assert log.layouts == [f"clone {(rows.stop - rows.start, *maps)}" for rows in trainer.shard.rows]
        narrow = {torch.bfloat16} if precision == "bf16" else {torch.float32}
        assert log.types["convolution"] == log.types["addmm"] == narrow
        assert log.types["_log_softmax"] == {torch.float32}
        for name, tensor in (*trainer.net.state_dict().items(), *trainer.momentum().items()):
            assert (name, tensor.device, tensor.dtype) == (name, CUDA, torch.float32)


def test_reports_read_known_values_from_the_device() -> None:
    """Fake tensors have no values, so the loss and the bad step are read outside the fake mode."""
    with fake_cuda() as log:
        trainer = trainer_of(config_of())
        trainer.step(0, iter(batches(trainer, log)), 0.01)
        for ask in (trainer.loss_sum, trainer.bad_step, trainer.require_equal_nets):
            with pytest.raises(Exception, match=r"_local_scalar_dense|numpy|aten"):
                ask()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trainer, batch: float(trainer._loss_sum),
        lambda trainer, batch: batch.labels.nonzero(),
        lambda trainer, batch: batch.images + torch.zeros(CROP),
        lambda trainer, batch: bool((batch.labels > 0).any()),
    ],
    ids=["float", "nonzero", "two devices", "bool"],
)
def test_the_fake_device_detects_waits_and_copies(wrong: Callable[[Trainer, Batch], object]) -> None:
    with fake_cuda() as log:
        trainer = trainer_of(config_of())
        (batch,) = batches(trainer, log)
        with pytest.raises(Exception, match=r"aten|device"):
            wrong(trainer, batch)
        batch.images.cpu()
        torch.zeros(4).to(CUDA, non_blocking=True)
        torch.zeros(4).pin_memory().to(CUDA, non_blocking=True)
        assert [(copy.to, copy.waits) for copy in log.copies] == [("cpu", True), ("cuda", True), ("cuda", False)]


def test_masks_and_batches_are_copied_to_the_device_without_waiting() -> None:
    """Grey levels are copied as bytes from pinned memory, and the other small tensors are pinned."""
    config = config_of(precision="bf16", micro_batch=3)
    sizes = np.full((20, 2), 96)
    sampler = TrainingSampler(sizes, Data(S=80), CROP, 0)
    with fake_cuda() as log:
        trainer = trainer_of(config)
        loader = Loader("torchvision", (123.0, 116.0, 103.0), 1, CUDA, std=(58.0, 57.0, 57.0), dtype=torch.bfloat16)
        log.clear()
        views = sampler.views(0, 3)
        pixels = loader._empty((3, CROP, CROP, 3))
        images = loader._images(views, pixels)
        masks = trainer._dropout_masks(0, trainer.shard.rows[0])
        assert masks is not None
        assert images.device == masks[0].device == masks[1].device == CUDA
        assert images.dtype == torch.bfloat16
        assert images.shape == (3, 3, CROP, CROP)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not any(copy.waits for copy in log.copies)
        assert max(copy.bytes for copy in log.copies) == 3 * CROP * CROP * 3
        assert log.synchronised == 0


def test_a_snapshot_waits_once_and_reuses_its_memory() -> None:
    with fake_cuda() as log:
        trainer = trainer_of(config_of())
        trainer.step(0, iter(batches(trainer, log)), 0.01)
        first, momentum = trainer.snapshot()
        repeated, _ = trainer.snapshot()
        tensors = len(first) + len(momentum)
        assert [(copy.to, copy.waits) for copy in log.copies] == [("cpu", False)] * 2 * tensors
        assert log.synchronised == 2
        assert all(repeated[name] is first[name] for name in first)
        assert all(tensor.device.type == "cpu" for tensor in (*first.values(), *momentum.values()))
        for name, weight in trainer.net.state_dict().items():
            assert first[name].stride() == weight.stride(), "a copy into another layout is made by the host"


def test_activation_scales_are_computed_on_the_device() -> None:
    with fake_cuda() as log:
        trainer = trainer_of(config_of())
        (batch,) = batches(trainer, log)
        with pytest.raises(Exception, match=r"aten|numpy|_local"):  # only the numbers themselves are the host's
            activation_scales(trainer.net, batch.images)
        assert log.copies == []


def test_kernels_are_timed_unless_deterministic() -> None:
    with fake_cuda():
        for cudnn in ("benchmark", "deterministic"):
            trainer_of(config_of(cudnn=cudnn))
            chosen = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
            assert chosen == (cudnn == "benchmark", cudnn == "deterministic")
