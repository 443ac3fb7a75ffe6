"""Where images are: archives as downloaded and folders of every common layout, told apart by looking.

Nothing is extracted: an uncompressed tar is a list of offsets, and so is a tar of tars.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vggrepro.errors import UserError
from vggrepro.paper import ilsvrc_classes

SPLITS = ("train", "val")
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_VAL_NAMES = ("val", "valid", "validation")
_NUMBER = "\0"  # marks a class that is the number of a WebDataset shard's .cls
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
_MD5 = {  # published beside the archives
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}
ILSVRC = "ilsvrc2012"
"""The name that stands for the 1000 classes of ILSVRC-2012 in place of a file that lists them."""
_LABELS_WANTED = (
    "ILSVRC2012_devkit_t12.tar.gz, meta.bin, LOC_val_solution.csv or a text file with a class for each image"
)


class Member(NamedTuple):
    """An image that was found."""

    split: str
    class_name: str
    container: str
    """The archive that holds it, or its folder."""
    name: str
    """File name without folders."""
    offset: int
    length: int
    archive: bool
    mtime_ns: int = 0
    """When a file of its own changed last."""


Count = Callable[[int], None]


def signature(sources: Sequence[Path]) -> str:
    """A hash (hex) that changes when an archive or an image in a folder is added, removed or written to.

    Archives are not opened. Raises as :func:`find`.
    """
    digest = hashlib.sha256()
    for file in (file for source in sources for file in _expanded(source)):
        digest.update(f"{file}\n".encode())
        if file.is_dir():
            for member in _in_folder(file, _Labels([], [file])):
                digest.update("\0".join(map(str, member)).encode())
        else:
            stat = file.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def find(
    sources: Sequence[Path], class_list: str | None = None, count: Count = lambda found: None
) -> tuple[list[Member], tuple[str, ...]]:
    """Every image of the sources with its split and class, ordered by split, class and name; and all classes, sorted.

    A source is a folder (train/<class>/*, val/<class>/* or a flat val, Kaggle's tree, or one that holds archives), an
    archive (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, WebDataset shards, a folder in a tar) or a file with
    labels of validation images. `count` is called with the number found so far.

    The classes are those of the training images. Validation images alone, which are enough for testing, have the
    classes that their label file names, be it of more images than are there, or else their own. `class_list`, a file
    or `ilsvrc2012`, says them in either case: a net of 1000 classes is tested on a part of them as one of 1000.

    Raises UserError for what is none of these, for half-copied archives, and for validation images without labels.
    """
    files = [file for source in sources for file in _expanded(source)]
    labels = _Labels([file for file in files if _is_labels(file)], files)
    found: list[Member] = []
    for file in files:
        if _is_labels(file):
            continue
        for member in _in_folder(file, labels) if file.is_dir() else _in_archive(file, labels):
            found.append(member)
            if len(found) % 1000 == 0:
                count(len(found))
    count(len(found))
    listed = _listed_classes(class_list) if class_list else ()
    found = _with_names_for_numbers(found, listed)
    source = ", ".join(map(str, sources))
    own = {split: {member.class_name for member in found if member.split == split} for split in SPLITS}
    if not own["val"]:
        raise UserError(f"{source} has no val images; name the archive or folder that holds them as well")
    if listed:
        if strange := sorted((own["train"] | own["val"]).difference(listed)):
            raise UserError(
                f"class {strange[0]} of {source} is none of --classes {class_list}; give a list of them all"
            )
    elif own["train"] and (strange := sorted(own["val"] - own["train"])):
        where = next(one.container for one in found if (one.split, one.class_name) == ("val", strange[0]))
        raise UserError(
            f"val class {strange[0]} of {source} ({where}) has no train images; name only what belongs together, or "
            f"add its training images"
        )
    found.sort(key=lambda member: (SPLITS.index(member.split), member.class_name, member.name, member.container))
    return found, tuple(sorted(listed or own["train"] or own["val"] | labels.classes()))


def _with_names_for_numbers(found: Sequence[Member], listed: Sequence[str]) -> list[Member]:
    """The members of WebDataset shards that number their classes, with names: of the list, or the numbers themselves.

    Those are written with one length, so that they sort as numbers do. Raises UserError.
    """
    numbered = [member.class_name for member in found if member.class_name.startswith(_NUMBER)]
    width = max(map(len, numbered), default=0) - len(_NUMBER)
    names = {number: number.removeprefix(_NUMBER).zfill(width) for number in set(numbered)}
    if listed:
        for number in names:
            place = int(number.removeprefix(_NUMBER))
            if place >= len(listed):
                raise UserError(f"an image is of class {place}, but --classes names {len(listed)}; give the whole list")
            names[number] = listed[place]
    return [member._replace(class_name=names.get(member.class_name, member.class_name)) for member in found]


def _listed_classes(class_list: str) -> tuple[str, ...]:
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


def _expanded(source: Path) -> list[Path]:
    """The archives of a folder that holds archives, or the source itself."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder with train/ and val/, or the ILSVRC archives")
    if not source.is_dir():
        return [source.resolve()]
    try:
        names = sorted(os.listdir(source))
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); change its permissions") from None
    archives = [name for name in names if name.endswith(".tar")]
    if archives and not {"train", "ILSVRC"} & set(names):
        return [(source / name).resolve() for name in names if name in archives or _is_labels(source / name)]
    return [source.resolve()]


def _is_labels(file: Path) -> bool:
    return file.name.endswith((".bin", ".csv", ".txt")) or ("devkit" in file.name and file.name.endswith("gz"))


def check_md5(sources: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Holds ILSVRC's archives, told by their names, against their MD5; `progress(done, total)` in MiB.

    Raises UserError for an archive that is not the published one, and where there is none.
    """
    archives = [file for source in sources for file in _expanded(source) if file.name in _MD5]
    if not archives:
        raise UserError(f"--md5: none of {', '.join(map(str, sources))} is {' or '.join(_MD5)}; leave --md5 out")
    total, done = sum(file.stat().st_size for file in archives) >> 20, 0
    for file in archives:
        digest = hashlib.md5(usedforsecurity=False)
        with file.open("rb") as stream:
            while block := stream.read(16 << 20):
                digest.update(block)
                done += len(block)
                progress(done >> 20, total)
        if digest.hexdigest() != _MD5[file.name]:
            raise UserError(f"{file} has MD5 {digest.hexdigest()}, not {_MD5[file.name]}; download it again")


# Folders


def _in_folder(root: Path, labels: _Labels) -> Iterator[Member]:
    for tree in (root, root / "CLS-LOC", root / "Data/CLS-LOC", root / "ILSVRC/Data/CLS-LOC"):
        if any((tree / split).is_dir() for split in SPLITS):
            break
    else:
        raise UserError(
            f"{root} holds neither train/ and val/ nor archives (*.tar); give an ImageNet-style folder, or the archives"
        )
    for split in SPLITS:
        top = tree / split
        if not top.is_dir():
            if split == "train":
                continue  # enough for testing
            raise UserError(f"{root} has no folder {split}; expected {top}/<class>/<image>")
        folders, files = _scan(top)
        if files and not folders and split == "val":
            yield from (_file(split, labels.of(name, top), top, name, *stat) for name, *stat in files)
        elif not folders:
            raise UserError(f"{top} has no class folders; expected {top}/<class>/<image>")
        for name in folders:
            inside = top / name
            deeper, images = _scan(inside)
            if not images and "images" in deeper:  # Tiny ImageNet's own layout
                inside = inside / "images"
                _, images = _scan(inside)
            if not images:
                raise UserError(f"{inside} holds no images ({', '.join(sorted(SUFFIXES))}); fill it or remove it")
            yield from (_file(split, name, inside, file, *stat) for file, *stat in images)


def _file(split: str, class_name: str, folder: Path, name: str, size: int, mtime_ns: int) -> Member:
    return Member(split, class_name, str(folder), name, 0, size, False, mtime_ns)


def _scan(folder: Path) -> tuple[list[str], list[tuple[str, int, int]]]:
    """(folders, (image, bytes, time of change)) inside a folder."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif PurePosixPath(entry.name).suffix.lower() in SUFFIXES:
                    stat = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)  # a broken link
                    files.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); change its permissions") from None
    return sorted(folders), sorted(files)


# Archives


def _in_archive(file: Path, labels: _Labels) -> Iterator[Member]:
    """The images of one tar, whatever its layout; each layout shows in the names of its members."""
    classes: dict[str, str] = {}  # WebDataset: the class file of a key
    images: dict[str, Member] = {}
    any_found = False
    with _open(file) as stream:
        for member in _members(file, stream):
            path = PurePosixPath(member.name)
            place = (str(file), path.name, member.offset_data, member.size, True)
            if path.suffix == ".tar":
                any_found = True
                stream.seek(member.offset_data)
                for inner in _members(file, stream, member.offset_data + member.size):
                    inside = PurePosixPath(inner.name)
                    if inside.suffix.lower() in SUFFIXES:
                        yield Member("train", path.stem, str(file), inside.name, inner.offset_data, inner.size, True)
            elif path.suffix in (".cls", ".wnid"):
                classes[str(path.with_suffix(""))] = _contents(stream, member)
            elif path.suffix.lower() in SUFFIXES:
                any_found = True
                if split := _split_of(path.parts[:-1]):
                    folders = [part for part in path.parts[:-1] if part not in (".", "images")]
                    flat = folders[-1] in (split, *_VAL_NAMES)
                    yield Member(split, labels.of(path.name, file.parent) if flat else folders[-1], *place)
                else:
                    images[str(path.with_suffix(""))] = Member("", "", *place)
    if not any_found:
        raise UserError(f"{file} holds no images; give the archives of the images themselves")
    split = _split_of([file.stem])
    for key, image in images.items():
        if key not in classes and re.fullmatch(r"ILSVRC\d+_val_\d+", key):
            yield image._replace(split="val", class_name=labels.of(image.name, file.parent))
            continue
        if key not in classes:
            raise UserError(
                f"{file} holds {image.name}, but neither folders train/<class>/ or val/<class>/ nor "
                f"{PurePosixPath(key).name}.cls say what it is; give ILSVRC's archives, WebDataset shards or folders"
            )
        if not split:
            raise UserError(f"{file} is neither train nor val by its name; rename it, e.g. train-{file.name}")
        number = classes[key]
        yield image._replace(split=split, class_name=_NUMBER + number if number.isdigit() else number)


def _open(file: Path) -> io.BufferedReader:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions") from None
    start = stream.read(6)
    stream.seek(0)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        stream.close()
        raise UserError(f"{file} is compressed, so its images have no place in it; uncompress it once (e.g. gunzip)")
    return stream


def _members(file: Path, stream: io.BufferedReader, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Members of the tar that starts where the stream stands, held to the bytes that are there."""
    limit = os.fstat(stream.fileno()).st_size if end is None else end
    nested = end is not None
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # else it remembers a million of them
                if member.offset_data + member.size > limit:
                    raise UserError(
                        f"{file} is cut off: {member.name} should end at byte {member.offset_data + member.size}, "
                        f"the {'inner archive' if nested else 'file'} ends at {limit}; copy it again"
                    )
                if member.isfile():
                    at = stream.tell()
                    yield member
                    stream.seek(at)  # the caller may have read
    except tarfile.ReadError as error:
        problem = "is cut off" if "end of data" in str(error) else "is not a tar archive"
        raise UserError(f"{file} {problem} ({error}); download or copy it again") from None


def _contents(stream: io.BufferedReader, member: tarfile.TarInfo) -> str:
    stream.seek(member.offset_data)
    return stream.read(member.size).decode(errors="replace").strip()


def _split_of(names: Iterable[str]) -> str | None:
    """Train or val, where the names of folders or the words of a file name say it."""
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        if "train" in words:
            return "train"
        if words & set(_VAL_NAMES):
            return "val"
    return None


# Labels of flat validation sets


@dataclass
class _Labels:
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
            import torch

            _, wnids = torch.load(file, weights_only=True)
            return {str(number): wnid for number, wnid in enumerate(wnids, 1)}
        if file.name == _GROUND_TRUTH:
            return _ground_truth(file.read_text(), (file.parent / "meta.mat").read_bytes())
        return _text(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file} needs {error.filename} beside it; copy both from the development kit") from None
    except UserError:
        raise
    except Exception as error:  # pickle, tar and MATLAB files break in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"labels {file} cannot be read ({reason[:100]}); give another file") from None


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
