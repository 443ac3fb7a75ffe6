"""The classes of validation images that lie flat, and lists of classes."""

import csv
import io
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vggrepro.errors import UserError, reason_of
from vggrepro.paper import ilsvrc_classes

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_LABEL_FILES = (
    "LOC_val_solution.csv",
    "meta.bin",
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_devkit_t12/data/" + _GROUND_TRUTH,
    "data/" + _GROUND_TRUTH,
    _GROUND_TRUTH,
    "imagenet_2012_validation_synset_labels.txt",
    "val_labels.txt",
    "val_labels.csv",
)
ILSVRC = "ilsvrc2012"
"""The name that stands for the 1000 classes of ILSVRC-2012 in place of a file that lists them."""
_LABELS_WANTED = (
    "ILSVRC2012_devkit_t12.tar.gz, meta.bin, LOC_val_solution.csv or a text file with a class for each image"
)


def listed_classes(class_list: str) -> tuple[str, ...]:
    """All classes of a list, sorted: wnids, of which a line may say more, or other names, one a line. Raises UserError.

    A development kit or another file with the labels of all validation images names them, too.
    """
    if class_list == ILSVRC:
        return ilsvrc_classes()
    file = Path(class_list)
    if not file.is_file():
        raise UserError(f"--classes {file} is not a file; give a list of all classes, one a line, or {ILSVRC}")
    if file.name.endswith(("gz", ".bin", ".csv")) or file.name == _GROUND_TRUTH:
        return tuple(sorted(set(_read_labels(file).values())))
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error}); give a text file, one class a line") from None
    names = [line.split()[0] if re.match(r"n\d{8}\s", line) else line for line in lines]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"--classes {file} names {twice[0]} twice; give each class once")
    if not names:
        raise UserError(f"--classes {file} is empty; give a list of all classes, one a line")
    return tuple(sorted(names))


def is_label_file(file: Path) -> bool:
    """Whether a file of this name holds labels, and no images."""
    return file.name.endswith((".bin", ".csv", ".txt")) or ("devkit" in file.name and file.name.endswith("gz"))


@dataclass
class Labels:
    """Classes of validation images, looked up when the first one is asked for."""

    given: Sequence[Path]
    sources: Sequence[Path]

    def __post_init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._file: Path | None = None

    def of(self, name: str, place: Path) -> str:
        """The class of an image that lies in or beside `place`. Raises UserError."""
        if self._file is None:
            self._file = self._search(place)
            self._classes = _read_labels(self._file)
        stem = PurePosixPath(name).stem
        known = self._classes.get(stem)
        if known is None and (number := re.search(r"(\d+)$", stem)):
            known = self._classes.get(str(int(number[1])))
        if known is None:
            raise UserError(f"{self._file} has no label for {name} ({len(self._classes)} labels); give the right file")
        return known

    def classes(self) -> set[str]:
        """All classes that a label file names: one that was needed, or else one that was given. Raises UserError."""
        if self._file is None and self.given:
            self._file = self.given[0]
            self._classes = _read_labels(self._file)
        return set(self._classes.values())

    def _search(self, place: Path) -> Path:
        beside = [place, *place.parents[:4], *(source if source.is_dir() else source.parent for source in self.sources)]
        for file in (*self.given, *(folder / name for folder in beside for name in _LABEL_FILES)):
            if file.is_file():
                return file
        raise UserError(
            f"labels of the validation images in {place} are missing; put {_LABELS_WANTED} beside them or name it"
        )


def _read_labels(file: Path) -> dict[str, str]:
    """Classes by the stem of an image's file name, or by its number (from 1)."""
    try:
        if file.name.endswith("gz"):
            return _devkit(file)
        if file.suffix == ".bin":
            from vggrepro.models.torch_file import read_torch  # loads torch

            _, wnids = read_torch(file)
            return {str(number): wnid for number, wnid in enumerate(wnids, 1)}
        if file.name == _GROUND_TRUTH:
            return _ground_truth(file.read_text(), (file.parent / "meta.mat").read_bytes())
        return _text(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file} needs {error.filename} beside it; copy both from the development kit") from None
    except UserError:
        raise
    except Exception as error:  # pickle, tar and MATLAB files break in many ways
        raise UserError(f"labels {file} cannot be read ({reason_of(error, 100)}); give another file") from None


def _devkit(file: Path) -> dict[str, str]:
    truth, meta = None, None
    with tarfile.open(file, "r:gz") as tar:
        for member in tar:
            if (stream := tar.extractfile(member)) and member.name.endswith(_GROUND_TRUTH):
                truth = stream.read().decode()
            elif stream and member.name.endswith("/meta.mat"):
                meta = stream.read()
    if truth is None or meta is None:
        raise UserError(f"{file} holds no {_GROUND_TRUTH} and meta.mat; give ILSVRC2012_devkit_t12.tar.gz")
    return _ground_truth(truth, meta)


def _ground_truth(truth: str, meta: bytes) -> dict[str, str]:
    """The development kit numbers classes in an order of its own; meta.mat says which number is which wnid."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    return {str(line): wnid[int(number)] for line, number in enumerate(truth.split(), 1)}


def _text(text: str) -> dict[str, str]:
    """`image class` on a line (Kaggle's CSV: `ImageId,PredictionString`), or the class alone, in order."""
    labels = {}
    rows = csv.reader(line.replace("\t", ",").replace(" ", ",") for line in text.splitlines() if line.strip())
    for number, row in enumerate(rows, 1):
        if row[0] != "ImageId":
            name, class_name = (str(number), row[0]) if len(row) == 1 else (PurePosixPath(row[0]).stem, row[1])
            labels[name] = class_name
    return labels
