"""Initialisation: statistics, determinism, independence of the net and of the global generator."""

import math

import pytest
import torch
import torchvision
from nets import tiny_vgg
from torch import nn

from vggrepro.errors import UserError
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG


def built(net: str = "A", scheme: str = "paper", seed: int = 0, width: float = 0.25) -> VGG:
    return tiny_vgg(net, scheme, seed, classes=1000, width=width)


@pytest.mark.filterwarnings("ignore:init scheme paper_literal_variance")
@pytest.mark.parametrize(("scheme", "std"), [("paper", 0.01), ("paper_literal_variance", 0.1)])
def test_normal_schemes(scheme: str, std: float) -> None:
    for name, module in built(scheme=scheme).named_layers().items():
        n = module.weight.numel()
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name
        assert module.weight.mean().abs() < 5 * std / math.sqrt(n)
        assert not module.bias.any()


def test_glorot_uniform() -> None:
    for name, module in built(scheme="glorot_uniform").named_layers().items():
        out, inputs = module.weight.shape[:2]
        area = module.weight[0, 0].numel()
        limit = math.sqrt(6 / ((inputs + out) * area))
        assert 0.95 * limit < module.weight.abs().max() <= limit, name
        assert module.weight.std().item() == pytest.approx(
            limit / math.sqrt(3), rel=5 / math.sqrt(module.weight.numel())
        )
        assert not module.bias.any()


def test_kaiming_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.VGG(
        torchvision.models.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]),
        num_classes=10,
    ).features
    ours = built(scheme="kaiming").features
    for our, their in zip(ours, theirs, strict=True):
        if isinstance(our, nn.Conv2d):
            assert our.weight.shape == their.weight.shape
            ratio = (our.weight.std() / their.weight.std()).item()
            assert ratio == pytest.approx(1, rel=6 / math.sqrt(our.weight.numel()))
            fan_out = our.weight.shape[0] * 9
            assert our.weight.std().item() == pytest.approx(
                math.sqrt(2 / fan_out), rel=5 / math.sqrt(our.weight.numel())
            )
            assert not our.bias.any()
    fc6 = built(scheme="kaiming").named_layers()["fc6"]
    assert fc6.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_sets_all_parameters_including_uninitialised_memory() -> None:
    with torch.device("meta"):
        net = VGG(architecture("B", crop=32, width=0.1, batch_norm=True))
    net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.fill_(99)
    init_weights(net, "paper", seed=0)
    assert all((tensor != 99).all() for tensor in net.state_dict().values())
    norm = net.named_layers()["bn1_1"]
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert not norm.bias.any()
    assert not norm.running_mean.any()
    assert not norm.num_batches_tracked


def test_depends_on_seed_and_layer_only() -> None:
    first, again, other = built(seed=3), built(seed=3), built(seed=4)
    deeper = built("E", seed=3).named_layers()
    for name, module in first.named_layers().items():
        assert torch.equal(module.weight, again.named_layers()[name].weight)
        assert not torch.equal(module.weight, other.named_layers()[name].weight)
    for name in ("conv1_1", "conv3_2", "conv5_2", "fc6", "fc8"):
        assert torch.equal(first.named_layers()[name].weight, deeper[name].weight)
    assert not torch.equal(deeper["conv5_3"].weight, deeper["conv5_4"].weight)


def test_does_not_use_the_global_generator() -> None:
    net = VGG(architecture("A", crop=32, width=0.01))
    state = torch.get_rng_state()
    for scheme in ("paper", "glorot_uniform", "kaiming"):
        init_weights(net, scheme, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_literal_variance_warns_and_an_unknown_scheme_is_named() -> None:
    with pytest.warns(UserWarning, match="overflows"):
        built(scheme="paper_literal_variance", width=0.01)
    with pytest.raises(UserError, match="init scheme 'xavier' is unknown; choose from paper, "):
        built(scheme="xavier", width=0.01)
