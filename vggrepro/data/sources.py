"""Where images are: archives as downloaded and folders of every common layout, told apart by looking.

Nothing is extracted.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vggrepro.data.archives import in_archive
from vggrepro.data.labels import Labels, is_label_file, listed_classes
from vggrepro.data.members import NUMBERED, SPLITS, SUFFIXES, Member
from vggrepro.errors import UserError

Count = Callable[[int], None]


def signature(sources: Sequence[Path]) -> str:
    """A hash (hex) that changes when an archive or an image in a folder is added, removed or written to.

    Archives are not opened. Raises as :func:`find`.
    """
    digest = hashlib.sha256()
    for file in (file for source in sources for file in _expanded(source)):
        digest.update(f"{file}\n".encode())
        if file.is_dir():
            for member in _in_folder(file, Labels([], [file])):
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
    classes that their label file names, even of images that are not there, or else their own. `class_list`, a file
    or `ilsvrc2012`, says them in either case: a net of 1000 classes is tested on a part of them as one of 1000.

    Raises UserError for what is none of these, for half-copied archives, and for validation images without labels.
    """
    files = [file for source in sources for file in _expanded(source)]
    labels = Labels([file for file in files if is_label_file(file)], files)
    found: list[Member] = []
    for file in files:
        if is_label_file(file):
            continue
        for member in _in_folder(file, labels) if file.is_dir() else in_archive(file, labels):
            found.append(member)
            if len(found) % 1000 == 0:
                count(len(found))
    count(len(found))
    listed = listed_classes(class_list) if class_list else ()
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
    found.sort(key=lambda member: (SPLITS.index(member.split), member.class_name, member.file_name, member.container))
    return found, tuple(sorted(listed or own["train"] or own["val"] | labels.classes()))


def _with_names_for_numbers(found: Sequence[Member], listed: Sequence[str]) -> list[Member]:
    """The members of WebDataset shards that number their classes, with names: of the list, or the numbers themselves.

    Those are written with one length, so that they sort as numbers do. Raises UserError.
    """
    numbered = [member.class_name for member in found if member.class_name.startswith(NUMBERED)]
    width = max(map(len, numbered), default=0) - len(NUMBERED)
    names = {number: number.removeprefix(NUMBERED).zfill(width) for number in set(numbered)}
    if listed:
        for number in names:
            place = int(number.removeprefix(NUMBERED))
            if place >= len(listed):
                raise UserError(f"an image is of class {place}, but --classes names {len(listed)}; give the whole list")
            names[number] = listed[place]
    return [member._replace(class_name=names.get(member.class_name, member.class_name)) for member in found]


_MD5 = {  # published beside the archives
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}


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
    names = [name for name in names if "_bbox_" not in name and name != "LOC_train_solution.csv"]  # of boxes
    archives = [name for name in names if name.endswith(".tar")]
    if archives and not {"train", "ILSVRC"} & set(names):
        return [(source / name).resolve() for name in names if name in archives or is_label_file(source / name)]
    return [source.resolve()]


def _in_folder(root: Path, labels: Labels) -> Iterator[Member]:
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
        folders, files = list_folder(top)
        if files and not folders and split == "val":
            yield from (_file(split, labels.of(name, top), top, name, *stat) for name, *stat in files)
        elif not folders:
            raise UserError(f"{top} has no class folders; expected {top}/<class>/<image>")
        for name in folders:
            inside = top / name
            deeper, images = list_folder(inside)
            if not images and "images" in deeper:  # Tiny ImageNet's own layout
                inside = inside / "images"
                _, images = list_folder(inside)
            if not images:
                raise UserError(f"{inside} holds no images ({', '.join(sorted(SUFFIXES))}); fill it or remove it")
            yield from (_file(split, name, inside, file, *stat) for file, *stat in images)


def _file(split: str, class_name: str, folder: Path, name: str, size: int, mtime_ns: int) -> Member:
    return Member(split, class_name, str(folder), name, 0, size, False, mtime_ns)


def list_folder(folder: Path, *, images: bool = True) -> tuple[list[str], list[tuple[str, int, int]]]:
    """(folders, (file, bytes, time of change in ns)) inside a folder; images only, or all files. Raises UserError."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif not images or PurePosixPath(entry.name).suffix.lower() in SUFFIXES:
                    stat = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)  # a broken link
                    files.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); change its permissions") from None
    return sorted(folders), sorted(files)
