"""Small data sets of Appendix B, and nets that compute features."""

from pathlib import Path

import numpy as np
import torch
from nets import tiny_vgg, with_biases
from PIL import Image

from vggrepro.models.weights import PREPROCESSING, write
from vggrepro.pipeline.weights import import_weights

CLASSES = ("ant", "bee", "cat")
SIDES = ((37, 37), (37, 50), (37, 37))
"""Height and width of images; none is resampled at Q = 37."""
ACTIONS = ("jumping", "running")


def noise(file: Path, colour: int, seed: list[int], size: tuple[int, int]) -> None:
    """Writes an image of noise with one of three tints, which a classifier usually recognises."""
    pixels = np.random.default_rng(seed).integers(0, 200, (*size, 3))
    pixels[..., colour % 3] += seed[-1] * 5
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=95)


def class_folders(root: Path, count: int = 9) -> Path:
    """Writes images of three classes."""
    for label, name in enumerate(CLASSES):
        for number in range(count):
            noise(root / name / f"{number}.png", label, [label, number], SIDES[number % 3])
    return root


def voc2007(root: Path) -> Path:
    """Writes a devkit with VOC 2007: 6 training, 4 validation and 8 test images; one of them is difficult."""
    top, number = root / "VOC2007", 0
    for part, count in (("train", 6), ("val", 4), ("test", 8)):
        images = [f"{number + offset:06d}" for offset in range(1, count + 1)]
        number += count
        for place, name in enumerate(("cat", "dog")):
            labels = [0 if (part, n, place) == ("test", 2, 0) else 1 if n % 2 == place else -1 for n in range(count)]
            put(top / f"ImageSets/Main/{name}_{part}.txt", images, labels)
        put(top / f"ImageSets/Main/{part}.txt", images)
        for n, image in enumerate(images):
            noise(top / f"JPEGImages/{image}.jpg", n % 2, [7, int(image)], SIDES[n % 3])
    return root


def voc2012_action(root: Path) -> Path:
    """Writes a devkit with VOC 2012's actions: two persons in each of 5, 4 and 3 images, the last without labels."""
    top, number = root / "VOC2012", 0
    for part, count in (("train", 5), ("val", 4), ("test", 3)):
        images = [f"2010_{number + offset:06d}" for offset in range(1, count + 1)]
        number += count
        keys = [f"{image} {person}" for image in images for person in (1, 2)]
        put(top / f"ImageSets/Action/{part}.txt", keys)
        for place, action in enumerate(ACTIONS if part != "test" else ()):
            put(
                top / f"ImageSets/Action/{action}_{part}.txt",
                keys,
                [1 if n % 2 == place else -1 for n, _ in enumerate(keys)],
            )
        for n, image in enumerate(images):
            noise(top / f"JPEGImages/{image}.jpg", n, [12, n], (40, 60))
            persons = "".join(
                f"<object><name>person</name><bndbox><xmin>{1 + 28 * p}</xmin><ymin>{1 + n}</ymin>"
                f"<xmax>{30 + 28 * p}</xmax><ymax>{38 + n % 3}</ymax></bndbox></object>"
                for p in (0, 1)
            )
            xml = top / f"Annotations/{image}.xml"
            xml.parent.mkdir(exist_ok=True)
            xml.write_text(f"<annotation><filename>{image}.jpg</filename>{persons}</annotation>")
    return root


def put(file: Path, keys: list[str], labels: list[int] | None = None) -> None:
    """Writes an image set of VOC with or without labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = keys if labels is None else [f"{key} {label:2d}" for key, label in zip(keys, labels, strict=True)]
    file.write_text("\n".join(lines) + "\n")


def imported_net(run: Path, net: str = "D", *, seed: int = 0, **options: object) -> Path:
    """Creates the run directory of a tiny net like `weights import`."""
    built = with_biases(tiny_vgg(net, seed=seed, classes=3, **options), seed)
    model = {"net": net, "classes": 3, "crop": 32, "width": 0.0625} | options
    file = run.with_name(f"{run.name}.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, built.state_dict(), model=model, preprocessing=PREPROCESSING["paper"], classes=None)
    import_weights(file, run)
    return run


def plainly(net_state: dict, images: list[np.ndarray], net: str = "D") -> np.ndarray:
    """Computes fc7 after ReLU, averaged over positions and mirroring, without our code, shape (n, units)."""
    import torch.nn.functional as F

    mean = torch.tensor(PREPROCESSING["paper"]["mean"])
    built = tiny_vgg(net, classes=3)
    built.load_state_dict(net_state)
    rows = []
    with torch.inference_mode():
        for pixels in images:
            image = (torch.from_numpy(pixels.copy()).float() - mean).permute(2, 0, 1)[None]
            seen = []
            for shown in (image, image.flip(3)):
                maps = built.features(shown)  # fc6 is 1x1 at a crop of 32
                places = maps.flatten(2).transpose(1, 2)
                fc6, fc7 = built.classifier[0], built.classifier[3]
                seen.append(
                    F.relu(F.linear(F.relu(F.linear(places, fc6.weight, fc6.bias)), fc7.weight, fc7.bias)).mean(1)
                )
            rows.append(torch.stack(seen).mean(0)[0])
    return torch.stack(rows).numpy()
