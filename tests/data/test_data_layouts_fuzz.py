"""Random trees of files, read by the index and by an independent slow reader.

An accepted tree has the labels that the slow reader finds; a refused tree gives an error in one line, never a
traceback.
"""

import io
import os
import random
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import open_index, scan
from vggrepro.data.loading.loader import Loader
from vggrepro.data.views import centre
from vggrepro.errors import UserError

SUFFIXES = (".JPEG", ".jpg", ".JPG", ".png", ".jpeg", ".bmp", ".TIFF")
CLASSES = {
    "wnids": [f"n{number:08}" for number in (2, 10, 1, 99999999)],
    "words": ["cat", "a dog", "Ärger", "tench, Tinca", "x.y", "images2"],
    "numbers": [str(number) for number in range(12)],
}
SPLIT_NAMES = {"train", "val", "validation", "valid"}
LABEL_FILES = ("val_labels.txt", "val.txt", "meta/val.txt", "l.csv", "some list.txt", "val_annotations.txt", "a.tsv")
FORMS = ("{name} {label}", "{name}\t{label}", "{name},{label}", "val/{name} {label}", '"{name}","{label}"')
HIDDEN = ("._{name}", ".ipynb_checkpoints/{name}", "__MACOSX/{name}", ".{name}", "@eaDir/{name}")
OTHER_FILES = ("README.txt", "notes.md", "Thumbs.db", "x.JPEG.bak", "x.jpg~", "wnids.txt", "model.pth", "JPEG")


def picture(number: int, suffix: str) -> bytes:
    """Builds a small unique image."""
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "tiff": "TIFF"}.get(suffix[1:].lower(), "PNG")
    Image.new("RGB", (9 + number % 7, 8 + number // 7), (number * 5 % 256, 3, 200)).save(buffer, kind)
    return buffer.getvalue()


class RandomTree:
    """A tree on disk that resembles a known layout, with deliberate disturbances."""

    def __init__(self, draw: random.Random, root: Path) -> None:
        self.draw, self.root, self.number = draw, root, 0
        names = draw.choice(list(CLASSES))
        self.classes = draw.sample(CLASSES[names], draw.randint(2, min(4, len(CLASSES[names]))))
        self.with_train = draw.random() < 0.7
        self.val = draw.choice(["val", "val", "val", "validation", "Valid"])
        self.labels: list[tuple[str, str]] = []
        self.flat = draw.choice(["", "", "images", "folder"]) if draw.random() < 0.6 else None
        inner = draw.choice(["", "", "images"])
        if self.with_train:
            for name in self.classes:
                self.images(f"train/{name}/{inner}", 1)
        for name in self.classes:
            if self.flat is None:
                self.images(f"{self.val}/{name}/{inner}", draw.randint(1, 2))
            else:
                for image in self.images(f"{self.val}/{self.flat}", draw.randint(1, 2)):
                    self.labels.append((image, name))
        if self.labels:
            self.label_file()
        for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
            self.disturb()

    def path(self, *parts: str) -> Path:
        file = self.root.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def images(self, folder: str, n: int) -> list[str]:
        names = []
        for _ in range(n):
            self.number += 1
            suffix = self.draw.choice(SUFFIXES)
            stem = self.draw.choice(["image_{}", "a b {}", "x.y{}", "ILSVRC2012_val_{:08}", "é{}"]).format(self.number)
            self.path(folder, stem + suffix).write_bytes(picture(self.number, suffix))
            names.append(stem + suffix)
        return names

    def label_file(self) -> None:
        rows = list(self.labels)
        self.draw.shuffle(rows)
        numbered = self.draw.random() < 0.4
        ordered = sorted(self.classes)
        form = self.draw.choice(FORMS)
        lines = [
            form.format(name=name, label=ordered.index(of) if numbered else of)
            for name, of in rows
            # a comma in a name needs a quoting format
            if "," not in of or numbered or form != "{name},{label}"
        ]
        if self.draw.random() < 0.15:
            self.spoil(lines)
        if "," in form and self.draw.random() < 0.5:
            lines.insert(0, "filename,label")
        text = self.draw.choice(["\n", "\r\n"]).join(lines) + self.draw.choice(["", "\n", "\n\n"])
        name = self.draw.choice(LABEL_FILES)
        where = self.draw.choice(["", self.val, f"{self.val}/{self.flat}"])
        self.path(where, name).write_text(self.draw.choice(["", "\ufeff"]) + text)

    def spoil(self, lines: list[str]) -> None:
        match self.draw.randrange(5):
            case 0:
                lines.pop()
            case 1:
                name = self.labels[0][0]
                lines += [f"{name} {self.classes[0]}", f"{name} {self.classes[1]}"]
            case 2:
                lines[0] = lines[0] + "\t7\t8"
            case 3:
                lines[0] = self.draw.choice(["\x00\x01", "-1", "x" * 5000, ",,,,", "²", '"'])
            case 4:
                lines.append("gone.JPEG " + self.draw.choice(["-5", "0", "1000000", "cat", "²", "0x1"]))

    def disturb(self) -> None:
        draw = self.draw
        folders = [Path(folder).relative_to(self.root) for folder, _, _ in os.walk(self.root)]
        folder = str(draw.choice(folders))
        match draw.randrange(12):
            case 0 | 1 | 2:
                self.number += 1
                hidden = draw.choice(HIDDEN).format(name=f"image_{self.number}.JPEG")
                self.path(folder, hidden).write_bytes(draw.choice([b"\0\5", picture(self.number, ".JPEG")]))
            case 3:
                self.path(folder, draw.choice(OTHER_FILES)).write_text("a b c\n\nd e\n")
            case 4:
                self.images(folder, 1)
            case 5:
                self.path(folder, draw.choice(["empty", ".empty", "0", "test"])).mkdir(exist_ok=True)
            case 6:
                target = draw.choice(["nowhere", "loop", "..", "../..", "."])
                link = self.path(folder, draw.choice(["loop", "loop.JPEG", "link.png"]))
                if not os.path.lexists(link):
                    link.symlink_to(target)
            case 7:
                if files := sorted(Path(self.root, folder).glob("*.png")):
                    self.path(folder, f"linked_{len(files)}.png").symlink_to(draw.choice(files).name)
            case 8:
                pipe = self.path(folder, "pipe.png")
                if not os.path.lexists(pipe):
                    os.mkfifo(pipe)
            case 9:
                self.path(folder, "locked").mkdir(exist_ok=True)
            case 10:
                name = os.fsdecode(draw.choice([b"gru\xe9.JPEG", b"\xff\xfe.png", "é\n.png".encode(), b"\\ '$.jpg"]))
                self.number += 1
                self.path(folder, name).write_bytes(picture(self.number, Path(name).suffix))
            case 11:
                bad = draw.choice([b"", b"\xff\xd8\xff"])
                self.path(folder, draw.choice(["bad.JPEG", "bad.png"])).write_bytes(bad)


def slow_reader(root: Path, in_tar: bool) -> tuple[dict[bytes, str], int]:
    """Reads a tree by walking: (class by an image's bytes, number of images without a class).

    Classes are names, or `label 3` if nothing names classes; an unlabelled image has a class that does not
    exist.
    """
    images: dict[str, list[tuple[str, ...]]] = {"train": [], "val": []}
    aside = 0
    lines: list[str] = []
    for folder, _, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        hidden = any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in parts)
        for name in files:
            file = Path(folder, name)
            split = "train" if parts[:1] == ("train",) else "val"
            if name.endswith((".txt", ".csv", ".tsv")) and not hidden and name not in OTHER_FILES:
                lines += file.read_text(encoding="utf-8-sig").splitlines()
            elif not re.search(r"\.(jpe?g|png|bmp|tiff?)$", name, re.IGNORECASE):
                pass
            elif hidden or name.startswith(".") or not parts or parts[0].lower() not in SPLIT_NAMES:
                aside += 1
            elif file.is_file() and not (in_tar and file.is_symlink()):
                images[split].append((*parts, name))
    train = {parts[1] for parts in images["train"] if len(parts) > 2}
    folders = {parts[1] for parts in images["val"] if len(parts) > 2}
    lone = len(folders) == 1 and not any(re.fullmatch(r"n\d{8}", name) for name in folders)
    as_classes = {"train": True, "val": bool(folders & train) if train else not lone and bool(folders)}
    known: dict[bytes, str] = {}
    for split, found in images.items():
        direct = {parts[:-1] for parts in found}
        for parts in found:
            deep = parts[2:-1]
            below = len(parts) > 2 and (not deep or (deep == ("images",) and parts[:2] not in direct))
            if as_classes[split] and below:
                known[root.joinpath(*parts).read_bytes()] = parts[1]
            elif as_classes[split] or deep:
                aside += 1
            else:
                known[root.joinpath(*parts).read_bytes()] = labelled(parts[-1], lines, train)
    return known, aside


def labelled(name: str, lines: Sequence[str], train: set[str]) -> str:
    """Finds the class of an image in lines of labels."""
    found = set()
    for line in lines:
        if match := re.match(rf'"?(?:val/)?{re.escape(name)}"?[\s,]+(.*)', line):
            found.add(match[1].strip().strip('"'))
    if len(found) != 1:
        return f"{len(found)} labels of {name}"
    label = found.pop()
    if not label.isdecimal() or label in train:
        return label
    return dict(enumerate(sorted(train))).get(int(label), label) if train else f"label {int(label)}"


pytestmark = pytest.mark.usefixtures("inspected_in_process")


@pytest.fixture(autouse=True)
def _locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes folders called `locked` unreadable, even for root."""
    scandir = os.scandir

    def locked(place: object = ".") -> Iterator[os.DirEntry[str]]:
        if str(place).endswith("/locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)  # type: ignore[type-var, return-value]

    monkeypatch.setattr(os, "scandir", locked)


def as_tar(root: Path, to: Path, top: str) -> Path:
    with tarfile.open(to, "w", dereference=False) as tar:
        tar.add(root, top)
    return to


def accepted(source: Path, draw: random.Random, cache: Path) -> Index | None:
    try:
        if source.is_file() or draw.random() < 0.5:
            return scan([source], "header")
        return open_index(str(source), None, cache, lambda done, total: None)
    except UserError as error:
        message = str(error)
    assert message.isprintable(), message
    assert len(message) > 30, message
    return None


def validated(index: Index) -> Iterator[tuple[bytes, int]]:
    """Lists (bytes, label) of the images that a first validation reads."""
    split = index.split("val")
    if not len(split):
        return
    loader = Loader("torchvision", (0.0, 0.0, 0.0), 1, torch.device("cpu"), readers=1)
    every = np.arange(len(split))
    for batch in loader.render(split, [centre(every, split.size, 32, 32)]):
        assert batch.images.isfinite().all()
        for row, label in zip(batch.views.image.tolist(), batch.labels.tolist(), strict=True):
            yield split.read(row), label


def check(seed: int, place: Path) -> str:
    """Classifies a random tree: refused, labelled, or ambiguous to the slow reader."""
    draw = random.Random(seed)
    root = place / "tree"
    RandomTree(draw, root)
    in_tar = draw.random() < 0.4
    source = as_tar(root, place / "all.tar", draw.choice([".", "data"])) if in_tar else root
    index = accepted(source, draw, place / "cache")
    if index is None:
        return "refused"
    expected, aside = slow_reader(root, in_tar)
    found = {}
    for split in (index.split("train"), index.split("val")):
        for image in range(len(split)):
            found[split.read(image)] = int(split.label[image])
    for content, label in found.items():
        name = index.classes[label]
        assert content in expected, f"seed {seed}: an image that is none was accepted as {name}"
        wanted = expected[content]
        assert wanted in (name, f"label {label}"), f"seed {seed}: {name}, {wanted}"
    rejected = sum(index.split(split).rejected for split in ("train", "val"))
    lost = len(expected.keys() - found.keys())
    assert lost <= rejected or index.notes, f"seed {seed}: {lost} images are lost without a word"
    assert not aside or index.notes or rejected, f"seed {seed}: {aside} images left out without a word"
    for content, label in validated(index):
        assert label == found[content], f"seed {seed}"
    return "labelled"


def sweep(seeds: range, place: Path) -> dict[str, int]:
    became = {"refused": 0, "labelled": 0}
    for seed in seeds:
        became[check(seed, place / str(seed))] += 1
        shutil.rmtree(place / str(seed))
    return became


def test_random_trees(tmp_path: Path) -> None:
    became = sweep(range(150), tmp_path)
    assert became["labelled"] > 60, became
    assert became["refused"] > 20, became


@pytest.mark.slow
def test_two_thousand_random_trees(tmp_path: Path) -> None:
    became = sweep(range(1000, 3000), tmp_path)
    assert became["labelled"] > 800, became
