"""Training step compared with textbook SGD, and its reported speed."""

import pytest
import torch
from torch.nn import functional as F
from training_runs import StageFile, losses, train_here

from vggrepro.config.recipes import load_stage
from vggrepro.data.loading.loader import Batch
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture, architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.topology import Topology
from vggrepro.training.step import Trainer
from vggrepro.training.throughput import Meter, describe, flop_per_image, peak_flops


@pytest.mark.parametrize("biases", ["paper", "caffe"])
def test_a_step_is_sgd_with_momentum_and_weight_decay(stage_file: StageFile, biases: str) -> None:
    file = stage_file("A", model={"dropout": 0.0}, train={"biases": biases, "weight_decay": 0.05})
    config, _ = load_stage(file, ())
    net = VGG(architecture_of(config))
    init_weights(net, "glorot_uniform", 0)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=random) * 60
    labels = torch.randint(3, (8,), generator=random)
    weights = {name: tensor.double().requires_grad_() for name, tensor in net.state_dict().items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    reference = VGG(architecture_of(config)).double()
    trainer = Trainer(net, config, Topology(), torch.device("cpu"))
    for step, rate in enumerate((0.1, 0.1, 0.01)):
        trainer.step(step, iter([Batch(images, labels, None)]), rate)  # type: ignore[arg-type]
        scores = torch.func.functional_call(reference, weights, (images.double(),))
        gradients = torch.autograd.grad(F.cross_entropy(scores, labels), list(weights.values()))
        with torch.no_grad():
            for (name, tensor), gradient in zip(weights.items(), gradients, strict=True):
                free = biases == "caffe" and name.endswith("bias")
                velocity[name] = 0.9 * velocity[name] + gradient + (0 if free else 0.05) * tensor
                tensor.sub_((2 * rate if free else rate) * velocity[name])
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor.double(), weights[name].detach(), rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_trains_like_fp32(stage_file: StageFile) -> None:
    exact = losses(train_here(stage_file("fp32")))
    rough = losses(train_here(stage_file("bf16", train={"precision": "bf16"})))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.2)


def test_channels_last_and_no_gradient_for_the_input(stage_file: StageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    accumulate = Trainer._accumulate

    def watched(self: Trainer, batch: Batch, *, last: bool) -> None:
        seen.append(batch.images)
        accumulate(self, batch, last=last)

    monkeypatch.setattr(Trainer, "_accumulate", watched)
    train_here(stage_file("A"))
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in seen)
    assert not any(image.requires_grad for image in seen)


@pytest.mark.slow
def test_compiled_steps_train_like_eager_steps(stage_file: StageFile) -> None:
    eager = losses(train_here(stage_file("eager")))
    compiled = losses(train_here(stage_file("compiled", train={"compile": True, "micro_batch": 3})))
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize(("net", "gflop"), [("A", 45.5), ("D", 92.65), ("E", 117.6)])
def test_flop_per_training_image(net: str, gflop: float) -> None:
    assert flop_per_image(architecture(net)) / 1e9 == pytest.approx(gflop, abs=0.06)


def test_peaks_are_known_for_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu"), "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), "bf16") == 989.4e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_flops(torch.device("cuda"), "bf16") == 756e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something new")
    assert peak_flops(torch.device("cuda"), "bf16") is None


def test_the_meter_separates_steps_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 100.0, 102.0, 200.0, 201.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter()
    for _ in range(2):
        meter.start()
        meter.stop(8)
    report = meter.read(waited_s=1.0, flop=10, peak=80.0, world=2)
    assert report["images_per_s"] == 4
    assert report["images_per_s_without_wait"] == pytest.approx(16 / 3)
    assert report["data_wait"] == 0.25
    assert report["mfu"] == pytest.approx(4 * 10 / 160)
    assert "waits 25%  MFU 25.0%" in describe(report)
    meter.start()
    meter.stop(8)
    assert meter.read(waited_s=1.0, flop=10, peak=None, world=1)["data_wait"] == 0


def test_a_log_line_has_speed_wait_memory_and_time_left(stage_file: StageFile) -> None:
    lines = train_here(stage_file("A")).records("train")
    for key in ("loss", "learning_rate", "images_per_s", "images_per_s_without_wait", "data_wait", "memory_gib"):
        assert all(line[key] >= 0 for line in lines), key
    assert lines[-1]["seconds_left"] == 0
    assert lines[0]["seconds_left"] > 0
