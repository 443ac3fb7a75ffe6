"""Which class each image is of, once all are found: by folder, label file or number; and all classes in order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
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
    """The members with names of classes, all classes in the order of labels, and the file that labels some, if any.

    `listed` are all classes in that order, where something lists them; `source` is for messages. Raises UserError for
    images without a class, or of a class that is not to be.
    """
    members = _with_numbers_for_folders(members, listed)
    members, named, file = _labelled(members, listed, labels, notes)
    members, numbers = _with_names_for_numbers(members, named, listed, notes)
    return members, _classes(members, listed, numbers or named, source, notes), file.file if file else None


def _with_numbers_for_folders(members: Members, listed: Sequence[str]) -> Members:
    """The members with numbers for names of folders that are none of the list's, as in ImageNet-V2: 0 to 999."""
    names = {name for name in members.class_names() if not name.startswith(NUMBERED)} - {UNLABELLED}
    if not listed or not all(map(is_number, names)) or names.intersection(listed):
        return members
    return members.with_class_names({name: f"{NUMBERED}{int(name)}" for name in names})


def _labelled(
    members: Members, listed: Sequence[str], labels: Labels, notes: Notes
) -> tuple[Members, set[str], LabelFile | None]:
    """The members with classes for those that a label file names, the classes that it names, and the file.

    Folders of val that are no classes, as Tiny ImageNet's `images`, only hold what is labelled in a file.
    """
    val = members.take(members.rows_of("val"))
    folders = {member.class_name for member in val if _is_folders(member)} - {UNLABELLED}
    classes = set(listed) or members.class_names("train")
    if classes:
        flat = folders if not folders & classes and not any(name.startswith(NUMBERED) for name in classes) else set()
    else:
        flat = {name for name in folders if len(folders) == 1 and not is_wnid(name)}
    flat = flat | {UNLABELLED}
    first = next((member for member in val if member.class_name in flat), None)
    if classes and not first:
        return members, set(), None
    some = first or next(iter(val))
    try:
        file = labels.find(_path_of(some), place_of_labels(some))
    except UserError as error:
        unlabelled_folder = first and first.class_name != UNLABELLED and isinstance(error, NoLabelsError)
        if unlabelled_folder and not classes:
            raise UserError(
                f"{os.path.dirname(some.place)} is the only folder of val: a class, or the images of all? Put a file "
                f"of labels beside it, or name all classes with --classes"
            ) from error
        if first and not unlabelled_folder:
            raise
        return members, set(), None  # folders say the classes, be they known or not
    if not first and file.of(_path_of(some)) != some.class_name:
        notes.add(f"{file.file} is not used: folders or archives say the classes")
        return members, set(), file
    if not classes and any(map(is_number, file.classes)):
        raise UserError(f"{file.file} numbers some classes and names others; give one or the other for all")
    if first:
        notes.add(f"classes of validation images are those of {file.file}")
        if file.ordered:
            _require_numbers(val, file)
    rows = members.rows_of("val", flat)
    labelled = members.with_classes_of(rows, (file.require(_path_of(member)) for member in members.take(rows)))
    return labelled, file.classes, file


def _path_of(member: Member) -> str:
    """Name and folders of an image, of which labels may say some."""
    return member.name if member.archive else "/".join((*Path(member.container).parts[-2:], member.name))


def _require_numbers(members: Iterable[Member], file: LabelFile) -> None:
    """Raises UserError where images have no numbers of their own, by which a list of classes knows them."""
    numbers = Counter(number_of(member.file_name) for member in members)
    number, n = numbers.most_common(1)[0]
    if n > 1:
        raise UserError(f"{n} images have the number {number}, and {file.file} knows images by it; name each in a file")


def _is_folders(member: Member) -> bool:
    """Whether a class is the name of the folder that an image lies in."""
    return not member.archive or f"/{member.class_name}/" in f"/{member.name}"


def _with_names_for_numbers(
    members: Members, named: set[str], listed: Sequence[str], notes: Notes
) -> tuple[Members, set[str]]:
    """The members with names for numbers of classes, and all such names where nothing else says the classes.

    A number is a place in the list of classes, or among the sorted classes of training images; without these it is
    the label itself, written with as many digits as the largest. Raises UserError.
    """
    numbers = {int(name.removeprefix(NUMBERED)) for name in members.class_names() | named if name.startswith(NUMBERED)}
    if not numbers:
        return members, set()
    train = members.class_names("train")
    known = listed or sorted(name for name in train if not name.startswith(NUMBERED))
    last = max(numbers)
    if last >= _MOST_CLASSES:
        raise UserError(f"an image is of class {last}, which is no number of a class; give labels that fit")
    if known and all(map(is_number, known)) and len({int(name) for name in known}) == len(known):
        names = {int(name): name for name in known}
    elif known:
        names = dict(enumerate(known))
    else:
        names = {number: str(number).zfill(len(str(last))) for number in range(last + 1)}
    if strange := sorted(numbers - names.keys()):
        from_1 = " counted from 0" if strange == [len(known)] and 0 not in numbers else ""
        raise UserError(
            f"an image is of class {strange[0]}, but there are {len(known)} classes{from_1}; give the whole list "
            f"with --classes, or labels that fit"
        )
    if known:
        first, in_order = min(names), ", sorted" if list(known) == sorted(known) else ""
        ends = f"{first} is {names[first]}, {last} is {names[last]}"
        notes.add(f"numbers of classes are places among {len(known)}{in_order}: {ends}")
    elif not train or numbers != set(names):
        without = len(names) - len(numbers)
        notes.add(
            f"classes have no names but numbers, 0 to {last}" + (f"; {without} have no images" if without else "")
        )
    members = members.with_class_names({f"{NUMBERED}{number}": names[number] for number in numbers})
    return members, set() if known or train else set(names.values())


def _classes(members: Members, listed: Sequence[str], named: set[str], source: str, notes: Notes) -> tuple[str, ...]:
    """All classes in the order of labels. Raises UserError for an image of another class."""
    train, val = members.class_names("train"), members.class_names("val")
    if listed:
        if strange := sorted((train | val).difference(listed)):
            raise UserError(
                f"class {strange[0]} of {source} is none of the {len(listed)} listed; give a list of all with --classes"
            )
    elif train and (strange := sorted(val - train)):
        where = next(iter(members.take(members.rows_of("val", strange[:1])))).place
        raise UserError(
            f"val class {strange[0]} of {source} ({where}) has no train images; name only what belongs together, or "
            f"add its training images, or a file of labels where the folder is no class"
        )
    classes = tuple(listed or sorted(train or val | named))
    if all(map(is_number, classes)) and list(classes) != sorted(classes, key=int):
        notes.add(f"classes are called by numbers, and are in the order of text: {', '.join(classes[:4])}, ...")
    return classes
