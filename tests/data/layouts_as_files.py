"""Writes the same images in every layout, with the same labels in every file."""

import io
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.io import savemat

from vggrepro.data.images.index import Index, Split

WNIDS = {"church": "n03028079", "flower": "n11669921"}


def tar_of(members: Iterable[tuple[str, bytes]], mode: Literal["w", "w:gz"] = "w") -> bytes:
    """Builds an archive of files given by name and content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def flat(files: Iterable[Path]) -> list[tuple[str, bytes]]:
    """Returns names, without folders, and contents of files."""
    return [(file.name, file.read_bytes()) for file in files]


def val_images(folders: Path) -> list[Path]:
    return sorted(folders.glob("val/*/*.JPEG"), key=lambda file: file.name)


def ilsvrc_archives(folders: Path, to: Path) -> None:
    """Writes the original layout: a tar of a tar per class, and a flat tar of validation images."""
    classes = sorted((folders / "train").iterdir())
    inner = [(f"{folder.name}.tar", tar_of(flat(sorted(folder.iterdir())))) for folder in classes]
    (to / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (to / "ILSVRC2012_img_val.tar").write_bytes(tar_of(flat(val_images(folders))))


def ground_truth(folders: Path) -> dict[str, bytes]:
    """Builds the development kit's files: meta.mat, and labels in an order opposite to that of the wnids."""
    number = {wnid: n for n, wnid in enumerate(sorted(WNIDS.values(), reverse=True), 1)}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(n, wnid, "crane") for wnid, n in number.items()], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    labels = "".join(f"{number[file.parent.name]}\n" for file in val_images(folders))
    return {"ILSVRC2012_validation_ground_truth.txt": labels.encode(), "meta.mat": meta.getvalue()}


def put_devkit(folders: Path, to: Path) -> None:
    members = [(f"ILSVRC2012_devkit_t12/data/{name}", content) for name, content in ground_truth(folders).items()]
    (to / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(members, "w:gz"))


def put_unpacked_devkit(folders: Path, to: Path) -> None:
    data = to / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    for name, content in ground_truth(folders).items():
        (data / name).write_bytes(content)


def put_meta_bin(folders: Path, to: Path) -> None:
    classes, labels = dict.fromkeys(WNIDS.values(), ("name",)), [file.parent.name for file in val_images(folders)]
    torch.save((classes, labels), to / "meta.bin")


def put_kaggle_labels(folders: Path, to: Path) -> None:
    rows = [f"{file.stem},{file.parent.name} 1 2 3 4 {file.parent.name} 5 6 7 8 \n" for file in val_images(folders)]
    (to / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


def put_label_list(folders: Path, to: Path) -> None:
    lines = [f"{file.parent.name}\n" for file in val_images(folders)]
    (to / "imagenet_2012_validation_synset_labels.txt").write_text("".join(lines))


def put_named_labels(folders: Path, to: Path) -> None:
    (to / "val_labels.txt").write_text("".join(f"{f.name} {f.parent.name}\n" for f in val_images(folders)))


LABELS = [put_devkit, put_unpacked_devkit, put_meta_bin, put_kaggle_labels, put_label_list, put_named_labels]


def same_images(left: Index, right: Index, splits: Sequence[str] = ("train", "val")) -> bool:
    """Whether two indices have the same classes, and in these splits the same images and labels."""

    def same(first: Split, second: Split) -> bool:
        columns = ("label", "length", "size", "ordinary")
        alike = all(np.array_equal(getattr(first, column), getattr(second, column)) for column in columns)
        return alike and [first.read(n) for n in range(len(first))] == [second.read(n) for n in range(len(second))]

    return left.classes == right.classes and all(same(left.split(name), right.split(name)) for name in splits)


def flat_val(folders: Path, to: Path) -> None:
    shutil.copytree(folders / "train", to / "train")
    (to / "val").mkdir(parents=True)
    for file in val_images(folders):
        shutil.copy(file, to / "val")
