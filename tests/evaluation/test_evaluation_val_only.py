"""Validation images without training images: enough to test a net, also on some of its classes, but not to train."""

from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import caffe_model
from evaluation_nets import SETTINGS, tiny_net
from PIL import Image
from programs import Command
from tiny import set_words

from vggrepro.data.images.index import load
from vggrepro.paper import ilsvrc_classes

IMAGES = 1300
PRESENT = sorted(np.random.default_rng(0).permutation(1000)[:725].tolist())
"""Classes of which there are images."""


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 1,300 images of 725 of ILSVRC's classes, with lines `image wnid`."""
    root = tmp_path_factory.mktemp("validation")
    random = np.random.default_rng(1)
    (root / "val").mkdir()
    lines = []
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        name = f"ILSVRC2012_val_{7 * number + 1:08d}.JPEG"
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(root / "val" / name)
        lines.append(f"{name} {ilsvrc_classes()[PRESENT[number % len(PRESENT)]]}\n")
    (root / "val_labels.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of 1000 classes without names, like the authors' and torchvision's."""
    file = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(tiny_net(classes=1000).state_dict(), file)
    return file


def test_a_net_of_1000_classes_on_images_of_725(
    command: Command, validation: Path, weights: Path, tmp_path: Path
) -> None:
    net, part, complete = tmp_path / "imported" / "A", tmp_path / "part.idx", tmp_path / "whole.idx"
    command.json("weights", "import", weights, "--out", net)
    found = command.json("index", validation, "--out", part, "--verify", "header")
    assert (found["classes"], found["splits"]) == (725, {"train": 0, "val": IMAGES})
    here = set_words(*SETTINGS, f"run.root={tmp_path}")
    evaluate = ("evaluate", net, "--scales", "36", *here)
    assert "model.classes=1000, but" in command.mistake(*evaluate, "--set", f"data.index={part}")

    found = command.json("index", validation, "--out", complete, "--verify", "header", "--classes", "ilsvrc2012")
    assert (found["classes"], found["splits"]) == (1000, {"train": 0, "val": IMAGES})
    measured = command.json(*evaluate, "--set", f"data.index={complete}")
    assert measured["n"] == IMAGES

    # the same by hand: every image through the net, the label its class's place among all 1000
    split, plain = load(complete).split("val"), tiny_net(classes=1000)
    labels = dict(line.split() for line in (validation / "val_labels.txt").read_text().splitlines())
    mean = 255 * torch.tensor([0.485, 0.456, 0.406])
    std = 255 * torch.tensor([0.229, 0.224, 0.225])
    top1, top5 = [], []
    for name in split.names.to_pylist():
        pixels = torch.from_numpy(np.array(Image.open(validation / "val" / name)))
        image = ((pixels - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():  # 36 x 40 px: a map of one place, so the top left crop is all it sees
            views = [plain(view[:, :, :32, :32]).softmax(1) for view in (image, image.flip(3))]
        guesses = sum(views)[0].topk(5).indices.tolist()  # type: ignore[index]
        label = ilsvrc_classes().index(labels[name])
        top1.append(label != guesses[0])
        top5.append(label not in guesses)
    assert measured["top1_error"] == pytest.approx(100 * np.mean(top1))
    assert measured["top5_error"] == pytest.approx(100 * np.mean(top5))


def test_the_error_of_a_net_that_always_predicts_ten(command: Command, tmp_path: Path) -> None:
    """Sorted as text, 10 comes before 2, and the error would be 95.45 % instead of 50 %."""
    net = tiny_net(classes=12)
    with torch.no_grad():
        net.classifier[6].weight.zero_()
        net.classifier[6].bias.copy_(torch.eye(12)[10])
    torch.save(net.state_dict(), tmp_path / "net.pth")
    command.json("weights", "import", tmp_path / "net.pth", "--out", tmp_path / "imported" / "A")
    (tmp_path / "data" / "val").mkdir(parents=True)
    numbers = [10] * 11 + [11, *range(10)]
    for image, _ in enumerate(numbers):
        Image.new("RGB", (40, 36), (image, 9, 9)).save(tmp_path / "data" / "val" / f"image_{image}.png")
    lines = [f"image_{image}.png {number}\n" for image, number in enumerate(numbers)]
    (tmp_path / "data" / "val_labels.txt").write_text("".join(lines))
    here = set_words(*SETTINGS, f"run.root={tmp_path}", f"data.root={tmp_path / 'data'}")
    measured = command.json("evaluate", tmp_path / "imported" / "A", "--scales", "36", *here)
    assert (measured["n"], measured["top1_error"]) == (22, 50.0)


def test_commands_without_training_images(command: Command, validation: Path, weights: Path, tmp_path: Path) -> None:
    index = tmp_path / "val.idx"
    command.json("index", validation, "--out", index, "--verify", "header", "--classes", "ilsvrc2012")
    here = set_words(*SETTINGS, f"run.root={tmp_path}", f"data.index={index}")
    nets = [tmp_path / "imported" / name for name in ("one", "two")]
    other = tmp_path / "other.pth"
    torch.save(tiny_net(1, classes=1000).state_dict(), other)
    for net, file in zip(nets, (weights, other), strict=True):
        command.json("weights", "import", file, "--out", net)
        command.json("evaluate", net, "--scales", "37", "--method", "centre", *here)
    compared = command.json("compare", *nets)
    assert compared["paired"][0]["n"] == IMAGES
    names = [Path(entry["file"]).name for entry in compared["disagreements"]]
    assert names, "the nets differ somewhere"
    assert set(names) <= {file.name for file in (validation / "val").iterdir()}

    geometry = ["model.classes=1000", "model.crop=32", "model.width=0.0625", "data.S=40"]
    timed = command.json(
        "bench", "dense", "--net", "A", "--scales", "36", "--images", "8", "--rounds", "1",
        *here, *set_words(*geometry),
    )  # fmt: skip
    assert timed["details"]["images"] == 8

    _, out, _ = command("doctor", "--config", "configs/vgg_A.yaml", *here)
    assert "training images" in out
    assert f"{index} has none" in out


def test_verify_paper_on_validation_images_only(command: Command, validation: Path, tmp_path: Path) -> None:
    caffe = tmp_path / "D.caffemodel"
    caffe.write_bytes(caffe_model(tiny_net(net="D", classes=1000), "V1LayerParameter").SerializeToString())
    few = tmp_path / "few"
    (few / "val").mkdir(parents=True)
    for file in sorted((validation / "val").iterdir())[:3]:
        (few / "val" / file.name).symlink_to(file)
    (few / "val_labels.txt").write_text((validation / "val_labels.txt").read_text())
    index = tmp_path / "few.idx"
    command.json("index", few, "--out", index, "--classes", "ilsvrc2012")
    found = command.json(
        "verify-paper", "--index", index, "--weights-16", caffe, "--runs", tmp_path / "verify",
        *set_words(*SETTINGS, f"run.root={tmp_path}"),
    )  # fmt: skip
    assert found["n"] == 3
    assert len(found["rows"]) == 5


@pytest.mark.parametrize(
    "verb",
    [
        ("train", "--config", "configs/vgg_A.yaml"),
        ("reproduce", "--config", "configs/vgg_A.yaml"),
        ("plan", "--config", "configs/vgg_A.yaml", "--nodes", "1"),
    ],
)
def test_training_needs_training_images(
    command: Command, validation: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    index = tmp_path / "val.idx"
    command.json("index", validation, "--out", index, "--verify", "header", "--classes", "ilsvrc2012")
    geometry = ["model.crop=32", "model.width=0.0625", "data.S=40"]
    message = command.mistake(*verb, *set_words(*SETTINGS, f"run.root={tmp_path}", f"data.index={index}", *geometry))
    assert "has no training images, only validation images: enough for `vggrepro evaluate`" in message
    assert not (tmp_path / "vgg" / "A").exists(), "nothing was begun"
