"""Nets that cannot learn, or that diverge, stop with the reason."""

import json
import math
from itertools import count
from pathlib import Path

import pytest
import torch
from nets import tiny_vgg
from training_runs import StageFile, last, losses, train_here

from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG
from vggrepro.training.exchange import Exchange
from vggrepro.training.health import activation_scales, check_learning, check_start
from vggrepro.training.step import Trainer


def test_scales_are_the_root_mean_square_of_each_layer() -> None:
    net = tiny_vgg("A", "glorot_uniform").train()
    images = torch.randn(4, 3, 32, 32) * 60
    scales = activation_scales(net, images)
    assert list(scales) == list(net.named_layers())
    assert net.training
    with torch.no_grad():
        assert scales["conv1_1"] == pytest.approx(float(net.features[0](images).square().mean().sqrt()))
        assert scales["fc8"] == pytest.approx(float(net.eval()(images).square().mean().sqrt()))
    assert not net.features[0]._forward_hooks


@pytest.mark.parametrize(
    ("scores", "word"), [(9.9e-6, "vanish"), (1e-20, "vanish"), (101.0, "explode"), (math.inf, "explode")]
)
def test_vanishing_and_exploding_activations_are_errors_with_advice(scores: float, word: str) -> None:
    net = tiny_vgg("D")
    with pytest.raises(UserError, match=f"{word} at initialisation .*run.parent.*glorot_uniform.*--force"):
        check_start(net, {"conv1_1": 1.0, "fc8": scores})
    check_start(net, {"conv1_1": 1.0, "fc8": 5e-4})  # A in the paper's geometry


def test_nan_activations_are_an_error() -> None:
    with pytest.raises(UserError, match="explode"):
        check_start(tiny_vgg("A"), {"fc8": math.nan})


def test_d_from_scratch_with_the_papers_standard_deviation_is_an_error(stage_file: StageFile) -> None:
    file = stage_file("D", model={"net": "D", "init": "paper"})
    with pytest.raises(UserError, match="activations of D vanish at initialisation"):
        train_here(file)
    assert losses(train_here(file, force=True))[0] == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.filterwarnings("ignore:init scheme paper_literal_variance")
def test_the_literal_variance_is_an_error_in_the_papers_geometry() -> None:
    net = tiny_vgg("A", "paper_literal_variance", crop=224, width=0.25)
    with pytest.raises(UserError, match="activations of A explode at initialisation"):
        check_start(net, activation_scales(net, torch.randn(2, 3, 224, 224) * 60))


def test_a_warm_start_is_not_checked_for_its_activations(stage_file: StageFile) -> None:
    train_here(stage_file("A"))
    child = stage_file("B", model={"net": "B", "init": "paper"}, run={"name": "B", "parent": "A.yaml"})
    run = train_here(child)
    (event,) = [record for record in run.records("event") if record["event"] == "activation scales"]
    assert event["step"] == 0
    assert event["conv1_2"] > 0


def test_a_loss_of_guessing_stops_the_run(stage_file: StageFile) -> None:
    file = stage_file("D", model={"net": "D", "init": "paper"}, train={"iterations": 1000, "stall_after": 6})
    with pytest.raises(UserError, match=r"loss is 1.098\d after 6 iterations.*does not learn.*glorot_uniform"):
        train_here(file, force=True)


def test_stalling_is_checked_only_after_the_configured_steps() -> None:
    guess = math.log(1000)
    check_learning(guess, 1000, 9_999, 10_000)
    check_learning(guess, 1000, 10**6, 0)
    check_learning(guess - 0.03, 1000, 10_000, 10_000)
    with pytest.raises(UserError, match="stall_after"):
        check_learning(guess - 0.01, 1000, 10_000, 10_000)


def test_a_gradient_that_is_not_finite_is_not_applied(stage_file: StageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = train_here(stage_file("healthy"))
    steps, finish = count(), Exchange.finish

    def poisoned(self: Exchange) -> None:
        finish(self)
        if next(steps) == 5:
            bias = self.forward.classifier[-1].bias  # type: ignore[union-attr,index]
            bias.grad[0] = math.nan  # type: ignore[index,union-attr]

    monkeypatch.setattr(Exchange, "finish", poisoned)
    file = stage_file("ill", train={"log_every": 4})
    with pytest.raises(UserError, match=r"gradient of step 6 is not finite and was not applied.*non_finite.json"):
        train_here(file)
    run = healthy.path.parent / "ill"
    report = json.loads((run / "non_finite.json").read_text())
    assert report["step"] == 6
    assert len(report["images"]) == 8
    assert all(Path(image).is_file() for image in report["images"])

    monkeypatch.undo()
    recovered = train_here(file)
    assert recovered.checkpoints.joinpath("step-00000005.pt").exists()
    theirs, ours = last(healthy).weights, last(recovered).weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_are_unchanged_after_a_gradient_that_is_not_finite(stage_file: StageFile) -> None:
    from vggrepro.config.recipes import load_stage
    from vggrepro.data.loading.loader import Batch
    from vggrepro.models.table1 import architecture_of
    from vggrepro.ranks.topology import Topology

    config, _ = load_stage(stage_file("A", model={"dropout": 0.0}), ())
    net = VGG(architecture_of(config))
    trainer = Trainer(net, config, Topology(), torch.device("cpu"))

    def batch(value: float) -> Batch:
        return Batch(torch.full((8, 3, 32, 32), value), torch.zeros(8, dtype=torch.int64), None)  # type: ignore[arg-type]

    trainer.step(0, iter([batch(1.0)]), 0.1)
    assert trainer.bad_step() is None
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    momentum = {name: tensor.clone() for name, tensor in trainer.momentum().items()}
    trainer.step(1, iter([batch(math.inf)]), 0.1)
    trainer.step(2, iter([batch(1.0)]), 0.1)
    assert trainer.bad_step() == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(tensor, momentum[name]) for name, tensor in trainer.momentum().items())
