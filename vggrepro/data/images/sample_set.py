"""The built-in sample set: real handwritten digits of random size and position on textured, coloured backgrounds.

It is made on first use, deterministically, as JPEG files in ImageNet's layout with boxes.tsv. Images have shorter sides
of 80 to 160 px and digits of very different sizes, so that S and Q matter as in the paper.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vggrepro.progress import progress

ROOT = "builtin:digits"
TRAIN_IMAGES, VAL_IMAGES = 8000, 3000
_VERSION = 2  # increases when the images change, so that an old set is not used

Box = tuple[int, int, int, int]  # first and last pixel of a digit, inclusive: left, top, right, bottom
_INK = (1 / (1 + np.exp(-14 * (np.arange(256) / 255 - 0.45)))).astype(np.float32)
"""Fraction of ink by grey level: a soft threshold that gives clean edges at any size."""


def ensure(folder: Path) -> Path:
    """Makes the sample set in `folder` unless it exists: 8,000 + 3,000 images, classes "0" to "9", with boxes."""
    path = folder / f"digits-v{_VERSION}"
    if path.is_dir():
        return path
    work = folder / f".digits-v{_VERSION}.{os.getpid()}"
    rows = ["file\txmin\tymin\txmax\tymax"]
    with progress("making digits", TRAIN_IMAGES + VAL_IMAGES) as update:
        for name, image, box in _images():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(work / name, "JPEG", quality=90)
            rows.append("\t".join(map(str, (name, *box))))
            update(len(rows) - 1, "")
    (work / "boxes.tsv").write_text("\n".join(rows) + "\n")
    try:
        work.replace(path)
    except OSError:  # another process was first
        shutil.rmtree(work)
    return path


def _images() -> Iterator[tuple[str, Image.Image, Box]]:
    """Yields path, image, and box of the digit; the splits show different originals (1,797 scans by 43 writers)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, labels = digits.images, digits.target
    validation = len(scans) // 5
    for split, count, first, last in (
        ("train", TRAIN_IMAGES, validation, len(scans)),
        ("val", VAL_IMAGES, 0, validation),
    ):
        for number in range(count):
            random = np.random.default_rng([_VERSION, first, number])
            original = first + number % (last - first)
            image, box = _draw(np.pad(scans[original], 1) / 16.0, random)
            yield f"{split}/{labels[original]}/{split}_{number:05d}.JPEG", image, box


def _draw(scan: NDArray[np.float64], random: np.random.Generator) -> tuple[Image.Image, Box]:
    """Enlarges a scan in [0, 1] and pastes it on a background; returns the image and the box around its ink."""
    short = int(random.integers(80, 161))
    long = int(short * random.uniform(1.0, 1.5))
    height, width = (short, long) if random.random() < 0.5 else (long, short)
    background = _texture(height, width, random)
    side = int(short * random.uniform(0.4, 0.95))
    stroke = Image.fromarray((scan * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    ink = _INK[np.asarray(stroke)]
    top = int(random.integers(0, height - side + 1))
    left = int(random.integers(0, width - side + 1))
    region = background[top : top + side, left : left + side]
    colour = random.uniform(0, 255, 3).astype(np.float32)
    if np.abs(colour.mean() - region.mean()) < 70:  # keep digits legible, on the lighter or darker side at random
        colour = colour * 0.3 + (0 if region.mean() > 127 else 178)
    background[top : top + side, left : left + side] = region * (1 - ink[..., None]) + colour * ink[..., None]
    rows, columns = np.nonzero(ink > 0.5)
    box = (left + int(columns.min()), top + int(rows.min()), left + int(columns.max()), top + int(rows.max()))
    return Image.fromarray(background.clip(0, 255).astype(np.uint8)), box


def _texture(height: int, width: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Draws smooth colour blotches with some grain, in grey levels, shape (height, width, 3)."""
    coarse = random.integers(256, size=(*random.integers(2, 6, 2), 3), dtype=np.uint8)
    blotches = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.fromarray(random.integers(256, size=(height, width), dtype=np.uint8))
    grain = grain.filter(ImageFilter.GaussianBlur(float(random.uniform(0.5, 2.5))))
    tint, depth = random.uniform(0, 255, 3).astype(np.float32), np.float32(random.uniform(0.2, 0.8))
    mixed = np.float32(0.5) * np.asarray(blotches, np.float32) + np.float32(0.5) * tint
    return mixed + (np.asarray(grain, np.float32)[..., None] - 127) * depth
