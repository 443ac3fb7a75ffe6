"""Writes the same boxes in every published format."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

Objects = dict[str, list[tuple[int, int, int, int]]]
"""xmin, ymin, xmax, ymax, inclusive, by the path of the image: split/class/name."""


def voc(boxes: Iterable[Sequence[object]], wnid: str, size: tuple[int, int] | None = None, name: str = "%s") -> bytes:
    """Builds an XML file as ILSVRC distributes it."""
    size_element = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    objects = "".join(
        f"<object><name>{wnid}</name><pose>Unspecified</pose><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation><folder>x</folder><filename>{name}</filename>{size_element}{objects}</annotation>\n".encode()


def tar_of(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _xml(objects: Objects, split: str) -> list[tuple[str, str, bytes]]:
    """Lists (class, name of the XML, content) of a split."""
    places = [(Path(place), boxes) for place, boxes in objects.items() if place.startswith(split)]
    return [(place.parent.name, f"{place.stem}.xml", voc(boxes, place.parent.name)) for place, boxes in places]


def put_archives(objects: Objects, to: Path) -> list[Path]:
    """Writes ILSVRC's two archives: train with a folder per class, val flat."""
    train, val = to / "ILSVRC2012_bbox_train_v2.tar.gz", to / "ILSVRC2012_bbox_val_v3.tgz"
    train.write_bytes(tar_of([(f"{wnid}/{name}", xml) for wnid, name, xml in _xml(objects, "train")], "w:gz"))
    val.write_bytes(tar_of([(f"val/{name}", xml) for _, name, xml in _xml(objects, "val")], "w:gz"))
    return [train, val]


def put_nested_archives(objects: Objects, to: Path) -> list[Path]:
    """Writes a tar of tars, one per class, compressed or not, like ImageNet's Annotation.tar.gz."""
    files = []
    for split in ("train", "val"):
        xml = _xml(objects, split)
        inner = [
            (
                f"{wnid}.tar{'.gz' * (n % 2)}",
                tar_of(
                    [(f"Annotation/{wnid}/{name}", content) for c, name, content in xml if c == wnid],
                    ("w", "w:gz")[n % 2],
                ),
            )
            for n, wnid in enumerate(sorted({wnid for wnid, _, _ in xml}))
        ]
        files.append(to / f"nested_{split}.tar")
        files[-1].write_bytes(tar_of(inner))
    return files


def put_xml_tree(objects: Objects, to: Path) -> list[Path]:
    """Writes Kaggle's tree."""
    for split in ("train", "val"):
        for wnid, name, content in _xml(objects, split):
            file = to / "Annotations" / "CLS-LOC" / split / (wnid if split == "train" else "") / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return [to / "Annotations" / "CLS-LOC" / split for split in ("train", "val")]


def put_kaggle(objects: Objects, to: Path) -> list[Path]:
    """Writes Kaggle's tables."""
    files = [to / f"LOC_{split}_solution.csv" for split in ("train", "val")]
    for split, file in zip(("train", "val"), files, strict=True):
        rows = ["ImageId,PredictionString"]
        for place, boxes in reversed(objects.items()):
            if place.startswith(split):
                image = Path(place)
                rows.append(f"{image.stem},{''.join(f'{image.parent.name} {a} {b} {c} {d} ' for a, b, c, d in boxes)}")
        file.write_text("\n".join(rows) + "\n")
    return files


def put_tiny(objects: Objects, to: Path) -> list[Path]:
    """Writes Tiny ImageNet's tables."""
    for place, boxes in objects.items():
        split, wnid, name = place.split("/")
        file = to / split / wnid / f"{wnid}_boxes.txt" if split == "train" else to / "val" / "val_annotations.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            for box in boxes:
                stream.write("\t".join(map(str, (name, *([wnid] if split == "val" else []), *box))) + "\n")
    return [to / "train", to / "val" / "val_annotations.txt"]


def put_table(objects: Objects, to: Path) -> list[Path]:
    """Writes boxes.tsv."""
    rows = [(place, *box) for place, boxes in objects.items() for box in boxes]
    lines = ["file\txmin\tymin\txmax\tymax", *("\t".join(map(str, row)) for row in rows)]
    (to / "boxes.tsv").write_text("\n".join(lines) + "\n")
    return [to / "boxes.tsv"]


FORMATS = (put_archives, put_nested_archives, put_xml_tree, put_kaggle, put_tiny, put_table)
FOUND_BESIDE = (put_archives, put_xml_tree, put_kaggle, put_tiny, put_table)
