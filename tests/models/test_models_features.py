"""Activations of the last hidden layer as features, and nets of convolutions only (Appendix B)."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from nets import GEOMETRY, tiny_vgg, with_biases
from PIL import Image
from programs import Command
from tiny import shared
from torch import Tensor

from vggrepro.config.settings import Evaluation
from vggrepro.errors import UserError
from vggrepro.evaluation.methods import features
from vggrepro.models import weights
from vggrepro.models.caffe import state_of
from vggrepro.models.dense import feature_map, score_map
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, read, write

State = dict[str, Tensor]


def built(net: str = "A", **options: object) -> VGG:
    return with_biases(tiny_vgg(net, "glorot_uniform", **{"crop": 64} | options))


def random_images(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def fc7_of(net: VGG, images: Tensor) -> Tensor:
    """Returns the plain net's activations after fc7's ReLU, shape (N, units)."""
    seen = []
    handle = net.classifier[4].register_forward_hook(lambda _module, _given, output: seen.append(output.clone()))
    net(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"net": "A-LRN"}])
@torch.inference_mode()
def test_features_at_the_crop_are_the_plain_nets(options: dict) -> None:
    net, images = built(**options), random_images(64, 64)
    maps = feature_map(net, images)
    assert maps.shape == (2, 256, 1, 1)
    torch.testing.assert_close(maps[..., 0, 0], fc7_of(net, images), rtol=1e-4, atol=1e-5)
    assert (maps >= 0).all()
    assert (maps == 0).any(), "after the ReLU"


@torch.inference_mode()
def test_positions_are_windows_of_the_last_pooling_map() -> None:
    net, images = built(), random_images(97, 131)
    maps, pooled = feature_map(net, images), net.features(images)
    assert maps.shape[2:] == (2, 3)
    for y, x in np.ndindex(2, 3):
        expected = net.classifier[:5](pooled[:, :, y : y + 2, x : x + 2].flatten(1))
        torch.testing.assert_close(maps[:, :, y, x], expected, rtol=1e-4, atol=1e-5)
    fc8 = net.named_layers()["fc8"]
    scores = torch.nn.functional.conv2d(maps, fc8.weight[..., None, None], fc8.bias)  # type: ignore[arg-type, index]
    torch.testing.assert_close(scores, score_map(net, images), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_shift_by_a_stride_shifts_positions() -> None:
    """Positions that see the border's padding are excluded."""
    net, image = built(crop=32, layers=[["conv3-64"], ["conv3-64"], ["conv3-99"]]), random_images(160, 176, 1)
    maps, moved = (feature_map(net, part) for part in (image[..., :168], image[..., 8:]))
    torch.testing.assert_close(maps[..., 2:-2, 3:-2], moved[..., 2:-2, 2:-3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"fully_connected": False}])
@pytest.mark.parametrize(("height", "width"), [(64, 700), (333, 97)])
@torch.inference_mode()
def test_strips_equal_the_full_map(options: dict, height: int, width: int) -> None:
    net, images = built(**options), random_images(height, width)
    strips = feature_map(net, images, pixels_at_once=2 * 64 * 256)
    torch.testing.assert_close(strips, feature_map(net, images), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_descriptors_are_the_mean_over_positions_and_mirror_images() -> None:
    net, images = built(), random_images(70, 131, 3)
    expected = (feature_map(net, images).mean((2, 3)) + feature_map(net, images.flip(3)).mean((2, 3))) / 2
    for pixels in (100, 1):  # crops at once: strips in the second
        torch.testing.assert_close(
            features(net, images, Evaluation(flip=True, batch=pixels)), expected, rtol=1e-4, atol=1e-5
        )
    alone = feature_map(net, images).mean((2, 3))
    torch.testing.assert_close(features(net, images, Evaluation(flip=False, batch=100)), alone)


@torch.inference_mode()
def test_a_net_of_convolutions_only() -> None:
    net, images = built(fully_connected=False), random_images(40, 99)
    assert not list(net.classifier)
    assert (net.architecture.feature_layer, net.architecture.smallest_side) == ("pool5", 32)
    assert net.architecture.parameters == sum(tensor.numel() for tensor in net.parameters())
    torch.testing.assert_close(feature_map(net, images), net.features(images))
    assert feature_map(net, images).shape == (2, 32, 1, 3)
    refused: list[Callable[[], Tensor]] = [lambda: net(random_images(64, 64)), lambda: score_map(net, images)]
    for call in refused:
        with pytest.raises(
            UserError, match=r"has no fully-connected layers .*; compute its features with `vggrepro features`"
        ):
            call()
    with pytest.raises(UserError, match="31x99 pixels are smaller than the net's stride of 32; rescale to Q >= 32"):
        feature_map(net, random_images(31, 99))


def saved(file: Path, state: State) -> Path:
    torch.save(state, file)
    return file


def of_convolutions(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if key.startswith("features")}


def nan(state: State, *parts: str) -> State:
    """Returns the state with some tensors full of NaN."""
    return {
        key: torch.full_like(tensor, torch.nan) if key.startswith(parts) else tensor for key, tensor in state.items()
    }


@pytest.mark.parametrize("net", ["A", "C", "D", "E"])
def test_files_of_convolutions_only(tmp_path: Path, net: str) -> None:
    state = built(net, **GEOMETRY).state_dict()
    for content in (of_convolutions(state), nan(state, "classifier")):  # as torchvision's IMAGENET1K_FEATURES
        found = read(saved(tmp_path / "net.pth", content))
        model = {"net": net, "batch_norm": False, "classes": 1000, "width": 0.0625, "crop": 224}
        assert found.model == model | {"fully_connected": False}
        assert found.weights.keys() == of_convolutions(state).keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.weights.items())
        VGG(architecture(**found.model)).load_state_dict(found.weights)


def test_the_authors_convolutions_are_recognised_by_their_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision's IMAGENET1K_FEATURES expects values 0-255 minus the mean, unlike its other nets."""
    file = saved(tmp_path / "net.pth", nan(built("D", **GEOMETRY).state_dict(), "classifier"))
    assert read(file).preprocessing == PREPROCESSING["torchvision"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights._KNOWN, digest[:8], weights._KNOWN["88682ab5"])
    assert read(file).preprocessing == PREPROCESSING["paper"]
    assert read(file, preprocessing="torchvision").preprocessing == PREPROCESSING["torchvision"]


def test_batch_norm_of_convolutions_only(tmp_path: Path) -> None:
    state = built("A", batch_norm=True).state_dict()
    found = read(saved(tmp_path / "net.pth", of_convolutions(state)))
    assert (found.model["net"], found.model["batch_norm"]) == ("A", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: nan(state, "classifier.0", "classifier.3"), "damaged: classifier.0.weight has values that"),
        (lambda state: nan(state, "classifier.6.bias"), "damaged: classifier.6.bias has values that are not finite"),
        (lambda state: nan(of_convolutions(state), "features.0"), "damaged: features.0.weight has values that"),
        (lambda state: {k: v for k, v in state.items() if "classifier.0" not in k}, "layers or none"),
        (lambda state: {k: v for k, v in state.items() if "classifier.3" not in k}, "classifier.3.weight is missing"),
        (lambda state: {k: v for k, v in state.items() if "features.3" not in k}, "features.3.weight is missing"),
    ],
)
def test_files_with_some_of_the_layers_are_one_line_errors(
    tmp_path: Path, change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read(saved(tmp_path / "net.pth", change(built("A", **GEOMETRY).state_dict())))
    assert "\n" not in str(refused.value)


def test_import_and_export_and_import_again(tmp_path: Path, command: Command) -> None:
    file = saved(tmp_path / "net.pth", of_convolutions(built("D").state_dict()))
    found = command.json("weights", "import", file, "--out", tmp_path / "nets" / "D")
    assert found["parameters"] == sum(tensor.numel() for tensor in torch.load(file, weights_only=True).values())
    for suffix in ("safetensors", "pth"):
        out = tmp_path / f"again.{suffix}"
        assert command("weights", "export", tmp_path / "nets" / "D", "--out", out)[0] == 0
        again = command.json("weights", "import", out, "--out", tmp_path / "nets" / suffix)
        assert {key: again[key] for key in ("weights", "net", "crop", "preprocessing")} == {
            key: found[key] for key in ("weights", "net", "crop", "preprocessing")
        }
    for dense in ([], ["--dense"]):
        onnx = ("weights", "export", tmp_path / "nets" / "D", "--out", tmp_path / "D.onnx", *dense)
        assert "has no fully-connected layers" in command.mistake(*onnx)
    assert "has no fully-connected layers" in command.mistake("evaluate", tmp_path / "nets" / "D")


def test_the_description_of_a_file_is_preserved(tmp_path: Path) -> None:
    net, file = built("A", fully_connected=False), tmp_path / "net.safetensors"
    model = {"net": "A", "classes": 7, "crop": 64, "width": 0.0625, "fully_connected": False}
    write(file, net.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
    assert read(file).model == model


@torch.inference_mode()
def test_the_authors_real_convolutions_on_a_photograph() -> None:
    """`vggrepro features` averages torchvision's vgg16().features over positions and mirror images."""
    with np.load(shared("vgg16_imagenet_conv_fp16.npz"), allow_pickle=False) as content:
        names = sorted({key.split(".")[0] for key in content})
        layers = {name: (content[f"{name}.weight"], content[f"{name}.bias"]) for name in names}
    net = VGG(architecture("D", fully_connected=False)).eval()
    net.load_state_dict(state_of(layers, net.architecture))
    pixels = np.asarray(photograph().resize((110, 70)))
    image = (torch.from_numpy(pixels.copy()).float() - torch.tensor(PREPROCESSING["paper"]["mean"])).permute(2, 0, 1)
    plain = torchvision.models.vgg16(init_weights=False).features.eval()
    plain.load_state_dict({key.removeprefix("features."): tensor for key, tensor in net.state_dict().items()})
    both = plain(torch.stack([image, image.flip(2)]))
    assert both.shape == (2, 512, 2, 3)
    found = features(net, image[None], Evaluation(flip=True, batch=64))[0]
    torch.testing.assert_close(found, both.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert 0.2 < (found > 0).float().mean() <= 1
    assert found.max() > 1


def photograph() -> Image.Image:
    """A real photograph; the test is skipped without one."""
    with tarfile.open(shared("imagenette-160.tar")) as tar:
        content = tar.extractfile(next(member for member in tar if member.name.endswith(".JPEG")))
        assert content is not None
        return Image.open(io.BytesIO(content.read())).convert("RGB")
