"""ONNX files in ONNX Runtime: the plain and the dense form give the scores of our nets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import GEOMETRY, tiny_vgg

from vggrepro.errors import UserError
from vggrepro.models import onnx
from vggrepro.models.dense import class_scores, score_map
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, write


def exported(file: Path, model: dict[str, Any], *, dense: bool) -> tuple[VGG, Any]:
    """A net, and ONNX Runtime's session of its file."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = tiny_vgg(seed=1, **model)
    names = list("abcdefg")
    write(file, net.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=names, dense=dense)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name], "one file, with the weights in it"
    return net, runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 60


NETS = [
    {"net": "D", "blocks": 3, "crop": 56},
    {"net": "A-LRN"},
    {"net": "custom", "layers": [["conv3-64", "LRN"], ["conv5-99", "conv1-64"]], "batch_norm": True, "crop": 32},
    pytest.param({"net": "C"}, marks=pytest.mark.slow),
    pytest.param({"net": "A", "batch_norm": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("model", NETS, ids=["D", "A-LRN", "custom", "C", "A"])
def test_the_dense_form_takes_images_of_any_size(tmp_path: Path, model: dict[str, Any]) -> None:
    net, session = exported(tmp_path / "net.onnx", GEOMETRY | model, dense=True)
    crop = net.architecture.crop
    for shape in [(1, 3, crop, crop), (3, 3, crop, 200), (2, 3, 97, 131), (1, 3, 333, crop + 1)]:
        images = pixels(*shape)
        scores, scores_at_places = (
            torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
        )
        with torch.inference_mode():
            expected = class_scores(net, images)
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores_at_places, score_map(net, images), rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.005


@pytest.mark.parametrize("model", NETS[:2], ids=lambda model: model["net"])
def test_the_plain_form_gives_the_same_scores(tmp_path: Path, model: dict[str, Any]) -> None:
    net, session = exported(tmp_path / "net.onnx", GEOMETRY | model, dense=False)
    for n in (1, 5):
        images = pixels(n, 3, net.architecture.crop, net.architecture.crop)
        (scores,) = (torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()}))
        with torch.inference_mode():
            expected = net(images)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.005


@pytest.mark.parametrize("dense", [False, True])
def test_the_file_describes_the_net(tmp_path: Path, dense: bool) -> None:
    _, session = exported(tmp_path / "net.onnx", {"net": "A"} | GEOMETRY, dense=dense)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["form"] == ("dense" if dense else "crop")
    assert json.loads(metadata["model"]) == {"net": "A"} | GEOMETRY
    assert json.loads(metadata["preprocessing"]) == PREPROCESSING["paper"]
    assert json.loads(metadata["classes"]) == list("abcdefg")
    size = ["height", "width"] if dense else [64, 64]
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("images", ["batch", 3, *size])]
    assert [value.name for value in session.get_outputs()] == ["scores", "score_map"][: 1 + dense]


def test_missing_packages_are_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    net = tiny_vgg("A", **GEOMETRY)
    model, preprocessing = {"net": "A"} | GEOMETRY, PREPROCESSING["paper"]
    with pytest.raises(UserError, match=r"^ONNX export needs onnx and onnxscript; install with: pip install [a-z ]+$"):
        write(tmp_path / "net.onnx", net.state_dict(), model=model, preprocessing=preprocessing, classes=None)
    assert not list(tmp_path.iterdir())


def test_a_net_that_is_too_large_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"too many for an ONNX file; export it as .safetensors"):
        onnx.to_onnx(tiny_vgg("A", **GEOMETRY), {}, dense=False)
