"""Determines the class of each found image, by folder, label file or number, and all classes in label order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vggrepro.data.images.archive_members import NUMBERED, UNLABELLED, Member, Notes, is_number, is_wnid
from vggrepro.data.images.columns import Members
from vggrepro.data.images.label_files import LabelFile, number_of
from vggrepro.data.images.labels import Labels, NoLabelsError
from vggrepro.data.images.layouts import place_of_labels
from vggrepro.errors import UserError

_MOST_CLASSES = 1_000_000


def with_classes(
    members: Members, listed: Sequence[str], labels: Labels, notes: Notes, source: str
) -> tuple[Members, tuple[str, ...], Path | None]:
    """Returns the members with class names, all classes in label order, and the file that labels some members, if any.

    `listed` are all classes in label order, if a list exists; `source` is for messages. Raises UserError for images
    without a class, or of an unknown class.
    """
    members = _with_numbers_for_folders(members, listed)
    members, named, file = _labelled(members, listed, labels, notes)
    members, numbers = _with_names_for_numbers(members, named, listed, notes)
    return members, _classes(members, listed, numbers or named, source, notes), file.file if file else None


def _with_numbers_for_folders(members: Members, listed: Sequence[str]) -> Members:
    """Reads folder names as class numbers if none of them is listed, as in ImageNet-V2: 0 to 999."""
    names = {name for name in members.class_names() if not name.startswith(NUMBERED)} - {UNLABELLED}
    if not listed or not all(map(is_number, names)) or names.intersection(listed):
        return members
    return members.with_class_names({name: f"{NUMBERED}{int(name)}" for name in names})


def _labelled(
    members: Members, listed: Sequence[str], labels: Labels, notes: Notes
) -> tuple[Members, set[str], LabelFile | None]:
    """Returns the members with the classes of a label file, the classes in the file, and the file."""
    # folders of val that are not classes, such as Tiny ImageNet's `images`, hold images that a file labels
    val = members.take(members.rows_of("val"))
    folders = {member.class_name for member in val if _has_class_folder(member)} - {UNLABELLED}
    classes = set(listed) or members.class_names("train")
    if classes:
        flat = folders if not folders & classes and not any(name.startswith(NUMBERED) for name in classes) else set()
    else:
        flat = {name for name in folders if len(folders) == 1 and not is_wnid(name)}
    flat = flat | {UNLABELLED}
    first = next((member for member in val if member.class_name in flat), None)
    if classes and not first:
        return members, set(), None
    example = first or next(iter(val))
    try:
        file = labels.find(_path_of(example), place_of_labels(example))
    except UserError as error:
        unlabelled_folder = first and first.class_name != UNLABELLED and isinstance(error, NoLabelsError)
        if unlabelled_folder and not classes:
            raise UserError(
                f"{os.path.dirname(example.place)} is the only folder of val: a class, or images of all classes? Put a "
                f"label file beside it, or list all classes with --classes"
            ) from error
        if first and not unlabelled_folder:
            raise
        return members, set(), None  # folders are classes, known or not
    if not first and file.of(_path_of(example)) != example.class_name:
        notes.add(f"{file.file} is not used: folders or archives name the classes")
        return members, set(), file
    if not classes and any(map(is_number, file.classes)):
        raise UserError(f"{file.file} numbers some classes and names others; use numbers or names for all")
    if first:
        notes.add(f"classes of validation images are those of {file.file}")
        if file.ordered:
            number, n = Counter(number_of(member.file_name) for member in val).most_common(1)[0]
            if n > 1:
                raise UserError(
                    f"{n} images have the number {number}, which identifies images in {file.file}; use their names"
                )
    rows = members.rows_of("val", flat)
    labelled = members.with_classes_of(rows, (file.require(_path_of(member)) for member in members.take(rows)))
    return labelled, file.classes, file


def _path_of(member: Member) -> str:
    """Name and folders of an image; a label file may contain any last part of it."""
    return member.name if member.archive else "/".join((*Path(member.container).parts[-2:], member.name))


def _has_class_folder(member: Member) -> bool:
    """Whether an image is in a folder with the name of its class."""
    return not member.archive or f"/{member.class_name}/" in f"/{member.name}"


def _with_names_for_numbers(
    members: Members, named: set[str], listed: Sequence[str], notes: Notes
) -> tuple[Members, set[str]]:
    """Replaces class numbers by names; also returns all names if nothing else determines the classes.

    A number is a position in the class list, or among the sorted classes of training images. If there are neither, the
    name is the number, zero-padded to the digits of the largest. Raises UserError.
    """
    numbers = {int(name.removeprefix(NUMBERED)) for name in members.class_names() | named if name.startswith(NUMBERED)}
    if not numbers:
        return members, set()
    train = members.class_names("train")
    known = listed or sorted(name for name in train if not name.startswith(NUMBERED))
    last = max(numbers)
    if last >= _MOST_CLASSES:
        raise UserError(f"an image has the class {last}, which is not a class number; give labels that fit")
    if known and all(map(is_number, known)) and len({int(name) for name in known}) == len(known):
        names = {int(name): name for name in known}
    elif known:
        names = dict(enumerate(known))
    else:
        names = {number: str(number).zfill(len(str(last))) for number in range(last + 1)}
    if strange := sorted(numbers - names.keys()):
        from_1 = " counted from 0" if strange == [len(known)] and 0 not in numbers else ""
        raise UserError(
            f"an image has the class {strange[0]}, but there are {len(known)} classes{from_1}; give the complete list "
            f"with --classes, or labels that fit"
        )
    if known:
        first, in_order = min(names), ", sorted" if list(known) == sorted(known) else ""
        ends = f"{first} is {names[first]}, {last} is {names[last]}"
        notes.add(f"class numbers are positions among {len(known)}{in_order}: {ends}")
    elif not train or numbers != set(names):
        empty = len(names) - len(numbers)
        notes.add(f"classes have numbers, not names: 0 to {last}" + (f"; {empty} have no images" if empty else ""))
    members = members.with_class_names({f"{NUMBERED}{number}": names[number] for number in numbers})
    return members, set() if known or train else set(names.values())


def _classes(members: Members, listed: Sequence[str], named: set[str], source: str, notes: Notes) -> tuple[str, ...]:
    """Returns all classes in label order. Raises UserError for an image of another class."""
    train, val = members.class_names("train"), members.class_names("val")
    if listed:
        if strange := sorted((train | val).difference(listed)):
            raise UserError(
                f"class {strange[0]} of {source} is not among the {len(listed)} listed; list all with --classes"
            )
    elif train and (strange := sorted(val - train)):
        example = next(iter(members.take(members.rows_of("val", strange[:1])))).place
        raise UserError(
            f"val class {strange[0]} of {source} ({example}) has no train images; name sources of the same set, add "
            f"its training images, or add a label file if the folder is not a class"
        )
    classes = tuple(listed or sorted(train or val | named))
    if all(map(is_number, classes)) and list(classes) != sorted(classes, key=int):
        notes.add(f"class names are numbers, sorted as text: {', '.join(classes[:4])}, ...")
    return classes
