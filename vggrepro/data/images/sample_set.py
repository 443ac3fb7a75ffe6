"""The built-in sample set: real handwritten digits at random size and place on textured, coloured backgrounds.

Made on the spot, deterministic, without network, as JPEG files in ImageNet's layout, with the box of each digit in
boxes.tsv. Images have shorter sides of 80 to 160 px and digits of very different sizes, so that S and Q matter as they
do in the paper.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vggrepro.files import replacing

ROOT = "builtin:digits"
TRAIN_IMAGES, VAL_IMAGES = 2000, 500
_VERSION = 1  # counts up when the images change, so that an old set is not taken for the new one
_BOXES = "boxes.tsv"

Box = tuple[int, int, int, int]


def ensure(folder: Path) -> Path:
    """The sample set under `folder`, made if it is not there: 2,000 + 500 images, classes "0" to "9", and their boxes.

    Images of the two splits show different originals (scikit-learn's digits: 1,797 scans from 43 writers).
    """
    done = folder / f"digits-v{_VERSION}"
    if done.is_dir():
        if not (done / _BOXES).exists():  # made before there were boxes
            with suppress(OSError), replacing(done / _BOXES) as temporary:  # it may be another's, to be read only
                temporary.write_text(_table((name, box) for name, _, box in _images()))
        return done
    work = folder / f".digits-v{_VERSION}.{os.getpid()}"
    boxes = []
    for name, image, box in _images():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(work / name, "JPEG", quality=90)
        boxes.append((name, box))
    (work / _BOXES).write_text(_table(boxes))
    try:
        work.replace(done)
    except OSError:  # another process was first
        shutil.rmtree(work)
    return done


def _table(boxes: Iterable[tuple[str, Box]]) -> str:
    """What boxes.tsv says: the first and the last pixel of each digit, both included."""
    rows = ["file\txmin\tymin\txmax\tymax", *("\t".join(map(str, (name, *box))) for name, box in boxes)]
    return "\n".join(rows) + "\n"


def _images() -> Iterator[tuple[str, Image.Image, Box]]:
    """Every image under its name below the folder, with the box of its digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, labels = digits.images, digits.target
    held_out = len(scans) // 5
    for split, count, first, last in (("train", TRAIN_IMAGES, held_out, len(scans)), ("val", VAL_IMAGES, 0, held_out)):
        for number in range(count):
            random = np.random.default_rng([_VERSION, first, number])
            original = first + number % (last - first)
            image, box = _draw(np.pad(scans[original], 1) / 16.0, random)
            yield f"{split}/{labels[original]}/{split}_{number:05d}.JPEG", image, box


def _draw(scan: NDArray[np.float64], random: np.random.Generator) -> tuple[Image.Image, Box]:
    """One image: a scan in [0, 1] enlarged, inked and pasted on a background; and where more than half of it is ink."""
    short = int(random.integers(80, 161))
    long = int(short * random.uniform(1.0, 1.5))
    height, width = (short, long) if random.random() < 0.5 else (long, short)
    background = _texture(height, width, random)
    side = int(short * random.uniform(0.4, 0.95))
    # smoothed enlargement, then a soft threshold: strokes with clean edges at any size
    stroke = Image.fromarray((scan * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    ink = 1 / (1 + np.exp(-(np.asarray(stroke, np.float64) / 255 - 0.45) * 14))
    top = int(random.integers(0, height - side + 1))
    left = int(random.integers(0, width - side + 1))
    region = background[top : top + side, left : left + side]
    colour = random.uniform(0, 255, 3)
    if np.abs(colour.mean() - region.mean()) < 70:  # keep digits legible, on the lighter or darker side at random
        colour = colour * 0.3 + (0 if region.mean() > 127 else 178)
    background[top : top + side, left : left + side] = region * (1 - ink[..., None]) + colour * ink[..., None]
    rows, columns = np.nonzero(ink > 0.5)
    box = (left + int(columns.min()), top + int(rows.min()), left + int(columns.max()), top + int(rows.max()))
    return Image.fromarray(background.clip(0, 255).astype(np.uint8)), box


def _texture(height: int, width: int, random: np.random.Generator) -> NDArray[np.float64]:
    """(height, width, 3) smooth colour blotches with some grain, in grey levels."""
    coarse = random.uniform(0, 255, (int(random.integers(2, 6)), int(random.integers(2, 6)), 3)).astype(np.uint8)
    blotches = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.fromarray(random.uniform(0, 255, (height, width)).astype(np.uint8))
    grain = grain.filter(ImageFilter.GaussianBlur(float(random.uniform(0.5, 2.5))))
    tint = random.uniform(0, 255, 3)
    mixed = 0.5 * np.asarray(blotches, np.float64) + 0.5 * tint
    return mixed + (np.asarray(grain, np.float64)[..., None] - 127) * random.uniform(0.2, 0.8)
