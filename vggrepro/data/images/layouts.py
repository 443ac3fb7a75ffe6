"""Recognises the layout of a folder or tar, and yields its images with their splits and classes.

Classes are not resolved here: a class is a folder's name, a number with the prefix NUMBERED, or UNLABELLED.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vggrepro.data.images.archive_members import (
    NUMBERED,
    SPLIT_FOLDERS,
    SPLITS,
    SUFFIXES,
    UNLABELLED,
    Member,
    is_image,
    is_number,
    split_of,
)
from vggrepro.data.images.tree import Folder, Tar, Tree, below, contents
from vggrepro.errors import UserError

_AROUND = {"ILSVRC", "Data", "CLS-LOC"}  # folders of Kaggle's tree above train and val
_LABELS = {"meta", "annotations", "imagesets"}  # folders of label files and boxes
_BOX_WORDS = {"bbox", "annotations", "boxes"}  # words in the names of folders of boxes
_DEEPEST = 5
_NOTES = (".txt", ".xml", ".json", ".csv", ".md")  # suffixes of files that are expected among images
_CLASS_FILES = (".cls", ".wnid")
_LONGEST_CLASS = 1 << 10  # bytes of a .cls file


def split_folders(tree: Tree, path: str = "", depth: int = 0) -> dict[str, str]:
    """Finds the folder of each split in a folder, or in those below it. Raises UserError if it is ambiguous."""
    folders = [name for name in tree.folders(path) if not _BOX_WORDS.intersection(name.lower().split("_"))]
    found: dict[str, str] = {}
    for name in [name for name in folders if name.lower() in SPLIT_FOLDERS] or folders:
        split = split_of(name)
        if split in found:
            raise UserError(
                f"{tree.root / path} holds {found[split].rpartition('/')[2]} and {name}, both {split} by their names; "
                f"name a folder that holds only one"
            )
        if split in SPLITS:
            found[split] = below(path, name)
    if found or depth == _DEEPEST:
        return found
    around = [below(path, name) for name in folders if isinstance(tree, Tar) or name in _AROUND]
    deeper = [inside for folder in around if (inside := split_folders(tree, folder, depth + 1))]
    if len(deeper) > 1:
        several = " and ".join(next(iter(inside.values())) for inside in deeper[:2])
        raise UserError(f"{tree.root} holds {several} of two data sets; give one of them")
    return deeper[0] if deeper else {}


def in_tree(tree: Tree) -> Iterator[Member]:
    """Yields the images of a folder or tar. Raises UserError for an unknown layout."""
    found = split_folders(tree)
    if found:
        _note_others(tree, found)
        for split, path in found.items():
            yield from _in_split(tree, split, path)
    elif isinstance(tree, Tar):
        yield from _in_bare_tar(tree)
    else:
        raise UserError(
            f"{tree.root} holds neither train/ and val/ nor archives (*.tar, *.parquet); {_better_folder(tree)}"
        )


def _note_others(tree: Tree, found: dict[str, str]) -> None:
    """Notes images, and folders that may contain images, beside the folders of splits."""
    top = next(iter(found.values())).rpartition("/")[0]
    folders, files = tree.listing(top)
    tree.leave_out("images beside the folders of train and val", top, list(filter(is_image, files)))
    others = [
        name
        for name in folders
        if below(top, name) not in found.values()
        and (name.lower() not in _LABELS or any(map(is_image, tree.files(below(top, name)))))
    ]
    tree.leave_out("folders beside the folders of train and val", top, others)


def _better_folder(tree: Tree) -> str:
    """Suggests a folder above or below that fits, or else what to give."""
    above = [Folder(parent) for parent in tree.root.parents[:2]]
    within = [Folder(tree.root / name) for name in tree.folders("")[:100]]
    for other in (*within, *above):
        with suppress(UserError):
            # above, both train and val are required: a val alone may belong to something else
            if set(split_folders(other)) == set(SPLITS) or (other in within and split_folders(other)):
                return f"give {other.root}, which does"
    return "give an ImageNet-style folder, or the archives"


def _in_split(tree: Tree, split: str, path: str) -> Iterator[Member]:
    folders, files = tree.listing(path)
    images = {name: file for name, file in files.items() if is_image(name)}
    if not images and len(folders) == 1 and split_of(folders[0]) == split:
        tree.notes.add(f"{tree.root / path / folders[0]} is read as {split}, because {folders[0]} is nested")
        yield from _in_split(tree, split, below(path, folders[0]))
        return
    if images and split == "val" and not any(_in_class(tree, below(path, name)) for name in folders):
        yield from (file._replace(split=split, class_name=UNLABELLED) for file in images.values())
        return
    archives = [tree.root / path / name for name in files if name.endswith(".tar")]
    if not folders and not images and split == "train" and archives:
        for archive in archives:  # ILSVRC's tar of tars, of which the outer tar is unpacked
            inner = Tar(archive)
            if not (members := _in_class(inner, "")):
                raise UserError(f"{inner.root} holds no images; download or copy it again")
            tree.notes.include(inner.notes)
            yield from (file._replace(split="train", class_name=inner.root.stem) for file in members)
        return
    if not folders:
        raise UserError(f"{tree.root / path} has no class folders; expected {tree.root / path}/<class>/<image>")
    tree.leave_out(f"images of {split} beside the folders of classes", path, list(images))
    for name in folders:
        members = _in_class(tree, below(path, name))
        if not members and name.lower() not in _LABELS:
            inside = tree.root / path / name
            if deeper := tree.folders(below(path, name)):
                raise UserError(
                    f"{inside} holds folders ({deeper[0]}), no images; expected {tree.root / path}/<class>/<image>: "
                    f"move what is in {name} to where it belongs"
                )
            raise UserError(f"{inside} holds no images ({', '.join(sorted(SUFFIXES))}); fill it or remove it")
        class_name = name.removesuffix(".tar") if isinstance(tree, Tar) else name
        yield from (file._replace(split=split, class_name=class_name) for file in members)


def _in_class(tree: Tree, path: str) -> list[Member]:
    """Lists the images of a class; Tiny ImageNet has them in a folder `images`."""
    folders, files = tree.listing(path)
    images = [file for name, file in files.items() if is_image(name)]
    others = [name for name in files if not is_image(name) and not name.endswith(_NOTES)]
    if not images and "images" in folders:
        return _in_class(tree, below(path, "images"))
    if images:
        tree.leave_out("folders inside those of classes", path, folders)
    tree.leave_out("files without the suffix of an image", path, others)
    return images


def _in_bare_tar(tree: Tar) -> Iterator[Member]:
    """Yields the images of a tar without split folders: ILSVRC's, WebDataset's, or the content of a split folder."""
    folders = tree.folders("")
    split = split_of(tree.root.stem)
    if folders and all(name.endswith(".tar") for name in folders):
        yield from _in_split(tree, "val" if split == "val" else "train", "")
        return
    every = list(tree.every_file())
    images = [file for file in every if is_image(file.name)]
    if not images:
        raise UserError(f"{tree.root} holds no images; give the archives of the images themselves")
    if any(file.name.endswith(_CLASS_FILES) for file in every):
        yield from _in_shard(tree, split, images, every)
    elif not folders and all(file.name.startswith("ILSVRC") and "_val_" in file.name for file in images):
        yield from (file._replace(split="val", class_name=UNLABELLED) for file in images)
    elif split in SPLITS and (folders or split == "val"):
        yield from _in_split(tree, split, "")
    else:
        raise UserError(
            f"{tree.root} holds {images[0].name}, but no train/<class>/, val/<class>/ or "
            f"{images[0].name.rpartition('.')[0]}.cls with its class; give ILSVRC's archives, WebDataset shards or "
            f"folders"
        )


def _in_shard(tree: Tar, split: str | None, images: list[Member], every: list[Member]) -> Iterator[Member]:
    """Yields the images of a WebDataset shard, in which an image and its class are files with the same stem."""
    if split not in SPLITS:
        raise UserError(f"{tree.root} is neither train nor val by its name; rename it, e.g. train-{tree.root.name}")
    if tree.repeated:
        raise UserError(f"{tree.root} holds {tree.repeated} several times; give every sample a unique name")
    class_files = {file.name.rpartition(".")[0]: file for file in every if file.name.endswith(_CLASS_FILES)}
    seen: dict[str, str] = {}
    for image in images:
        key = image.name.rpartition(".")[0]
        if (
            key not in class_files
            and below(image.name.rpartition("/")[0], image.file_name.partition(".")[0]) in class_files
        ):
            tree.leave_out("further images of samples", "", [image.name])
            continue
        if key not in class_files:
            raise UserError(f"{tree.root} holds {image.name}, but no {key}.cls with its class; add it")
        if other := seen.get(key):
            raise UserError(f"{tree.root} holds {other} and {image.name}, two images of a sample; remove one of them")
        seen[key] = image.name
        text = contents(class_files[key], _LONGEST_CLASS).decode(errors="surrogateescape").strip()
        if not text or not text.isprintable():
            raise UserError(f"{class_files[key].name} of {tree.root} contains no class; write one into it")
        yield image._replace(split=split, class_name=f"{NUMBERED}{int(text)}" if is_number(text) else text)


def place_of_labels(member: Member) -> Path:
    """Returns the folder where the search for an image's labels starts."""
    return Path(member.container).parent if member.archive else Path(member.container)
