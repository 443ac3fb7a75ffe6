"""Opens folders of classes, such as Caltech-101 and Caltech-256, and splits them at random (Appendix B)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vggrepro.data.images.archive_members import SPLIT_FOLDERS, VAL_WORDS, Member
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import Progress, open_members
from vggrepro.data.images.sources import find
from vggrepro.data.images.tree import Folder, Tar, Tree, archives_in, below, images_in, tree_of
from vggrepro.data.sampler import class_permutation
from vggrepro.data.transfer.transfer_set import Drawing, Partition, TransferSet
from vggrepro.errors import UserError
from vggrepro.paper import value

_DOWNLOADED_FOLDER = {"caltech101": "101_ObjectCategories", "caltech256": "256_ObjectCategories"}
_OTHER_LAYOUTS = {*SPLIT_FOLDERS, "CLS-LOC", "Data", "ILSVRC"}  # ImageNet's, Kaggle's
_DEEPEST = 4  # folders that may be above the class folders
_WANTED = "a folder of classes (<class>/<image>) or an uncompressed tar of one"


def open_class_folders(name: str, source: Path, drawing: Drawing, cache: Path, progress: Progress) -> TransferSet:
    """Opens a folder of classes, split at random and measured by mean class recall. Raises UserError.

    Images of `train/<class>/` and `val/<class>/` are pooled. Files that are not images are not samples.
    """
    sample_names = listed(name, source)
    members = list(sample_names)
    classes = tuple(_counts(members, source))
    index = open_members(members, classes, source, cache, progress)
    split = index.split("val")
    name_of = {(file.container, file.name, file.offset): text for file, text in sample_names.items()}
    locations = zip(split.container.tolist(), split.names.to_pylist(), split.offset.tolist(), strict=True)
    return TransferSet(
        name=name,
        index=index,
        classes=classes,
        measure="recall",
        image=np.arange(len(split)),
        targets=np.where(split.label[:, None] == np.arange(len(classes)), 1, -1).astype(np.int8),
        partitions=[_drawn(index, drawing, number) for number in range(drawing.splits)],
        names=[name_of[split.containers[container], file, offset] for container, file, offset in locations],
        rejected=split.rejected,
    )


def require_enough(members: Iterable[Member], drawing: Drawing, source: Path) -> int:
    """Returns the number of classes. Raises UserError for a class with too few files."""
    counts = _counts(members, source)
    for class_name, count in counts.items():
        _require_more(class_name, count, drawing.train_per_class, str(source))
    return len(counts)


def _counts(members: Iterable[Member], source: Path) -> dict[str, int]:
    """Counts files by class, sorted. Raises UserError if there is only one class."""
    counts = Counter(member.class_name for member in members)
    if len(counts) < 2:
        raise UserError(f"{source} has only one class, {next(iter(counts))}; give {_WANTED}")
    return dict(sorted(counts.items()))


def _require_more(class_name: str, images: int, n: int, source: str) -> None:
    if images <= n:
        raise UserError(
            f"class {class_name} of {source} has {images} usable images, but {n} for training and one for testing "
            f"need {n + 1}; add images, or lower transfer.train_per_class"
        )


def _drawn(index: Index, drawing: Drawing, number: int) -> Partition:
    """Draws a random split; its rows are in index order."""
    fit, validation, test = [], [], []
    n = drawing.train_per_class
    n_validation = max(1, round(value("transfer_held_out") * n))
    labels = index.split("val").label
    for label, class_name in enumerate(index.classes):
        rows = (labels == label).nonzero()[0]
        _require_more(class_name, len(rows), n, index.source)
        drawn = rows[class_permutation(drawing.seed, number, label, len(rows))]
        validation.append(drawn[:n_validation])
        fit.append(drawn[n_validation:n])
        test.append(drawn[n:][: drawing.test_per_class])
    return Partition(*(np.sort(np.concatenate(rows)) for rows in (fit, validation, test)))


def listed(name: str, source: Path) -> dict[Member, str]:
    """Lists the files that should be images, with their sample names, in index order. Raises UserError if none."""
    tree = tree_of(source, _WANTED)
    top = _above_classes(tree, _DOWNLOADED_FOLDER.get(name))
    folders = tree.folders(top)
    if "train" in folders and not VAL_WORDS.isdisjoint(folders):
        return _pooled(tree.root / top if isinstance(tree, Folder) else tree.root)
    images = {folder: images_in(tree, below(top, folder)) for folder in folders}
    if any(images.values()):
        if empty := [folder for folder in folders if not images[folder]]:
            raise UserError(f"{tree.root / top / empty[0]} holds no images of class {empty[0]}; fill it or remove it")
        return {
            file._replace(class_name=folder): f"{folder}/{file.file_name}"
            for folder in folders
            for file in images[folder]
        }
    archives = archives_in(tree)
    if len(archives) == 1:
        return listed(name, archives[0])
    if isinstance(tree, Tar) or archives or _OTHER_LAYOUTS.intersection(tree.folders("")):
        return _pooled(source)
    raise UserError(f"{source} holds no images in folders; give {_WANTED}")


def _above_classes(tree: Tree, published: str | None) -> str:
    """Finds the folder that holds the class folders: the published one, or the first that holds several folders."""
    top = ""
    for _ in range(_DEEPEST):
        folders = tree.folders(top)
        if published in folders:
            return below(top, published)
        if len(folders) != 1 or images_in(tree, below(top, folders[0])):
            break
        top = below(top, folders[0])
    return top


def _pooled(source: Path) -> dict[Member, str]:
    """Pools the images of train and val."""
    return {
        member._replace(split="val"): f"{member.split}/{member.class_name}/{member.file_name}"
        for member in sorted(find([source]).members, key=lambda member: member.class_name)
    }
