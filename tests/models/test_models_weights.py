"""Weight files: Caffe models written through the published schema, torchvision's, safetensors, and hostile ones."""

import hashlib
import io
import json
import os
import pickle
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from caffe_files import caffe_model, messages
from nets import GEOMETRY, tiny_vgg
from programs import Command
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


def test_caffe_gradients_are_ignored(tmp_path: Path) -> None:
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
    assert mistake_of(file).endswith("its layers match no net of Table 1: conv1, fc6); give another file")


def test_the_oldest_generation_is_named(tmp_path: Path) -> None:
    file = tmp_path / "old.caffemodel"
    model = messages()["NetParameter"]()
    model.layers.add().layer.name = "conv1_1"
    file.write_bytes(model.SerializeToString())
    assert "Caffe's upgrade tool" in mistake_of(file)


def test_a_blob_that_contradicts_its_shape(tmp_path: Path) -> None:
    file = tmp_path / "net.caffemodel"
    model = caffe_model(built("A"), "LayerParameter")
    model.layer[0].blobs[0].shape.dim[0] = 2**40
    file.write_bytes(model.SerializeToString())
    assert "a blob of shape [1099511627776, 3, 3, 3] holds 108 numbers" in mistake_of(file)


def mistake_of(file: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(file, **options)
    text = str(refused.value)
    assert text.startswith(f"weights {file} ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["caffemodel", "pth", "safetensors"])
def test_truncated_files_are_one_line_errors(tmp_path: Path, kind: str, share: float) -> None:
    file, net = tmp_path / f"net.{kind}", built("A")
    if kind == "caffemodel":
        file.write_bytes(caffe_model(net, "LayerParameter").SerializeToString())
    else:
        write(file, net.state_dict(), model={"net": "A"} | GEOMETRY, preprocessing=PREPROCESSING["paper"], classes=None)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    mistake_of(file)


def test_a_changed_weight_is_a_one_line_error(tmp_path: Path) -> None:
    """Torch.load alone would accept it."""
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    assert "checksum of" in mistake_of(file)


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
    assert mistake_of(file).endswith("which are not executed); give another file")
    assert not witness.exists()
    # The witness would have told: loaded the other way, it is executed.
    pickle.loads(file.read_bytes()) if form == "bare" else torch.load(file, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is empty"),
        (b"\x89HDF\r\n\x1a\n rest", "not supported; convert it to .safetensors or .pth"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "not supported; convert it to .safetensors or .pth"),
        (b"MATLAB 5.0 MAT-file", "cannot be read"),
        (b"<html>404</html>" * 10, "cannot be read"),
        (bytes(range(256)) * 9, "cannot be read"),
        (b"\x12\x00", "no layer with weights"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "is truncated"),
    ],
)
def test_files_of_no_format(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "net.bin"
    file.write_bytes(content)
    assert text in mistake_of(file)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in mistake_of(tmp_path / "none.pth")


@pytest.mark.parametrize(("net", "name"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_of_torch(tmp_path: Path, net: str, name: str, batch_norm: bool, zipped: bool) -> None:
    """Torchvision's files have the older form without zip."""
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


@pytest.mark.parametrize("net", ["A", "A-LRN", "B", "C", "D", "E"])
def test_a_state_dict_of_the_first_blocks(tmp_path: Path, net: str) -> None:
    """The names determine the number of blocks, and fc6's 7x7 the crop."""
    model = {"net": net, "blocks": 3, "classes": 7, "crop": 56, "width": 0.0625}
    original, file = built(**model), tmp_path / "net.pth"
    write(file, original.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
    assert read(file).model == {"batch_norm": False} | model
    again = tmp_path / "net.safetensors"
    write(again, original.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
    assert read(again).model == model
    assert read(again, net=net).weights.keys() == original.state_dict().keys()


def test_fewer_blocks_are_reported_if_only_shapes_show_them(tmp_path: Path) -> None:
    """A file that has lost its last block may look like a net of four."""
    model = {"net": "D", "classes": 7, "crop": 64, "width": 0.0625}
    state, file = built(**model).state_dict(), tmp_path / "net.pth"
    torch.save(state, file)
    assert "first" not in read(file).source
    torch.save(
        {
            key: tensor
            for key, tensor in state.items()
            if not key.startswith(("features.24", "features.26", "features.28"))
        },
        file,
    )
    found = read(file)
    assert (found.model["blocks"], found.model["crop"]) == (4, 32)
    assert found.source.endswith(", of the first 4 blocks of D alone")


def test_convolutions_of_the_first_blocks_only(tmp_path: Path) -> None:
    net, file = tiny_vgg("C", blocks=3, crop=56, fully_connected=False), tmp_path / "net.pth"
    torch.save(net.state_dict(), file)
    found = read(file).model
    assert (found["net"], found["blocks"], found["crop"], found["fully_connected"]) == ("C", 3, 56, False)


def test_the_nearest_net_has_as_many_blocks(tmp_path: Path) -> None:
    state, file = built("D", blocks=3, crop=56, classes=7, width=0.0625).state_dict(), tmp_path / "net.pth"
    state["classifier.0.weight"] = state["classifier.0.weight"][:, :-16]
    torch.save(state, file)
    assert "nearest is D of 3 blocks: classifier.0.weight is" in mistake_of(file)


@pytest.mark.parametrize("blocks", [1, 2])
def test_nets_with_ambiguous_shapes_are_refused(tmp_path: Path, blocks: int) -> None:
    """With one block A-LRN has A's tensors, with two B to E are one net."""
    torch.save(built("A-LRN", blocks=blocks, crop=14 * blocks).state_dict(), file := tmp_path / "net.pth")
    assert "match no net of Table 1" in mistake_of(file)


@pytest.mark.parametrize("digits", [8, 64])
def test_known_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read(file).source == "state dict of torch"
    monkeypatch.setitem(weights._KNOWN, digest[:digits], "somebody's vgg11")
    found = read(file)
    assert (found.source, found.sha256) == ("state dict of torch, somebody's vgg11", digest)


def test_preprocessing_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save(built("A").state_dict(), file)
    assert read(file, preprocessing="paper").preprocessing == PREPROCESSING["paper"]


def test_the_wrong_net_is_a_one_line_error(tmp_path: Path) -> None:
    file, state = tmp_path / "net.pth", built("D").state_dict()
    torch.save(state, file)
    assert "are not of net E: features.16.weight is" in mistake_of(file, net="E")
    torch.save(state | {"classifier.0.weight": state["classifier.0.weight"][:, :-1]}, file)
    assert "match no net of Table 1; nearest is D" in mistake_of(file)
    torch.save(state | {"extra": torch.zeros(1)}, file)
    assert "extra is unexpected" in mistake_of(file)
    torch.save(state | {"two\nlines": torch.zeros(1)}, file)
    assert r"named 'two\nlines'" in mistake_of(file)
    torch.save({key: tensor for key, tensor in state.items() if key != "features.2.bias"}, file)
    assert "features.2.bias is missing" in mistake_of(file)
    torch.save(torchvision.models.squeezenet1_0().state_dict(), file)
    assert "no conv1_1, fc6 and fc8" in mistake_of(file)
    torch.save([1, 2], file)
    assert "hold no state dict (list); give what torch.save(net.state_dict(), FILE) writes" in mistake_of(file)
    torch.save({}, file)
    assert "hold no net with features.0.weight (nothing); give another file" in mistake_of(file)


class AttributeDict(dict[str, Any]):
    """A subclass of dict, like the hyper-parameters of Lightning and the settings of many trainers."""


def halved(net: VGG) -> VGG:
    """Returns an imitation of an averaged copy, with other weights in half precision."""
    copied = deepcopy(net)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.div_(2)
    return copied.half()


def renamed(net: VGG, name: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {name(key): tensor for key, tensor in net.state_dict().items()}


def trained(net: VGG) -> dict[str, Any]:
    """Returns the states of an optimizer with momentum and of its schedule."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    return {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}


def imagenet_example(net: VGG) -> dict[str, Any]:
    """Returns a checkpoint of examples/imagenet/main.py, which wraps only the convolutions of VGGs."""
    wrapped = deepcopy(net)
    wrapped.features = torch.nn.DataParallel(wrapped.features)  # type: ignore[assignment]
    content = {"epoch": 90, "arch": "vgg16", "state_dict": wrapped.state_dict(), "best_acc1": torch.tensor(71.6)}
    return content | trained(net)


def lightning(net: VGG) -> dict[str, Any]:
    states = trained(net)
    return {
        "epoch": 73,
        "global_step": 370000,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": renamed(net, "model._orig_mod.{}".format)
        | {"criterion.weight": torch.ones(7), "accuracy.tp": torch.zeros(7)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 74}}}},
        "callbacks": {"ModelCheckpoint": {"monitor": "val", "dirpath": Path("runs"), "best": np.float64(0.7)}},
        "optimizer_states": [states["optimizer"]],
        "lr_schedulers": [states["lr_scheduler"]],
        "hyper_parameters": AttributeDict(lr=0.01, others=defaultdict(list, a=[1]), crop=np.arange(3)),
    }


def torchvisions_references(net: VGG) -> dict[str, Any]:
    averaged = torch.optim.swa_utils.AveragedModel(halved(net), use_buffers=True).state_dict()
    assert "n_averaged" in averaged
    arguments = Namespace(model="vgg16", device=torch.device("cuda"), ema=True)
    return {"model": net.state_dict(), "epoch": 89, "args": arguments, "model_ema": averaged} | trained(net)


def timms(net: VGG) -> dict[str, Any]:
    """Returns a checkpoint of timm, where the fully-connected layers of VGGs are convolutions."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    optimizer, file = torch.optim.SGD(net.parameters(), lr=0.01), io.BytesIO()
    saver = CheckpointSaver(net, optimizer, Namespace(model="vgg16", opt="sgd"), ModelEmaV3(halved(net)))
    saver._save(file, 299, np.float64(0.71))
    content = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    state = content["state_dict"]
    for layer, theirs, side in (("0", "pre_logits.fc1", 2), ("3", "pre_logits.fc2", 1), ("6", "head.fc", None)):
        weight, bias = (state.pop(f"classifier.{layer}.{part}") for part in ("weight", "bias"))
        shaped = weight.unflatten(1, (-1, side, side)) if side else weight
        state.update({f"{theirs}.weight": shaped, f"{theirs}.bias": bias})
    return content


@pytest.mark.parametrize(
    ("content", "account"),
    [
        (imagenet_example, ", state_dict of a checkpoint of epoch 90, arch vgg16, without `module.`"),
        (lambda net: torch.nn.DataParallel(net).state_dict(), ", without `module.`"),
        (lambda net: torch.compile(net).state_dict(), ", without `_orig_mod.`"),
        (lambda net: torch.nn.DataParallel(torch.compile(net)).state_dict(), ", without `module._orig_mod.`"),
        (lambda net: torch.compile(torch.nn.DataParallel(net)).state_dict(), ", without `_orig_mod.module.`"),
        (
            lambda net: renamed(net, lambda key: key.replace(".", "._orig_mod.module.", 1)),
            ", without `module.` and `_orig_mod.`",
        ),
        (
            lightning,
            ", state_dict of a checkpoint of epoch 73, without `model._orig_mod.`; left out: criterion.weight, "
            "accuracy.tp",
        ),
        (torchvisions_references, ", model of a checkpoint of epoch 89; not taken: model_ema (--key takes it)"),
        (timms, ", state_dict of a checkpoint of epoch 299, arch vgg16; not taken: state_dict_ema (--key takes it)"),
        (lambda net: {"state": {"model": net.state_dict()}}, ", state.model of a checkpoint"),
        (
            lambda net: (
                renamed(net, "net.{}".format) | renamed(halved(net), "teacher.{}".format) | {"step": torch.ones(())}
            ),
            ", net of a checkpoint, without `net.`; left out: step; not taken: teacher (--key takes it)",
        ),
        (
            lambda net: {"ema": {key: tensor.double() for key, tensor in net.state_dict().items()}},
            ", ema of a checkpoint",
        ),
        (lambda net: net.state_dict() | {"epoch": 3, "args": Namespace()}, ""),
        (lambda net: dict(net.named_parameters()) | dict(net.named_buffers()), ""),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_checkpoints_of_other_trainers(tmp_path: Path, content: Any, account: str, batch_norm: bool) -> None:
    original, file = built("D", batch_norm=batch_norm), tmp_path / "checkpoint.pth"
    torch.save(content(original), file)
    found = read(file)
    assert found.source == "state dict of torch" + account
    assert (found.model["net"], found.preprocessing) == ("D", PREPROCESSING["torchvision"])
    assert list(found.weights) == list(original.state_dict())
    for key, tensor in original.state_dict().items():
        assert torch.equal(found.weights[key], tensor)
        assert not found.weights[key].requires_grad


def test_safetensors_of_a_wrapped_net(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file, original = tmp_path / "model.safetensors", built("A")
    save_file(renamed(original, "_orig_mod.{}".format), file)
    found = read(file)
    assert found.source == "safetensors, without `_orig_mod.`"
    assert torch.equal(found.weights["classifier.6.bias"], original.state_dict()["classifier.6.bias"])


def test_a_net_is_chosen_by_key(tmp_path: Path, command: Command) -> None:
    file, net = tmp_path / "checkpoint.pth", built("A")
    copy = {key: tensor.bfloat16() for key, tensor in halved(net).state_dict().items()}
    torch.save({"model": net.state_dict(), "model_ema": {"module": copy}, "epoch": 1}, file)
    assert read(file).source.endswith("; not taken: model_ema.module (--key takes it)")
    found = command.json("weights", "import", file, "--out", tmp_path / "run", "--key", "model_ema.module")
    assert found["source"] == (
        "state dict of torch, model_ema.module of a checkpoint of epoch 1; not taken: model (--key takes it)"
    )
    averaged = read(file, key="model_ema.module").weights["features.0.weight"]
    assert torch.equal(averaged, copy["features.0.weight"].float())
    with pytest.raises(UserError, match=r"--key ema: weights .* hold the nets model, model_ema.module; choose one of"):
        read(file, key="ema")
    torch.save({"state_dict": renamed(net, "net.{}".format)}, file)
    with pytest.raises(UserError, match=r"--key net: weights .* hold the net state_dict; leave --key out"):
        read(file, key="net")
    file.write_bytes(caffe_model(built("D"), "LayerParameter").SerializeToString())
    with pytest.raises(UserError, match=r"--key net: weights .* hold a single net; leave --key out"):
        read(file, key="net")


def test_several_nets_are_named(tmp_path: Path) -> None:
    file, state = tmp_path / "checkpoint.pth", built("A").state_dict()
    torch.save({"best": state, "last": dict(state), "ema": dict(state)}, file)
    assert "hold several nets: best, last, ema; choose one with --key of `vggrepro weights import`" in mistake_of(file)
    torch.save({"ema": state, "swa": dict(state)}, file)
    assert "several nets: ema, swa; choose" in mistake_of(file)
    torch.save(state | {f"student.{key}": tensor for key, tensor in state.items()}, file)
    assert "several nets: ., student; choose" in mistake_of(file)
    assert read(file, key=".").source == "state dict of torch; not taken: student (--key takes it)"
    torch.save({f"net {n}\n": dict(state) for n in range(25)}, file)
    assert ": net 0?, net 1?, " in mistake_of(file)
    assert "net 19? and 5 more; choose" in mistake_of(file)
    torch.save({"model": state, "state_dict": state}, file)
    assert read(file).source == "state dict of torch, model of a checkpoint"


def test_without_a_net_the_contents_are_named(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    other = {"conv1.weight": torch.zeros(1), "conv1.bias": torch.zeros(1), "layers": 3}
    torch.save({"state_dict": other, "optimizer": {"state": {}}, "epoch": 3, "args": Namespace(lr=1)}, file)
    assert (
        "hold no net with features.0.weight (state_dict: 2 tensors, the first conv1.weight; optimizer: dict; epoch: 3; "
        "args: argparse.Namespace); give another file"
    ) in mistake_of(file)
    torch.save({"conv1.weight": torch.zeros(1), "name": "a\n" + "b" * 90}, file)
    assert "(1 tensor, the first conv1.weight; name: 'a\\nbbb" in mistake_of(file)
    torch.save(built("A"), file)
    assert "hold no state dict (vggrepro.models.vgg.VGG); give what" in mistake_of(file)
    torch.save({"model": built("A")}, file)
    assert "(model: vggrepro.models.vgg.VGG); give another file" in mistake_of(file)
    torch.save({"format": "vggrepro checkpoint 1"}, file)
    assert "are a checkpoint, which cannot be imported; `vggrepro evaluate` accepts it as it is" in mistake_of(file)


def test_recursive_dicts_terminate(tmp_path: Path) -> None:
    file, state = tmp_path / "checkpoint.pth", built("A").state_dict()
    content: dict[str, Any] = {"state_dict": state}
    content["again"] = {"again": content, "state_dict": state}
    torch.save(content, file)
    assert read(file).source == "state dict of torch, state_dict of a checkpoint"
    deep: dict[Any, Any] = dict(state)
    for level in range(200):
        deep = {level: deep, "next": deep}
    torch.save(deep, file)
    assert "hold no net with features.0.weight (199: dict; next: dict)" in mistake_of(file)


class Evaluating:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return eval, (f"__import__('pathlib').Path({str(self.witness)!r}).mkdir()",), {"a": 1}


PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "all": lambda state, hostile: hostile,
    "beside": lambda state, hostile: {"state_dict": state, "epoch": hostile},
    "before": lambda state, hostile: {"epoch": hostile, "state_dict": state},
    "key": lambda state, hostile: {"state_dict": state, hostile: 1},
    "list": lambda state, hostile: {"state_dict": state, "optimizer_states": [{"state": {0: (hostile,)}}]},
    "args": lambda state, hostile: {"state_dict": state, "args": Namespace(lr=[hostile])},
    "metric": lambda state, hostile: {"state_dict": state | {"loss": hostile}},
    "tensor": lambda state, hostile: {"state_dict": state | {"features.3.weight": hostile}},
    "first": lambda state, hostile: {"state_dict": state | {"features.0.weight": hostile}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", [Hostile, Evaluating])
def test_a_checkpoint_is_not_executed(tmp_path: Path, code: Any, place: str) -> None:
    file, witness, state = tmp_path / "net.pth", tmp_path / "executed", built("A").state_dict()
    torch.save(PLACES[place](state, code(witness)), file)
    before = set(torch.serialization.get_safe_globals())
    refusals = {"all": "no state dict (builtins.eval)", "first": "hold no net with", "tensor": "but builtins.eval"}
    if code is Hostile:  # torch itself takes nothing of os
        assert mistake_of(file).endswith("which are not executed); give another file")
    elif place in refusals:
        assert refusals[place] in mistake_of(file)
    else:
        assert torch.equal(read(file).weights["features.3.weight"], state["features.3.weight"])
    assert not witness.exists()
    assert set(torch.serialization.get_safe_globals()) == before, "no placeholder stays behind"
    # The witness works: loaded the other way, it is executed. What it returns takes no state.
    with suppress(Exception):
        torch.load(file, weights_only=False)
    assert witness.exists()


def test_checkpoints_of_the_older_form(tmp_path: Path) -> None:
    """Plain ones are read; others are refused, because torch cannot list the names they use."""
    file, content = tmp_path / "checkpoint.pth", imagenet_example(built("A"))
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert read(file).model["net"] == "A"
    torch.save(content | {"args": Namespace()}, file, _use_new_zipfile_serialization=False)
    assert mistake_of(file).endswith("which are not executed); give another file")


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: None,
    ],
)
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, odd: Any) -> None:
    file, state = tmp_path / "net.pth", built("A").state_dict()
    torch.save(state | {"classifier.3.weight": odd(state["classifier.3.weight"])}, file)
    assert "hold no plain tensor as classifier.3.weight but " in mistake_of(file)
    torch.save(state | {"module.classifier.3.weight": state["classifier.3.weight"]}, file)
    assert "hold two tensors named classifier.3.weight" in mistake_of(file)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """The classifier of torchvision's features-only file is like this."""
    file, state = tmp_path / "net.pth", built("A").state_dict()
    state["classifier.6.bias"] = torch.full((7,), torch.nan)
    torch.save(state, file)
    assert "classifier.6.bias has values that are not finite" in mistake_of(file)


def test_safetensors_carry_everything(tmp_path: Path) -> None:
    """This includes a custom net, which is not a column of Table 1."""
    model = {"net": "own", "layers": [["conv3-64", "LRN"], ["conv5-99"]], "dropout": 0.3} | GEOMETRY
    original, file = VGG(architecture(**model)), tmp_path / "net.safetensors"
    preprocessing = PREPROCESSING["paper"] | {"mean": [1.0, 2.0, 3.0]}
    names = list("abcdefg")
    write(file, original.state_dict(), model=model, preprocessing=preprocessing, classes=names)
    found = read(file)
    assert (found.model, found.preprocessing, found.classes) == (model, preprocessing, names)
    for key, tensor in original.state_dict().items():
        assert torch.equal(found.weights[key], tensor)


def test_safetensors_of_a_net_are_the_same_file_in_every_process(tmp_path: Path) -> None:
    """The library draws the order of the metadata: of twelve files some would differ with a chance of 1 - 2**-11."""
    original, made = built("A"), set()
    model = {"net": "A", "batch_norm": False} | GEOMETRY
    for number in range(12):
        file = tmp_path / f"{number}.safetensors"
        write(file, original.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
        made.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(made) == 1
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it, as any file"
    found = read(file)
    assert all(torch.equal(tensor, found.weights[name]) for name, tensor in original.state_dict().items())


def test_safetensors_whose_metadata_is_in_another_order_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    original, file = built("A"), tmp_path / "net.safetensors"
    described = {"model": {"net": "A", "batch_norm": False} | GEOMETRY, "preprocessing": PREPROCESSING["paper"]}
    orders = set()
    for _ in range(20):  # as versions before this wrote them
        metadata = {"format": "pt", "vggrepro": json.dumps(described | {"classes": None})}
        save_file(original.state_dict(), file, metadata=metadata)
        head = file.read_bytes()[:40]
        if head not in orders:
            orders.add(head)
            assert read(file).preprocessing == PREPROCESSING["paper"]
    assert len(orders) == 2


@pytest.mark.parametrize(
    "text",
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
def test_safetensors_with_odd_metadata(tmp_path: Path, text: Any) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "net.safetensors"
    save_file(built("A").state_dict(), file, metadata={"vggrepro": json.dumps(text)})
    mistake_of(file)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "onnx"])
def test_an_unwritable_file_is_a_one_line_error(tmp_path: Path, suffix: str) -> None:
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
    with pytest.raises(UserError, match=r"net.h5 must end in .safetensors, .pth or .onnx"):
        write(tmp_path / "net.h5", {}, model={}, preprocessing={}, classes=None)
    with pytest.raises(UserError, match=r"net.pth must end in .onnx"):
        write(tmp_path / "net.pth", {}, model={}, preprocessing={}, classes=None, dense=True)
    assert not list(tmp_path.iterdir())


def test_the_authors_real_convolutions() -> None:
    """The 13 BGR layers fit net D; with RGB input they give what the file's layers give with BGR."""
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
