"""Evaluations of torchvision and timm have our numbers if they see the same pixels."""

import io
import shutil
import tarfile
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import tiny_vgg, with_biases
from PIL import Image
from programs import Command, rank_variables
from tiny import set_words
from torchvision import models, transforms

import vggrepro
from vggrepro.config.settings import Config, Data, Localisation, Model, Run
from vggrepro.data.images.scan import scan, scan_folder
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, Preprocessing, write
from vggrepro.pipeline.crosscheck import Crosscheck, crosscheck, external_name, torchvision_evaluation
from vggrepro.pipeline.weights import export_weights, import_weights
from vggrepro.storage import checkpoint

CLASSES = ["n01", "n02", "n03"]
HERE = (
    *("run.device=cpu", "evaluation.batch=8", "tracking.mlflow=false"),
    *("data.backend=torchvision", "data.workers=1", "data.processes=0"),
)
GEOMETRY: dict[str, Any] = {"net": "B", "classes": 3, "crop": 32, "width": 0.0625}


@cache
def opinionated(preprocessing: Preprocessing = "torchvision") -> VGG:
    """Makes a net whose scores have mean 0 and standard deviation 2 on plain images in the range of a preprocessing."""
    net, random = with_biases(tiny_vgg(**GEOMETRY)), torch.Generator().manual_seed(0)
    colours, grain = (torch.randn(64, 3, side, side, generator=random) for side in (1, 32))
    fc8 = net.named_layers()["fc8"]
    assert isinstance(fc8, torch.nn.Linear)
    with torch.no_grad():
        scores = net((colours + grain / 2) * (70 if preprocessing == "paper" else 1)).double()
        fc8.weight *= 2 / scores.std(dim=0)[:, None]
        fc8.bias.copy_(2 * (fc8.bias - scores.mean(dim=0)) / scores.std(dim=0))
    return net


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a net with torchvision's normalisation."""
    folder = tmp_path_factory.mktemp("made")
    weights, run = folder / "B.safetensors", folder / "runs" / "mine" / "B"
    write(
        weights, opinionated().state_dict(), model=GEOMETRY, preprocessing=PREPROCESSING["torchvision"], classes=CLASSES
    )
    import_weights(weights, run)
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """Copy of the original run directory."""
    return Path(shutil.copytree(original, tmp_path / "runs" / "mine" / "B"))


def on(index: Path, run: Path, *changes: str, limit: int | None = None) -> Crosscheck:
    return crosscheck(run, limit, [*HERE, f"data.index={index}", *changes])


def posteriors(result: Crosscheck) -> list[np.ndarray]:
    return [row.scored.values for row in result.rows]


def test_each_packages_errors_match_its_evaluation(run: Path, index_file: Path, images: Path, command: Command) -> None:
    here = set_words(*HERE, f"data.index={index_file}")
    result = command.json("crosscheck", run, *here)
    dense, centre, torchvisions, timms = result["evaluations"]
    assert (result["n"], result["of"], result["timm"]) == (12, 12, metadata.version("timm"))
    assert [row["module"] for row in result["evaluations"]] == ["ours"] * 4, "neither has so narrow a net"
    assert torchvisions["preprocessing"] == "resize 37, centre crop 32, bilinear"
    assert timms["preprocessing"] == "crop_pct 0.875, centre crop 32, bilinear", "which makes it 36"
    for row, words in ((dense, ()), (centre, ("--method", "centre", "--scales", 37))):
        evaluated = command.json("evaluate", run, *words, *here)
        for name in ("top1_error", "top5_error", "interval_top1", "interval_top5", "n"):
            assert row[name] == evaluated[name]

    their_way = transforms.Compose(
        [
            transforms.Resize(37),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    folder = sorted((images / "val").rglob("*.JPEG"))
    with torch.inference_mode():
        expected = opinionated()(torch.stack([their_way(Image.open(file)) for file in folder])).softmax(dim=1).numpy()
    values = posteriors(on(index_file, run))
    assert np.abs(values[2] - expected).max() < 2e-5
    assert expected.std(axis=0).min() > 0.01
    wrong = int((expected.argmax(axis=1) != np.repeat([0, 1, 2], 4)).sum())
    assert torchvisions["top1_error"] == pytest.approx(100 * wrong / 12)
    assert torchvisions["other_answers"] == (expected.argmax(axis=1) != values[1].argmax(axis=1)).sum()
    assert torchvisions["largest_difference"] == pytest.approx(np.abs(expected - values[1]).max(), abs=2e-5)
    assert (centre["other_answers"], centre["largest_difference"]) == (None, None)


def test_the_output_is_a_table(run: Path, index_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("crosscheck", run, "--limit", 5, "--quiet", *set_words(*HERE, f"data.index={index_file}"))
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| ours, dense", "| ours, centre", "| torchvision", "| timm"]
    assert "on 5 of 12 validation images" in out

    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    without = command(*words)[1].splitlines()
    assert without[-1] == "timm is not installed, so its row is left out; run: pip install 'vggrepro[timm]'"
    assert [line for line in without if line.startswith("| ")] == rows[:-1]


@pytest.mark.parametrize("preprocessing", ["paper", "torchvision"])
def test_square_images_have_equal_pixels_in_all_evaluations(preprocessing: Preprocessing, tmp_path: Path) -> None:
    """All evaluations crop the same window, so that only arithmetic differs; timm uses a different scale."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        for side in (37, 50, 74, 111):
            file = tmp_path / "images" / "val" / name / f"{side}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(file)
    index, weights = tmp_path / "mine.idx", tmp_path / "B.safetensors"
    scan_folder(tmp_path / "images").save(index)
    normalisation = PREPROCESSING[preprocessing]
    write(
        weights, opinionated(preprocessing).state_dict(), model=GEOMETRY, preprocessing=normalisation, classes=CLASSES
    )
    run = tmp_path / "runs" / "mine" / "B"
    import_weights(weights, run)
    report = on(index, run).report()["evaluations"]
    assert report[2]["largest_difference"] < 1e-4
    assert report[2]["other_answers"] == 0
    assert report[3]["largest_difference"] > 1e-4, "36 px, not 37"
    assert report[0]["largest_difference"] > 1e-4, "the whole image, not its middle"


def test_limited_images_are_evenly_spaced_and_not_stored(run: Path, index_file: Path) -> None:
    some = on(index_file, run, limit=4)
    assert not (run / "posteriors").exists()
    every = on(index_file, run)
    assert len(list((run / "posteriors").glob("*.npz"))) == 2
    for part, of_all in zip(posteriors(some), posteriors(every), strict=True):
        assert np.abs(part - of_all[[0, 3, 7, 11]]).max() < 2e-5
    stored = on(index_file, run, limit=4)
    np.testing.assert_array_equal(posteriors(stored)[1], posteriors(every)[1][[0, 3, 7, 11]])
    assert on(index_file, run, limit=99).report()["n"] == 12


def test_images_in_archives(run: Path, index_file: Path, images: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(images, ".")
    index = tmp_path / "archive.idx"
    scan([archive], "header").save(index)
    for packed, plain in zip(posteriors(on(index, run)), posteriors(on(index_file, run)), strict=True):
        np.testing.assert_array_equal(packed, plain)


def test_mistakes(run: Path, images: Path, tmp_path: Path, command: Command) -> None:
    here = set_words(*HERE)
    assert "data.root is not set" in command.mistake("crosscheck", run, *here, "-q")
    gone = set_words(f"data.root={tmp_path / 'gone'}")
    assert "gone does not exist; give a folder" in command.mistake("crosscheck", run, *here, *gone, "-q")
    assert "is not a run directory" in command.mistake("crosscheck", tmp_path, *here)
    assert "--limit" in command.mistake("crosscheck", run, *here, "--limit", 0)
    with pytest.MonkeyPatch.context() as patched:
        for name, text in rank_variables(0, 2, 1).items():
            patched.setenv(name, text)
        assert "works on one rank, not 2; start it without torchrun" in command.mistake("crosscheck", run, *here)
    boxes = Config(model=Model(**GEOMETRY), data=Data(S=37), localisation=Localisation(), run=Run(parent="B"))
    stored = checkpoint.load(run / "checkpoints" / "final.pt")
    other = tmp_path / "runs" / "mine" / "boxes.pt"
    checkpoint.save(replace(stored, config=boxes.model_dump(mode="json")), other)
    assert "predicts boxes, which torchvision and timm do not" in command.mistake("crosscheck", other, *here)
    copied, index = Path(shutil.copytree(images, tmp_path / "images")), tmp_path / "mine.idx"
    scan_folder(copied).save(index)
    on(index, run)  # ours is stored: they look at the images alone
    file = copied / "val" / "n02" / "n02_1.JPEG"
    pixels = io.BytesIO()
    Image.new("RGB", (20, 30)).save(pixels, "JPEG")
    file.write_bytes(pixels.getvalue().ljust(file.stat().st_size, b"\0"))
    on_index = [*here, *set_words(f"data.index={index}")]
    line = command.mistake("crosscheck", run, *on_index, "--limit", 12, "-q")
    assert f"{file} is bad since it was indexed" in line
    assert "error rates need every image" in line
    file.unlink()
    assert "make the index again" in command.mistake("crosscheck", run, *on_index, "-q")


def test_torchvision_loads_an_exported_net(run: Path, tmp_path: Path) -> None:
    """torchvision's own class, made as narrow as the net, takes the file strictly and gives the same scores."""
    (file,) = export_weights(run, tmp_path / "B.pth")
    channels = [layer.shape[0] if layer.kind == "conv" else "M" for layer in opinionated().architecture.layers()[:-3]]
    theirs = models.VGG(models.vgg.make_layers(channels), num_classes=3, init_weights=False)
    theirs.avgpool = torch.nn.AdaptiveAvgPool2d(1)  # of a crop of 32
    theirs.classifier[0], theirs.classifier[3] = torch.nn.Linear(32, 256), torch.nn.Linear(256, 256)
    theirs.classifier[6] = torch.nn.Linear(256, 3)
    theirs.load_state_dict(torch.load(file, weights_only=True), strict=True)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected, result = opinionated()(images), theirs.eval()(images)
    assert expected.std() > 0.1
    assert (result - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("net", "options", "name"),
    [("A", {}, "vgg11"), ("D", {"batch_norm": True}, "vgg16_bn"), ("C", {}, None), ("A-LRN", {}, None)],
)
def test_other_packages_use_their_modules_if_they_have_the_net(
    original: Path, net: str, options: dict[str, Any], name: str | None
) -> None:
    """Compares names and shapes at full size."""
    with torch.device("meta"):
        weights = VGG(architecture(net, classes=7, **options)).state_dict()
    stored = checkpoint.load(original / "checkpoints" / "final.pt")
    config = Config(model=Model(net=net, classes=7, **options)).model_dump(mode="json")
    full = replace(stored, weights=weights, config=config)
    assert external_name(full.stage.model) == name
    if name is None:
        return
    result = torchvision_evaluation(full)
    assert result.module_name == f"torchvision's {name}"
    assert type(result.module) is models.VGG
    assert {key: tensor.shape for key, tensor in result.module.state_dict().items()} == {
        key: tensor.shape for key, tensor in weights.items()
    }


@pytest.mark.slow
def test_full_size_modules_of_other_packages(index_file: Path, tmp_path: Path, command: Command) -> None:
    """Only pixels differ for a net of the paper's size in torchvision's and timm's code."""
    net = vggrepro.vgg("A", classes=3, init="kaiming").eval()
    weights, run = tmp_path / "A.safetensors", tmp_path / "runs" / "mine" / "A"
    model = {"net": "A", "classes": 3, "crop": 224, "width": 1.0}
    write(weights, net.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=CLASSES)
    import_weights(weights, run)
    result = on(index_file, run, limit=6)
    rows = result.report()["evaluations"]
    assert [row["module"] for row in rows] == ["ours", "ours", "torchvision's vgg11", "timm's vgg11"]
    *_, torchvisions, timms = posteriors(result)
    assert np.abs(torchvisions - timms).max() < 1e-5, "both resize to 256 and cut out 224"
    assert torchvisions.std(axis=0).min() > 0.01
