"""Finds images in downloaded archives and in folders of every common layout, which is detected; extracts nothing."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggrepro.data.decode import BadImageError, read
from vggrepro.data.images.archive_members import NUMBERED, Member, Notes, split_of, without_wnid
from vggrepro.data.images.classes import with_classes
from vggrepro.data.images.columns import Members, column_of
from vggrepro.data.images.index import stamp_of
from vggrepro.data.images.labels import Labels, is_label_file, listed_classes, stamped_labels, texts_in
from vggrepro.data.images.layouts import in_tree, place_of_labels, split_folders
from vggrepro.data.images.parquet import SUFFIX, Table, note_gaps, split_of_table, wnids_of
from vggrepro.data.images.tree import Folder, Tar, absolute
from vggrepro.errors import UserError

Count = Callable[[int], None]
_READER_VERSION = b"2"  # increases when the same files give other labels, so that cached indices are made again


class FoundImages(NamedTuple):
    """The images of sources, with their classes."""

    members: Members  # every image, ordered by split, class and name
    classes: tuple[str, ...]  # class names in label order
    notes: tuple[str, ...]  # remarks on files that are left out, and on how class numbers were read; a line each
    label_file: Path | None  # the file with the classes of images that are not in class folders


def signature(sources: Sequence[Path]) -> str:
    """Computes a hash (hex) that changes with any archive, and any image in a folder. Raises like :func:`find`."""
    digest, notes = hashlib.sha256(_READER_VERSION), Notes()

    def stamp(files: Iterable[Path]) -> None:
        for file in files:
            digest.update(f"{file} {stamp_of(str(file))}\n".encode(errors="surrogateescape"))

    for file, folder in _expanded(sources, notes).items():
        if folder is None:
            stamp((file, *stamped_labels(file.parent)))
            continue
        train, flat = set(), None
        for member in in_tree(folder):
            digest.update("\0".join(map(str, member)).encode(errors="surrogateescape"))
            if member.split == "train":
                train.add(member.class_name)
            elif member.class_name not in train:
                flat = member
        if flat:
            stamp(stamped_labels(place_of_labels(flat)))
    return digest.hexdigest()


def find(sources: Sequence[Path], class_list: str | None = None, count: Count = lambda found: None) -> FoundImages:
    """Finds every image of the sources with its split and class, and all classes.

    Sources are folders (train/<class>/* with val/<class>/* or a flat val, Tiny ImageNet's, Kaggle's, or one that holds
    archives), archives (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, WebDataset shards, a folder in a tar),
    Parquet tables, and files with labels of validation images. Calls `count` with the number of images found so far.

    The classes are those of the training images, sorted. If there are only validation images, which are enough for
    testing, the classes are those in the label file, even if some have no images, or else those of the images. A
    `class_list`, a file or `ilsvrc2012`, overrides both, so that a net of 1000 classes can be tested on images of some
    of them. Parquet tables name the classes in an order of their own.

    Raises UserError for an unknown layout, an incomplete archive, an image in two archives, and missing labels.
    """
    notes = Notes()
    texts: dict[Path, Member] = {}
    stated: list[str] = []
    files = _expanded(sources, notes)
    note_gaps(files, notes)
    members = Members.of(_counted(_members(files, notes, texts, stated), count))
    source = ", ".join(map(str, sources))
    tables = [code for code, (place, _) in enumerate(members.containers) if place.endswith(SUFFIX)]
    wnids = wnids_of(members.take(np.flatnonzero(np.isin(members.container, tables))))
    if wnids and len(wnids) == len(stated or wnids):
        # label files, boxes and nets know the classes by their WordNet ids
        stated[:] = wnids
        members = Members.of(member._replace(name=without_wnid(member.name)) for member in members)
    listed = listed_classes(class_list) if class_list else stated
    if class_list and stated:
        members = _with_stated_classes(members, stated, listed)
    if not len(members.rows_of("val")):
        raise UserError(f"{source} has no val images; also name the archive or folder that holds them")
    labels = Labels(list(filter(is_label_file, sources)), list(files), texts)
    members, classes, label_file = with_classes(members, listed, labels, notes, source)
    members = _sorted(members, {name: number for number, name in enumerate(classes)})
    _require_distinct(members)
    return FoundImages(members, classes, notes.lines(), label_file)


def _members(
    files: Mapping[Path, Folder | None], notes: Notes, texts: dict[Path, Member], stated: list[str]
) -> Iterator[Member]:
    """Yields images; adds texts in tars to `texts`, and classes of tables to `stated`. Raises UserError."""
    for file, folder in files.items():
        if file.suffix == SUFFIX and not folder:
            table = Table(file)
            if stated and list(table.classes) != stated:
                raise UserError(f"{file} and the tables before it name different classes; name only tables of one set")
            stated[:] = table.classes
            yield from table.members()
        elif not is_label_file(file):
            tree = folder or Tar(file)
            yield from in_tree(tree)
            texts |= texts_in(tree) if isinstance(tree, Tar) else {}
            notes.include(tree.notes)


def _counted(members: Iterable[Member], count: Count) -> Iterator[Member]:
    found = 0
    for found, member in enumerate(members, 1):
        require_readable_name(member)
        if found % 1000 == 0:
            count(found)
        yield member
    count(found)


def _sorted(members: Members, labels: Mapping[str, int]) -> Members:
    """Sorts by split, label, name without folders, container and offset."""
    import pyarrow as pa
    import pyarrow.compute as pc

    containers = {container: number for number, container in enumerate(sorted(members.containers))}
    keys = {
        "split": column_of(members.split),
        "class": column_of(np.array([labels.get(name, -1) for name in members.classes])[members.class_name]),
        "name": pc.replace_substring_regex(members.name, "(?s).*/", ""),
        "container": column_of(np.array([containers[name] for name in members.containers])[members.container]),
        "offset": column_of(members.offset),
    }
    order = pc.sort_indices(pa.table(keys), [(key, "ascending") for key in keys])
    return members.take(np.frombuffer(order.buffers()[1], np.uint64)[: len(order)])


def _with_stated_classes(members: Members, stated: Sequence[str], listed: Sequence[str]) -> Members:
    """Maps the classes of tables to listed ones by name, or else by order. Raises UserError if their numbers differ."""
    if set(stated) <= set(listed):
        return members.with_class_names({f"{NUMBERED}{number}": name for number, name in enumerate(stated)})
    if len(stated) != len(listed):
        raise UserError(
            f"the tables name {len(stated)} classes ({stated[0]}, ...) that differ from --classes; leave --classes out"
        )
    return members


def require_readable_name(member: Member) -> None:
    """Raises UserError if an image's path or class is not UTF-8, because an index cannot store it."""
    for text in member[1:4]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{member.place} has a name that is not UTF-8; rename it") from None
        if "\0" in text[1:]:  # the first character may be NUMBERED
            raise UserError(f"{member.place} has a name that is not text; rename it")


def _require_distinct(members: Members) -> None:
    """Raises UserError if two archives hold the same image, like ILSVRC's archives for several tasks."""
    alike = np.diff(members.container) != 0
    for column in (members.split, members.class_name, members.length):
        alike &= np.diff(column) == 0
    for row in np.flatnonzero(alike).tolist():
        first, second = members.part(row, row + 2)
        if first.file_name != second.file_name:
            continue
        with suppress(BadImageError):  # which the inspection of all images will find
            if read(first.file, first.offset, first.length) == read(second.file, second.offset, second.length):
                raise UserError(
                    f"{first.container} and {second.container} both hold {first.file_name} of class "
                    f"{first.class_name}; name only one of them"
                )


_MD5 = {  # published beside the archives
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}


def check_md5(sources: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Checks the MD5 of ILSVRC's archives; calls `progress(done, total)` in MiB. Raises UserError, also if none."""
    archives = [file for file in _expanded(sources, Notes()) if file.name in _MD5]
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


def _expanded(sources: Sequence[Path], notes: Notes) -> dict[Path, Folder | None]:
    """Replaces folders of archives by the archives; maps other folders to their trees, and files to None."""
    found: dict[Path, Folder | None] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist; give a folder with train/ and val/, or the ILSVRC archives")
        found |= _in_folder(Folder(source), notes) if source.is_dir() else {absolute(source): None}
    return found


def _in_folder(tree: Folder, notes: Notes) -> dict[Path, Folder | None]:
    splits = split_folders(tree)
    archives = {
        tree.root / name: split_of_table(tree.root / name) if name.endswith(SUFFIX) else split_of(Path(name).stem)
        for name in tree.files("")
        if name.endswith((".tar", SUFFIX)) and "_bbox_" not in name
    }
    if not archives and not splits and any(name.endswith(SUFFIX) for name in tree.files("data")):
        return _in_folder(Folder(tree.root / "data"), notes)  # the layout of hubs
    used: dict[Path, Folder | None] = {}
    for file, split in archives.items():
        if split == "test" or split in splits:
            why = "of a test set" if split == "test" else "beside folders of their split"
            notes.leave_out(f"archives {why}", str(file))
        else:
            used[file] = None
    return {tree.root: tree, **used} if splits or not used else used
