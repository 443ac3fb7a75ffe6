"""MatConvNet's nets, in files written as by its import-caffe.py (SimpleNN, MATLAB 5.0)."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import GEOMETRY, tiny_vgg
from scipy.io import savemat

from vggrepro.errors import UserError
from vggrepro.models import weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, Imported, read

MEAN = (120.5, 115.25, 101.0)


def built(net: str, **options: Any) -> VGG:
    module = tiny_vgg(net, seed=1, **(GEOMETRY | options))
    with torch.no_grad():
        for layer in module.named_layers().values():
            layer.bias.uniform_(-0.1, 0.1)  # type: ignore[operator, union-attr]
    return module


def layers_of(net: VGG) -> list[dict[str, Any]]:
    """Converts Caffe's blobs like import-caffe.py: reversed axes, rows before columns, and RGB."""
    layers: list[dict[str, Any]] = []
    side = net.architecture.fc6_kernel
    for name, module in net.named_layers().items():
        weight, bias = (tensor.detach().numpy() for tensor in (module.weight, module.bias))
        blob = weight[:, ::-1] if name == "conv1_1" else weight  # what Caffe has is BGR
        if weight.ndim == 2:  # the importer counts in Fortran's order: columns, rows, channels
            spatial = side if name == "fc6" else 1
            array = blob.T.reshape(spatial, spatial, -1, len(blob), order="F")
        else:
            array = blob.T
        array = array.transpose(1, 0, 2, 3)
        if name == "conv1_1":
            array = array[:, :, ::-1]
        weights = np.empty([1, 2], dtype=object)
        weights[0, 0], weights[0, 1] = array, bias.reshape(1, -1)
        pad = np.full((1, 4), float(name.startswith("conv")))
        layers.append({"name": name, "type": "conv", "weights": weights, "pad": pad, "stride": np.ones((1, 2))})
        layers.append({"name": f"relu_{name}", "type": "relu"})
    layers[-1] = {"name": "prob", "type": "softmax"}
    return layers


def save(
    file: Path, layers: list[dict[str, Any]], generation: str = "tidied", average: Any = MEAN, compressed: bool = True
) -> None:
    """Writes the preprocessing in the current form, or in that before MatConvNet's beta 17."""
    average = np.array(average).reshape(1, 1, 3) if np.ndim(average) == 1 and len(average) == 3 else np.array(average)
    normalization = {"imageSize": np.array([[224.0, 224, 3]]), "averageImage": average, "interpolation": "bilinear"}
    meta: dict[str, Any] = {"normalization": normalization, "classes": {"name": np.array(["n01440764"], object)}}
    cells = np.empty((1, len(layers)), dtype=object)
    cells[0, :] = layers
    savemat(file, {"layers": cells} | ({"meta": meta} if generation == "tidied" else meta), do_compression=compressed)


def mistake_of(file: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(file, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("net", ["A", "C", "D", "E"])
@pytest.mark.parametrize("generation", ["tidied", "old"])
def test_the_same_scores_for_the_same_rgb(tmp_path: Path, net: str, generation: str) -> None:
    original, file = built(net), tmp_path / "imagenet-vgg-verydeep.mat"
    large = np.broadcast_to(np.array(MEAN), (224, 224, 3))  # the old ones hold an image of one colour
    save(file, layers_of(original), generation, MEAN if generation == "tidied" else large)
    found = read(file)
    assert found.model == {"net": net, "batch_norm": False} | GEOMETRY
    assert found.source == "MatConvNet's net"
    assert found.preprocessing == PREPROCESSING["paper"] | {"mean": list(MEAN)}
    again = VGG(architecture(**found.model)).eval()
    again.load_state_dict(found.weights)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    with torch.inference_mode():
        assert torch.equal(again(images), original(images))


def test_known_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.mat"
    save(file, layers_of(built("A")))
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights._KNOWN, digest, "imagenet-vgg-verydeep-11.mat")
    assert read(file).source == "MatConvNet's net, imagenet-vgg-verydeep-11.mat"


def test_these_tests_distinguish_every_axis() -> None:
    """Swapped rows and columns, BGR instead of RGB, or another order in fc6 change the scores."""
    net = built("D")
    conv, fc6 = (net.named_layers()[name].weight.detach() for name in ("conv1_1", "fc6"))  # type: ignore[operator, union-attr]
    assert not torch.equal(conv, conv.transpose(2, 3))
    assert not torch.equal(conv, conv.flip(1))
    assert not torch.equal(fc6, fc6.unflatten(1, (-1, 2, 2)).transpose(2, 3).flatten(1))


def test_a_net_of_a_single_class(tmp_path: Path) -> None:
    """MATLAB drops trailing axes of length 1."""
    original, file = built("A", classes=1), tmp_path / "one.mat"
    layers = layers_of(original)
    kernel = next(layer for layer in layers if layer["name"] == "fc8")["weights"]
    kernel[0, 0] = kernel[0, 0][..., 0]
    save(file, layers)
    assert torch.equal(read(file).weights["classifier.6.weight"], original.state_dict()["classifier.6.weight"])


@pytest.mark.parametrize("average", [[0.0, 0.0], np.empty((0, 0))])
def test_without_a_mean_it_is_the_papers(tmp_path: Path, average: Any) -> None:
    file = tmp_path / "net.mat"
    save(file, layers_of(built("A")), average=average)
    assert read(file).preprocessing == PREPROCESSING["paper"]


def test_a_mean_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.mat"
    save(file, layers_of(built("A")), average=np.random.default_rng(0).random((4, 4, 3)))
    assert "averageImage is not constant" in mistake_of(file)


def test_mistakes_are_one_line_errors(tmp_path: Path) -> None:
    file, net = tmp_path / "net.mat", built("D")
    save(file, layers_of(net))
    assert "are not of net E" in mistake_of(file, net="E")
    save(file, layers_of(net)[2:])
    assert "its layers match no net of Table 1: conv1_2" in mistake_of(file)
    twice = layers_of(net)
    twice[2] = dict(twice[0])
    save(file, twice)
    assert "layer 'conv1_1' occurs twice" in mistake_of(file)
    flat = layers_of(net)
    flat[0]["weights"][0, 0] = np.zeros((1, 5))
    save(file, flat)
    mistake_of(file)
    savemat(file, {"params": np.zeros(3)})
    assert "only MatConvNet's SimpleNN form is supported" in mistake_of(file)
    savemat(file, {"layers": "text"})
    mistake_of(file)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_truncated_files_are_one_line_errors(tmp_path: Path, share: float) -> None:
    file = tmp_path / "net.mat"
    save(file, layers_of(built("A")))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    mistake_of(file)


def net_or_refusal(file: Path) -> Imported | str:
    try:
        return read(file)
    except UserError as refused:
        return str(refused)


def same_net(first: Imported, second: Imported) -> bool:
    weights = first.weights.items()
    return (first.model, first.classes) == (second.model, second.classes) and all(
        torch.equal(tensor, second.weights[name]) for name, tensor in weights
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_are_one_line_errors(tmp_path: Path, compressed: bool) -> None:
    """Damage to compressed variables is detected, except for unused bits at the end of a stream.

    Uncompressed ones have no checksum: a weight may have changed.
    """
    file, random = tmp_path / "net.mat", np.random.default_rng(0)
    save(file, layers_of(built("A")), compressed=compressed)
    content, undamaged = file.read_bytes(), read(file)
    for where in [*range(128, 160), *random.integers(128, len(content), 50), *random.integers(128, 4000, 100)]:
        damaged = bytearray(content)
        damaged[where] ^= 1 << random.integers(8)
        file.write_bytes(bytes(damaged))
        found = net_or_refusal(file)
        if isinstance(found, str):
            assert "\n" not in found
        else:
            assert not compressed or same_net(found, undamaged)
