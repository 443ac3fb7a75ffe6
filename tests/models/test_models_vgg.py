"""The torch module: parameters, torchvision's keys and outputs, LRN, dropout."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from nets import tiny_vgg
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vggrepro.errors import UserError
from vggrepro.models.dense import class_scores
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.paper import facts

NETS = ["A", "A-LRN", "B", "C", "D", "E"]
TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


@pytest.fixture(scope="module")
def random_like() -> Callable[[str, Tensor], Tensor]:
    """Function that replaces meta tensors by random ones; large classifier tensors are drawn once for all nets."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Tensor] = {}

    def draw(key: str, meta: Tensor) -> Tensor:
        if not meta.is_floating_point():
            return torch.zeros(meta.shape, dtype=meta.dtype)
        if key in drawn:
            return drawn[key]
        limit = (6 / max(meta[0].numel(), 1)) ** 0.5 if meta.dim() > 1 else 1.0
        tensor = torch.empty(meta.shape).uniform_(0.5 if meta.dim() == 1 else -limit, limit, generator=generator)
        if key.startswith("classifier"):
            drawn[key] = tensor
        return tensor

    return draw


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_parameters_of_the_module(net: str, batch_norm: bool) -> None:
    with torch.device("meta"):
        module = VGG(architecture(net, batch_norm=batch_norm))
    exact = facts().parameters_batch_norm if batch_norm else facts().parameters
    assert sum(p.numel() for p in module.parameters()) == exact[net]
    kinds = {
        "conv": nn.Conv2d,
        "bn": nn.BatchNorm2d,
        "lrn": nn.LocalResponseNorm,
        "pool": nn.MaxPool2d,
        "fc": nn.Linear,
    }
    for layer in module.architecture.layers():
        row = module.get_submodule(layer.key)
        assert isinstance(row, kinds[layer.kind])
        assert sum(p.numel() for p in row.parameters()) == layer.parameters


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("net", TORCHVISION)
def test_keys_and_outputs_are_torchvisions(net: str, batch_norm: bool, random_like: Callable) -> None:
    with torch.device("meta"):
        ours = VGG(architecture(net, batch_norm=batch_norm)).eval()
        theirs = getattr(torchvision.models, TORCHVISION[net] + "_bn" * batch_norm)(init_weights=False).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    state = {key: random_like(key, meta) for key, meta in ours.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    theirs.load_state_dict(state, assign=True)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores = ours(images)
        assert scores.std() > 1e-3
        assert torch.equal(scores, theirs(images))


def test_full_width_a_is_dense_like_its_windows(random_like: Callable) -> None:
    with torch.device("meta"):
        net = VGG(architecture("A")).eval()
    net.load_state_dict({key: random_like(key, meta) for key, meta in net.state_dict().items()}, assign=True)
    images = torch.rand(1, 3, 250, 323, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = net.features(images)
        assert maps.shape == (1, 512, 7, 10)
        windows = torch.stack([net.classifier(maps[:, :, :, x : x + 7].flatten(1)) for x in range(4)])
        torch.testing.assert_close(class_scores(net, images), windows.mean(0), rtol=1e-4, atol=1e-4)


def test_c_keeps_the_papers_resolutions() -> None:
    with torch.device("meta"):
        net = VGG(architecture("C"))
        maps, sides = torch.empty(1, 3, 224, 224), []
        for module in net.features:
            maps = module(maps)
            if isinstance(module, nn.Conv2d):
                assert module.padding == ((0, 0) if module.kernel_size == (1, 1) else (1, 1))
                sides.append(maps.shape[-1])
    assert sides == [224] * 2 + [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3
    assert maps.shape == (1, 512, 7, 7)


@pytest.mark.parametrize("net", ["A-LRN", "C"])
def test_multiply_adds_against_torchinfo(net: str) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    arch = architecture(net, crop=64, width=0.125)
    theirs = torchinfo.summary(VGG(arch), input_size=(1, 3, 64, 64), verbose=0)
    # torchinfo counts each bias as one more multiply-add per output.
    biases = sum(np.prod(layer.shape) for layer in arch.layers() if layer.kind in ("conv", "fc"))
    assert arch.multiply_adds == theirs.total_mult_adds - biases
    assert arch.parameters == theirs.total_params


def test_lrn_is_the_formula_of_the_paper_it_cites() -> None:
    net = VGG(architecture("A-LRN", crop=32, width=0.125))
    assert [type(module) for module in net.features[:4]] == [nn.Conv2d, nn.ReLU, nn.LocalResponseNorm, nn.MaxPool2d]
    a = torch.rand(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 500
    ours = net.features[2](a).numpy()
    k, n, alpha, beta = 2, 5, 1e-4, 0.75
    x = a.double().numpy()
    for i in range(8):
        squares = (x[:, max(0, i - n // 2) : min(8, i + n // 2 + 1)] ** 2).sum(axis=1)
        np.testing.assert_allclose(ours[:, i], x[:, i] / (k + alpha * squares) ** beta, rtol=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_order_of_layers(batch_norm: bool) -> None:
    net = VGG(architecture("A", crop=32, width=0.01, batch_norm=batch_norm, dropout=0.3))
    conv = ["Conv2d", "BatchNorm2d", "ReLU"] if batch_norm else ["Conv2d", "ReLU"]
    names = [name for convolutions in (1, 1, 2, 2, 2) for name in (*conv * convolutions, "MaxPool2d")]
    assert [type(module).__name__ for module in net.features] == names
    hidden = ["Linear", "ReLU", "Dropout"]
    assert [type(module).__name__ for module in net.classifier] == [*hidden, *hidden, "Linear"]
    assert (net.classifier[2].p, net.classifier[5].p) == (0.3, 0.3)
    assert list(net.named_layers()) == [layer.name for layer in net.architecture.layers() if layer.parameters]
    assert net.named_layers()["fc8"] is net.classifier[6]


def test_dropout_masks_replace_the_nets_draws() -> None:
    net = tiny_vgg(dropout=0.2)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    masks = tuple(torch.rand(4, width, generator=generator) > 0.2 for width in net.fc_widths)
    maps = net.features(images).flatten(1)
    fc6, fc7, fc8 = (net.named_layers()[name] for name in ("fc6", "fc7", "fc8"))
    expected = fc8(fc7(fc6(maps).relu() * masks[0] / 0.8).relu() * masks[1] / 0.8)
    net.train()
    state = torch.get_rng_state()
    torch.testing.assert_close(net(images, masks), expected)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(net(images[:2], (masks[0][:2], masks[1][:2])), expected[:2])
    assert not torch.equal(net(images), net(images))
    with pytest.raises(AssertionError, match="dropout mask"):
        net(images, (masks[0][:1], masks[1][:1]))


def test_dropout_is_off_in_eval_mode() -> None:
    net = tiny_vgg()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nothing = tuple(torch.zeros(2, width, dtype=torch.bool) for width in net.fc_widths)
    fc6, fc7, fc8 = (net.named_layers()[name] for name in ("fc6", "fc7", "fc8"))
    plain = fc8(fc7(fc6(net.features(images).flatten(1)).relu()).relu())
    assert torch.equal(net(images), net(images, nothing))
    torch.testing.assert_close(net(images), plain)


def test_training_compiles_one_graph_of_convolutions_per_shape() -> None:
    """The cases are masks, hooks on the FC layers as in the exchange of factors, a shorter micro-batch, and testing."""
    net = tiny_vgg(classes=10).train()
    counting = CompileCounterWithBackend("aot_eager")
    seen: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(seen.append)

    for layer in net.classifier:
        layer.register_forward_hook(hook)
    plain = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.compile_features(backend=counting, fullgraph=True)
    assert net.state_dict().keys() == plain.keys()
    for n in (3, 3, 2, 3, 2):
        images, masks = torch.randn(n, 3, 32, 32), (torch.ones(n, 256).bool(), torch.ones(n, 256).bool())
        net(images, masks).sum().backward()
    assert counting.frame_count == 2
    assert len(seen) == 5 * 5  # of dropout, which the masks replace, there is none
    net.eval()
    with torch.inference_mode():
        for n in range(1, 5):
            net(torch.randn(n, 3, 32, 32))
    assert counting.frame_count == 2


def test_compiles_without_graph_breaks() -> None:
    net = tiny_vgg().train()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = tuple(torch.rand(2, width, generator=torch.Generator().manual_seed(1)) > 0.5 for width in net.fc_widths)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, masks), net(images, masks))


def test_wrong_input_size_is_named() -> None:
    with pytest.raises(UserError, match="images of 32x64 pixels must be 32x32"):
        tiny_vgg()(torch.zeros(1, 3, 32, 64))
