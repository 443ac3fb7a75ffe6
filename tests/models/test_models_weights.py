"""Weight files: Caffe models written through the published schema, torchvision's, safetensors, and hostile ones."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from caffe_files import caffe_model, messages
from nets import GEOMETRY, tiny_vgg
from tiny import shared

from vggrepro.errors import UserError
from vggrepro.models import weights
from vggrepro.models.caffe import state_of
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, read, write


def built(net: str = "D", **options: Any) -> VGG:
    module = tiny_vgg(net, seed=1, **(GEOMETRY | options))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (tensor for tensor in module.state_dict().values() if tensor.is_floating_point()):
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
    return module


@pytest.mark.parametrize("generation", ["V1LayerParameter", "LayerParameter"])
@pytest.mark.parametrize("net", ["C", "D", "E"])
def test_caffe_models_of_both_generations(tmp_path: Path, net: str, generation: str) -> None:
    original, file = built(net), tmp_path / "net.caffemodel"
    file.write_bytes(caffe_model(original, generation).SerializeToString())
    found = read(file)
    assert found.model["net"] == net
    assert found.source == f"Caffe model ({generation})"
    assert found.preprocessing == PREPROCESSING["paper"]
    assert list(found.weights) == list(original.state_dict())
    again = VGG(architecture(**found.model)).eval()
    again.load_state_dict(found.weights)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    with torch.inference_mode():
        assert torch.equal(again(images), original(images)), "RGB in, the same scores out"


def test_caffe_numbers_of_double_precision(tmp_path: Path) -> None:
    original, file = built("A"), tmp_path / "net.caffemodel"
    file.write_bytes(caffe_model(original, "LayerParameter", numbers="double_data").SerializeToString())
    found = read(file)
    assert found.model["net"] == "A"
    for key, tensor in original.state_dict().items():
        assert torch.equal(found.weights[key], tensor)


def test_caffe_gradients_are_passed_over(tmp_path: Path) -> None:
    original, file = built("A"), tmp_path / "net.caffemodel"
    model = caffe_model(original, "V1LayerParameter")
    model.layers[0].blobs[1].diff.extend([1.0] * 4)
    file.write_bytes(model.SerializeToString())
    assert torch.equal(read(file).weights["features.0.bias"], original.state_dict()["features.0.bias"])


def test_a_net_of_another_name_is_named(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.caffemodel"
    model = messages()["NetParameter"](name="CaffeNet")
    for name in ("conv1", "fc6"):
        layer = model.layers.add(name=name)
        for _ in range(2):
            layer.blobs.add(num=1, channels=1, height=1, width=2, data=[1, 2])
    file.write_bytes(model.SerializeToString())
    assert one_line(file).endswith("its layers are of no net of Table 1: conv1, fc6); give another file")


def test_the_oldest_generation_is_named(tmp_path: Path) -> None:
    file = tmp_path / "old.caffemodel"
    model = messages()["NetParameter"]()
    model.layers.add().layer.name = "conv1_1"
    file.write_bytes(model.SerializeToString())
    assert "Caffe's upgrade tool" in one_line(file)


def test_a_blob_that_contradicts_its_shape(tmp_path: Path) -> None:
    file = tmp_path / "net.caffemodel"
    model = caffe_model(built("A"), "LayerParameter")
    model.layer[0].blobs[0].shape.dim[0] = 2**40
    file.write_bytes(model.SerializeToString())
    assert "a blob of shape [1099511627776, 3, 3, 3] holds 108 numbers" in one_line(file)


def one_line(file: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(file, **options)
    text = str(refused.value)
    assert text.startswith(f"weights {file} ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["caffemodel", "pth", "safetensors"])
def test_truncated_files_are_one_line(tmp_path: Path, kind: str, share: float) -> None:
    file, net = tmp_path / f"net.{kind}", built("A")
    if kind == "caffemodel":
        file.write_bytes(caffe_model(net, "LayerParameter").SerializeToString())
    else:
        write(file, net.state_dict(), model={"net": "A"} | GEOMETRY, preprocessing=PREPROCESSING["paper"], classes=None)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    one_line(file)


def test_a_changed_weight_is_one_line(tmp_path: Path) -> None:
    """torch.load alone would take it."""
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    assert "checksum of" in one_line(file)


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("form", ["bare", "torch", "legacy"])
def test_a_pickle_is_not_executed(tmp_path: Path, form: str) -> None:
    file, witness = tmp_path / "net.pth", tmp_path / "executed"
    hostile = {"features.0.weight": Hostile(witness)}
    if form == "bare":
        file.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, file, _use_new_zipfile_serialization=form == "torch")
    assert one_line(file).endswith("that is not executed); give another file")
    assert not witness.exists()
    # The witness would have told: loaded the other way, it is executed.
    pickle.loads(file.read_bytes()) if form == "bare" else torch.load(file, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\x89HDF\r\n\x1a\n rest", "not read here; convert it to .safetensors or .pth"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "not read here; convert it to .safetensors or .pth"),
        (b"MATLAB 5.0 MAT-file", "cannot be read"),
        (b"<html>404</html>" * 10, "cannot be read"),
        (bytes(range(256)) * 9, "cannot be read"),
        (b"\x12\x00", "no layer with weights"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends too early"),
    ],
)
def test_files_of_no_format(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "net.bin"
    file.write_bytes(content)
    assert said in one_line(file)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in one_line(tmp_path / "none.pth")


@pytest.mark.parametrize(("net", "name"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_of_torch(tmp_path: Path, net: str, name: str, batch_norm: bool, zipped: bool) -> None:
    """torchvision's own files are of the older, unzipped form."""
    original, file = built(net, batch_norm=batch_norm), tmp_path / f"{name}.pth"
    state = original.state_dict()
    if not zipped:  # nor do they count batches
        state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    found = read(file)
    assert found.model == {"net": net, "batch_norm": batch_norm} | GEOMETRY
    assert found.preprocessing["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert found.preprocessing["std"] == pytest.approx([58.395, 57.12, 57.375])
    VGG(architecture(**found.model)).load_state_dict(found.weights, strict=True)
    for key, tensor in state.items():
        assert torch.equal(found.weights[key], tensor)


@pytest.mark.parametrize("digits", [8, 64])
def test_known_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read(file).source == "state dict of torch"
    monkeypatch.setitem(weights._KNOWN, digest[:digits], "somebody's vgg11")
    found = read(file)
    assert (found.source, found.sha256) == ("state dict of torch, somebody's vgg11", digest)


def test_preprocessing_can_be_said(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    assert read(file, preprocessing="paper").preprocessing == PREPROCESSING["paper"]


def test_the_wrong_net_is_one_line(tmp_path: Path) -> None:
    file, state = tmp_path / "net.pth", built("D").state_dict()
    torch.save(state, file)
    assert "are not of net E: features.16.weight is" in one_line(file, net="E")
    torch.save(state | {"classifier.0.weight": state["classifier.0.weight"][:, :-1]}, file)
    assert "of no net of Table 1; nearest is D" in one_line(file)
    torch.save(state | {"extra": torch.zeros(1)}, file)
    assert "it has no extra" in one_line(file)
    torch.save(state | {"two\nlines": torch.zeros(1)}, file)
    assert r"called 'two\nlines'" in one_line(file)
    torch.save({key: tensor for key, tensor in state.items() if key != "features.2.bias"}, file)
    assert "features.2.bias is missing" in one_line(file)
    torch.save(torchvision.models.squeezenet1_0().state_dict(), file)
    assert "no conv1_1, fc6 and fc8" in one_line(file)
    torch.save([1, 2], file)
    assert "not a state dict" in one_line(file)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Such is the classifier of torchvision's features-only file."""
    file, state = tmp_path / "net.pth", built("A").state_dict()
    state["classifier.6.bias"] = torch.full((7,), torch.nan)
    torch.save(state, file)
    assert "classifier.6.bias holds numbers that are not finite" in one_line(file)


def test_safetensors_carry_everything(tmp_path: Path) -> None:
    """Also a net of one's own, which no column of Table 1 describes."""
    model = {"net": "own", "layers": [["conv3-64", "LRN"], ["conv5-99"]], "dropout": 0.3} | GEOMETRY
    original, file = VGG(architecture(**model)), tmp_path / "net.safetensors"
    preprocessing = PREPROCESSING["paper"] | {"mean": [1.0, 2.0, 3.0]}
    names = list("abcdefg")
    write(file, original.state_dict(), model=model, preprocessing=preprocessing, classes=names)
    found = read(file)
    assert (found.model, found.preprocessing, found.classes) == (model, preprocessing, names)
    for key, tensor in original.state_dict().items():
        assert torch.equal(found.weights[key], tensor)


@pytest.mark.parametrize(
    "said",
    [
        [1],
        {"model": {"net": "A"}},
        {"model": {"net": "A", "own": 1}, "preprocessing": PREPROCESSING["paper"], "classes": None},
        {"model": {"net": "A"}, "preprocessing": PREPROCESSING["paper"] | {"channels": "BGR"}, "classes": None},
        {"model": {"net": "A"}, "preprocessing": PREPROCESSING["paper"] | {"mean": [1.0]}, "classes": None},
        {"model": {"net": "A", "classes": 7}, "preprocessing": PREPROCESSING["paper"], "classes": ["one"]},
        {"model": {"net": "A", "crop": -5}, "preprocessing": PREPROCESSING["paper"], "classes": None},
    ],
)
def test_safetensors_that_say_odd_things_of_themselves(tmp_path: Path, said: Any) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "net.safetensors"
    save_file(built("A").state_dict(), file, metadata={"vggrepro": json.dumps(said)})
    one_line(file)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "onnx"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, suffix: str) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    (tmp_path / "none").touch()
    net, file = built("A"), tmp_path / "none" / f"net.{suffix}"
    model = {"net": "A"} | GEOMETRY
    with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another place") as refused:
        write(file, net.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
    assert "\n" not in str(refused.value)


def test_safetensors_of_others(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file, original = tmp_path / "net.safetensors", built("D")
    save_file({key: tensor.half() for key, tensor in original.state_dict().items()}, file)
    found = read(file)
    assert found.model["net"] == "D"
    assert found.preprocessing == PREPROCESSING["torchvision"]
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}


def test_pth_is_torchvisions(tmp_path: Path) -> None:
    file, original = tmp_path / "net.pth", built("D")
    write(file, original.state_dict(), model={"net": "D"}, preprocessing=PREPROCESSING["paper"], classes=None)
    state = torch.load(io.BytesIO(file.read_bytes()), weights_only=True)
    assert list(state) == list(torchvision.models.vgg16(init_weights=False).state_dict())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net.h5: nets are written as .safetensors, .pth or .onnx"):
        write(tmp_path / "net.h5", {}, model={}, preprocessing={}, classes=None)
    with pytest.raises(UserError, match=r"net.pth: only .onnx has a dense form"):
        write(tmp_path / "net.pth", {}, model={}, preprocessing={}, classes=None, dense=True)
    assert not list(tmp_path.iterdir())


def test_the_authors_real_convolutions() -> None:
    """13 layers, BGR, fit net D; for RGB input they answer what the file's own say to BGR."""
    with np.load(shared("vgg16_imagenet_conv_fp16.npz"), allow_pickle=False) as content:
        names = sorted({key.split(".")[0] for key in content})
        layers = {name: (content[f"{name}.weight"], content[f"{name}.bias"]) for name in names}
    net = VGG(architecture("D", classes=10, crop=32))
    state = state_of(layers, net.architecture)
    assert len(state) == 26
    assert not net.load_state_dict(state, strict=False).unexpected_keys
    bgr = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 60
    weight, bias = (torch.from_numpy(part.astype(np.float32)) for part in layers["conv1_1"])
    expected = torch.nn.functional.conv2d(bgr, weight, bias, padding=1)
    torch.testing.assert_close(net.features[0](bgr.flip(1)), expected, rtol=1e-3, atol=1e-3)
    assert (net.features[0](bgr) - expected).abs().max() > 1
