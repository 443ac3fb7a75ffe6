"""Every layout and label file in docs/data.md gives the same images and labels as plain folders."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts_as_files import (
    WNIDS,
    flat,
    flat_val,
    ilsvrc_archives,
    put_devkit,
    put_kaggle_labels,
    put_label_list,
    put_meta_bin,
    put_named_labels,
    put_unpacked_devkit,
    same_images,
    tar_of,
    val_images,
)
from tiny import REPOSITORY

from vggrepro.data.images.index import Index, load
from vggrepro.data.images.parquet import SUMS, repack
from vggrepro.data.images.scan import open_index, scan, scan_folder
from vggrepro.errors import UserError

pytestmark = pytest.mark.usefixtures("inspected_in_process")
Make = Callable[[Path, Path], Path | None]
CLASSES = sorted(WNIDS.values())


def rows_of(title: str) -> set[str]:
    """Lists the first cells of the table in docs/data.md with a given header."""
    page = (REPOSITORY / "docs" / "data.md").read_text()
    table = page[page.index(f"| {title} |") :].partition("\n\n")[0]
    return {re.sub("`", "", row.split("|")[1]).strip() for row in table.splitlines()[2:]}


def renamed(train: str, val: str) -> Make:
    """Copies the folders under other names; that of val may be flat."""

    def make(folders: Path, to: Path) -> None:
        shutil.copytree(folders / "train", to / train)
        shutil.copytree(folders / "val", to / val)

    return make


def flat_in(folder: str) -> Make:
    def make(folders: Path, to: Path) -> None:
        flat_val(folders, to)
        shutil.move(to / "val", to / "moved")
        (to / folder).parent.mkdir(exist_ok=True)
        shutil.move(to / "moved", to / folder)
        put_named_labels(folders, to)

    return make


def archives(folders: Path, to: Path) -> None:
    ilsvrc_archives(folders, to)
    put_devkit(folders, to)


def inner_archives(folders: Path, to: Path) -> None:
    flat_val(folders, to)
    put_devkit(folders, to)
    for folder in sorted((to / "train").iterdir()):
        (to / "train" / f"{folder.name}.tar").write_bytes(tar_of(flat(sorted(folder.iterdir()))))
        shutil.rmtree(folder)


def named_as_archives(folders: Path, to: Path) -> None:
    flat_val(folders, to)
    (to / "train").rename(to / "ILSVRC2012_img_train")
    (to / "val").rename(to / "ILSVRC2012_img_val")
    put_meta_bin(folders, to)


def tiny_imagenet(folders: Path, to: Path) -> None:
    for wnid in CLASSES:
        shutil.copytree(folders / "train" / wnid, to / "train" / wnid / "images")
        (to / "train" / wnid / f"{wnid}_boxes.txt").write_text("x.JPEG\t0\t0\t1\t1\n")
    (to / "val" / "images").mkdir(parents=True)
    for file in val_images(folders):
        shutil.copy(file, to / "val" / "images")
    (to / "test" / "images").mkdir(parents=True)
    shutil.copy(val_images(folders)[0], to / "test" / "images" / "test_0.JPEG")
    put_annotations(folders, to / "val")
    (to / "wnids.txt").write_text("\n".join(reversed(CLASSES)))
    (to / "words.txt").write_text("".join(f"{wnid}\ta word, another\n" for wnid in CLASSES))


def kaggle(folders: Path, to: Path) -> None:
    flat_val(folders, to / "ILSVRC/Data/CLS-LOC")
    put_kaggle_labels(folders, to)


def single_tar(folders: Path, to: Path) -> Path:
    with tarfile.open(to / "all.tar", "w") as tar:
        tar.add(folders, "some/data")
    return to / "all.tar"


def a_tar_of_each(folders: Path, to: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(to / f"{split}.tar", "w") as tar:
            for wnid in CLASSES:
                tar.add(folders / split / wnid, wnid)


def shards(folders: Path, to: Path) -> None:
    for split in ("train", "val"):
        for shard, wnid in enumerate(CLASSES):
            members = []
            for file in sorted((folders / split / wnid).iterdir()):
                members += [(f"{file.stem}.jpg", file.read_bytes()), (f"{file.stem}.cls", wnid.encode())]
            (to / f"imagenet-{split}-{shard:05}.tar").write_bytes(tar_of(members))


def tables(
    folders: Path,
    to: Path,
    compression: str = "none",
    names: Sequence[str] = ("church, a building", "flower"),
    with_wnids: bool = True,
    **options: object,
) -> None:
    """Writes tables like the hub of ImageNet-1k: three shards per split, shuffled images, small row groups."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else {}
    (to / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((folders / split).rglob("*.JPEG"), key=lambda file: file.stem[::-1])
        for shard in range(3):
            rows = [
                {
                    "image": {
                        "bytes": file.read_bytes(),
                        "path": f"{file.stem}_{file.parent.name}.JPEG" if with_wnids else file.name,
                    },
                    "label": CLASSES.index(file.parent.name),
                }
                for file in files[shard::3]
            ]
            image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
            pq.write_table(
                pa.Table.from_pylist(rows, schema),
                to / "data" / f"{name}-{shard:05}-of-00003.parquet",
                compression=compression,
                row_group_size=5,
                **options,
            )


LAYOUTS: dict[str, Make] = {
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar": archives,
    "train/<wnid>.tar and a flat val/": inner_archives,
    "train/<class>/* and val/<class>/*": renamed("train", "val"),
    "train/<class>/* and a flat val/": flat_in("val"),
    "train/<class>/* and val/<folder>/*": flat_in("val/some_folder"),
    "train/<class>/* and validation/<class>/*": renamed("Train", "validation"),
    "ILSVRC2012_img_train/<class>/* and ILSVRC2012_img_val/*": named_as_archives,
    "train/train/<class>/* and val/val/<class>/*": renamed("train/train", "val/val"),
    "train/<wnid>/images/* and val/images/*": tiny_imagenet,
    "ILSVRC/Data/CLS-LOC/{train,val}": kaggle,
    "<anything>.tar with train/<class>/* and val/<class>/*": single_tar,
    "train.tar and val.tar with <class>/*": a_tar_of_each,
    "*train*.tar and *val*.tar with <key>.jpg and <key>.cls": shards,
    "train-*.parquet and validation-*.parquet": tables,
}


def put_numbers(folders: Path, to: Path) -> None:
    """Writes Caffe's labels: positions among the sorted wnids."""
    to.mkdir(exist_ok=True)
    (to / "val.txt").write_text("".join(f"{f.name} {CLASSES.index(f.parent.name)}\n" for f in val_images(folders)))


def put_numbers_in_meta(folders: Path, to: Path) -> None:
    put_numbers(folders, to / "meta")
    lines = [f"{f.parent.name}/{f.name} {CLASSES.index(f.parent.name)}\n" for f in sorted(folders.glob("train/*/*"))]
    (to / "meta" / "train.txt").write_text("".join(lines))


def put_annotations(folders: Path, to: Path) -> None:
    lines = [f"{file.name}\t{file.parent.name}\t0\t32\t44\t62\n" for file in val_images(folders)]
    (to / "val_annotations.txt").write_text("".join(lines))


def put_table_with_head(folders: Path, to: Path) -> None:
    lines = [f"{file.name},{file.stat().st_size},{file.parent.name}\n" for file in val_images(folders)]
    (to / "of_mine.csv").write_text("\ufefffilename,bytes,wnid\n" + "".join(reversed(lines)))


def put_any(folders: Path, to: Path) -> None:
    lines = [f"./some/val/{f.name}, {CLASSES.index(f.parent.name)}\r\n" for f in val_images(folders)]
    (to / "some list.txt").write_text("".join(reversed(lines)))
    (to / "README.txt").write_text("These are images.\n\nOf the year 2012, with labels.\n")


LABELS: dict[str, Callable[[Path, Path], None]] = {
    "ILSVRC2012_devkit_t12.tar.gz": put_devkit,
    "ILSVRC2012_devkit_t12/data": put_unpacked_devkit,
    "meta.bin": put_meta_bin,
    "LOC_val_solution.csv": put_kaggle_labels,
    "imagenet_2012_validation_synset_labels.txt": put_label_list,
    "val_labels.txt": put_named_labels,
    "val.txt": put_numbers,
    "meta/val.txt": put_numbers_in_meta,
    "val_annotations.txt": put_annotations,
    "any .csv with a head": put_table_with_head,
    "any .txt, .csv or .tsv": put_any,
}


def test_the_documentation_lists_the_tested_layouts() -> None:
    assert rows_of("images") == LAYOUTS.keys()
    assert rows_of("labels of validation images") == LABELS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(folders: Path, tmp_path: Path, layout: str) -> None:
    (tmp_path / "data").mkdir()
    index = scan([LAYOUTS[layout](folders, tmp_path / "data") or tmp_path / "data"], "header")
    plain = scan_folder(folders)
    assert same_images(index, plain)
    assert index.fingerprint == plain.fingerprint
    names = [[Path(name).stem for name in each.split("val").names.to_pylist()] for each in (index, plain)]
    assert names[0] == names[1]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if LAYOUTS[layout] is not single_tar])
def test_layouts_as_data_root(folders: Path, tmp_path: Path, layout: str) -> None:
    (tmp_path / "data").mkdir()
    LAYOUTS[layout](folders, tmp_path / "data")
    for _ in range(2):
        index = open_index(str(tmp_path / "data"), None, tmp_path / "cache", lambda done, total: None)
        assert index.fingerprint == scan_folder(folders).fingerprint
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("where", ["beside", "above", "named", "in a tar", "without train", "of all classes"])
def test_label_files(folders: Path, tmp_path: Path, labels: str, where: str) -> None:
    """Numbers are positions in a given list, or the labels themselves if there is no train/."""
    data = tmp_path / "data"
    data.mkdir()
    flat_val(folders, data)
    place = {"above": data, "named": tmp_path / "elsewhere"}.get(where, data / "val")
    place.mkdir(exist_ok=True)
    LABELS[labels](folders, place)
    sources = [data]
    if where == "named":
        wanted = ("truth.txt", "devkit_t12.tar.gz", ".bin", ".csv", "labels.txt", "val.txt", "tions.txt", "list.txt")
        sources += [file for file in place.rglob("*") if file.name.endswith(wanted)]
    if where in ("without train", "of all classes"):
        shutil.rmtree(data / "train")
    if where == "in a tar":
        (data / "val.tar").write_bytes(tar_of(flat(val_images(folders))))
        for file in val_images(folders):
            (data / "val" / file.name).unlink()
        for file in list(place.iterdir()):
            file.rename(data / file.name)
        place.rmdir()
    listed = None
    if where == "of all classes":
        listed = str(tmp_path / "wnids.txt")
        (tmp_path / "wnids.txt").write_text("\n".join(reversed(CLASSES)))
    index, plain = scan(sources, "header", classes=listed), scan_folder(folders)
    assert np.array_equal(index.split("val").label, plain.split("val").label)
    assert index.split("val").names.to_pylist()[0].endswith(plain.split("val").names.to_pylist()[0])
    numbered = LABELS[labels] in (put_numbers, put_numbers_in_meta, put_any) and where == "without train"
    assert index.classes == (("0", "1") if numbered else plain.classes)
    assert len(index.split("train")) == (0 if "train" not in os.listdir(data) else 24)


@pytest.mark.parametrize("in_tar", [False, True])
def test_changed_labels_are_read_again(folders: Path, tmp_path: Path, in_tar: bool) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders / "train", data / "train")
    (data / "val").mkdir()
    put_named_labels(folders, data)
    images = flat(val_images(folders))
    if in_tar:
        for split in ("train", "val"):
            shutil.rmtree(data / split)
        (data / "train.tar").write_bytes(
            tar_of([(str(f.relative_to(folders)), f.read_bytes()) for f in sorted(folders.glob("train/*/*"))])
        )
        (data / "val.tar").write_bytes(tar_of(images))
    else:
        for name, content in images:
            (data / "val" / name).write_bytes(content)

    def opened() -> dict[str, int]:
        return numbers_of(open_index(str(data), None, tmp_path / "cache", lambda done, total: None))

    scan([data], "header").save(tmp_path / "index")
    first = opened()
    text = (data / "val_labels.txt").read_text()
    (data / "val_labels.txt").write_text(
        text.replace(CLASSES[0], "x").replace(CLASSES[1], CLASSES[0]).replace("x", CLASSES[1])
    )
    assert opened() != first
    with pytest.raises(UserError, match=r"val_labels.txt has changed since index .* was made"):
        load(tmp_path / "index")


# Numbers of classes


def twelve(to: Path, split: str = "val", images: int = 22) -> list[tuple[str, int]]:
    """Writes images of classes 0 to 11 with distinct sizes: (name, number)."""
    from PIL import Image

    rows = []
    for number in range(images):
        file = to / split / f"image_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30)).save(file)
        rows.append((file.name, number % 12))
    return rows


def numbers_of(index: Index, split: str = "val") -> dict[str, int]:
    of = index.split(split)
    return dict(zip((Path(name).name for name in of.names.to_pylist()), of.label.tolist(), strict=True))


@pytest.mark.parametrize("in_tar", [False, True])
def test_numbers_without_class_names_are_labels(tmp_path: Path, in_tar: bool) -> None:
    """Sorted as text, 10 and 11 came before 2, and an error of 50 % was printed as 95 %."""
    rows = twelve(tmp_path / "data")
    (tmp_path / "data" / "val_labels.txt").write_text("".join(f"{name} {number}\n" for name, number in rows))
    if in_tar:
        files = [(file.name, file.read_bytes()) for file in (tmp_path / "data" / "val").iterdir()]
        (tmp_path / "data" / "val.tar").write_bytes(tar_of(files))
        shutil.rmtree(tmp_path / "data" / "val")
    index = scan([tmp_path / "data"], "header")
    assert index.classes == tuple(f"{number:02}" for number in range(12))
    assert numbers_of(index) == dict(rows)


def test_a_number_is_the_label_even_if_smaller_ones_have_no_images(tmp_path: Path) -> None:
    rows = twelve(tmp_path / "data")
    (tmp_path / "data" / "val_labels.txt").write_text("".join(f"{name} {3 + 2 * number}\n" for name, number in rows))
    index = scan([tmp_path / "data"], "header")
    assert len(index.classes) == 26
    assert numbers_of(index) == {name: 3 + 2 * number for name, number in rows}


def test_numbers_beside_folders_of_training_images(tmp_path: Path) -> None:
    """Numbers are positions among the sorted folder names, or the names if these are numbers."""
    rows = twelve(tmp_path / "data")
    (tmp_path / "data" / "val.txt").write_text("".join(f"{name} {number}\n" for name, number in rows))
    for kind, names in {
        "words": [f"class_{letter}" for letter in "abcdefghijkl"],
        "numbers": [str(number) for number in range(12)],
        "padded": [f"{number:03}" for number in range(12)],
    }.items():
        shutil.copytree(tmp_path / "data", tmp_path / kind)
        for name in names:
            shutil.copytree(tmp_path / "data" / "val", tmp_path / kind / "train" / name)
        index = scan([tmp_path / kind], "header")
        assert {name: index.classes[label] for name, label in numbers_of(index).items()} == {
            name: names[number] for name, number in rows
        }, kind
        assert any("class numbers are positions among 12" in note for note in index.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image_0.png 12\nimage_1.png 1\n", "an image has the class 12, but there are 12 classes counted from 0"),
        ("image_0.png 13\nimage_1.png 0\n", "an image has the class 13, but there are 12 classes;"),
        ("image_0.png -1\n", "class -1 is neither a name nor an integer from 0"),
        ("image_0.png 1.0\n", "class 1.0 is neither a name nor an integer from 0"),
        ("image_0.png 1\nval/image_0.png 2\n", "val.txt has no label for image_1.png"),
        ("image_0.png 1\nimage_0.png 2\n", "labels .* give image_0.png two classes"),
        ("image_0.png 1 2\n", "the class in 'image_0.png 1 2' is ambiguous"),
        ("image_0.png,1,7\n", "the class in 'image_0.png 1 7' is ambiguous"),
        ("filename,width,height\nimage_0.png,1,7\n", "is ambiguous"),
        ("3\n4\n", "numbers without names of images"),
        ("image_0.png\n", "'image_0.png' in a line is not a class"),
        ("", "it is empty"),
        ("image_0.png class_b\n", "val.txt has no label for image_1.png"),
    ],
)
def test_ambiguous_labels_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    twelve(tmp_path / "data", images=2)
    for letter in "abcdefghijkl":
        twelve(tmp_path / "data", f"train/class_{letter}", 1)
    (tmp_path / "data" / "val.txt").write_text(rows)
    with pytest.raises(UserError, match=message) as error:
        scan([tmp_path / "data"], "header")
    assert "\n" not in str(error.value)


def test_folders_with_numbers_as_names(tmp_path: Path) -> None:
    """ImageNet-V2 has folders 0 to 999: positions in a list with other names, or else names sorted as text."""
    for number in range(12):
        twelve(tmp_path, f"imagenetv2-val/{number}", 1)
    index = scan([tmp_path], "header")
    assert index.classes[:4] == ("0", "1", "10", "11")
    assert index.notes == ("class names are numbers, sorted as text: 0, 1, 10, 11, ...",)
    (tmp_path / "wnids.txt").write_text("\n".join(f"n{number:08}" for number in range(13)))
    index = scan([tmp_path], "header", classes=str(tmp_path / "wnids.txt"))
    split = index.split("val")
    assert {Path(split.name_of(image)).parent.name: label for image, label in enumerate(split.label.tolist())} == {
        str(number): number for number in range(12)
    }


def test_names_with_spaces_and_dots(tmp_path: Path) -> None:
    rows = {"a photo, mine.v1.png": "golden retriever", "a photo, mine.v2.png": "tench, Tinca tinca"}
    twelve(tmp_path / "data", images=2)
    for number, name in enumerate(rows):
        (tmp_path / "data" / "val" / f"image_{number}.png").rename(tmp_path / "data" / "val" / name)
    for form in ("{0} {1}", "{0}\t{1}", '"{0}","{1}"'):
        file = tmp_path / "data" / "labels.txt"
        file.write_text("".join(form.format(*row) + "\n" for row in rows.items()))
        index = scan([tmp_path / "data"], "header")
        assert {name: index.classes[label] for name, label in numbers_of(index).items()} == rows, form


def test_folders_distinguish_images_with_the_same_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        twelve(tmp_path / "tree" / "val", folder, 1)
        twelve(tmp_path / "tree" / "train", f"class_{folder}", 1)
    lines = [f"val/{folder}/image_0.png class_{folder}\n" for folder in ("one", "two")]
    (tmp_path / "val_labels.txt").write_text("".join(lines))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "tree", ".")
    index = scan([tmp_path / "all.tar", tmp_path / "val_labels.txt"], "header")
    named = zip(index.split("val").names.to_pylist(), index.split("val").label.tolist(), strict=True)
    assert {Path(name).parent.name: index.classes[label] for name, label in named} == {
        "one": "class_one",
        "two": "class_two",
    }


# Files that are not images, folders that are not classes


def test_files_of_systems_and_editors_are_not_images(folders: Path, tmp_path: Path) -> None:
    """`._X.JPEG` used to be undecodable images, and `.ipynb_checkpoints` a class."""
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    for file in sorted(data.rglob("*.JPEG")):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7 a Mac's")
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (data / "train" / folder).mkdir()
        shutil.copy(val_images(folders)[0], data / "train" / folder / "x-checkpoint.JPEG")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(data, ".")
    for source, left_out in ((data, 32 + 3), (tmp_path / "all.tar", 32 + 3)):
        index = scan([source], "header")
        assert index.fingerprint == scan_folder(folders).fingerprint
        assert index.classes == tuple(CLASSES)
        assert [note for note in index.notes if note.startswith(f"left out: {left_out} hidden files")], index.notes
        index.save(tmp_path / "index")
        assert load(tmp_path / "index").notes == index.notes == tuple(index.summary()["notes"])


@pytest.mark.parametrize("in_tar", [False, True])
def test_images_and_folders_outside_classes_are_counted(folders: Path, tmp_path: Path, in_tar: bool) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    shutil.copy(val_images(folders)[0], data / "train" / "loose.JPEG")
    (data / "train" / CLASSES[0] / "more").mkdir()
    shutil.copy(val_images(folders)[0], data / "train" / CLASSES[0] / "more" / "deep.JPEG")
    if in_tar:
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            tar.add(data, "data")
    index = scan([tmp_path / "all.tar" if in_tar else data], "header")
    assert index.fingerprint == scan_folder(folders).fingerprint
    assert sorted(re.sub(" as /.*/", " as ", note) for note in index.notes) == [
        "left out: 1 folders inside those of classes, such as more",
        "left out: 1 images of train beside the folders of classes, such as loose.JPEG",
    ]


def test_hard_links_in_a_tar_are_files_and_other_links_are_counted(folders: Path, tmp_path: Path) -> None:
    """tar stores the second name of a file as a link to the first."""
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    first, second, third = sorted((data / "train" / CLASSES[0]).iterdir())[:3]
    for file in (second, third):
        file.unlink()
    second.hardlink_to(first)
    third.symlink_to(first.name)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(data, "data")
    index = scan([tmp_path / "all.tar"], "header")
    split = index.split("train")
    names = [Path(name).name for name in split.names.to_pylist()]
    assert split.read(names.index(first.name)) == split.read(names.index(second.name)) == first.read_bytes()
    assert len(split) == 23
    assert [note for note in index.notes if note.startswith("left out: 1 links, sparse and special files")]
    assert len(scan_folder(data).split("train")) == 24, "links in a folder are followed"


def test_pipes_are_not_opened_and_broken_links_are_rejected(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    os.mkfifo(data / "train" / CLASSES[0] / "pipe.JPEG")
    (data / "train" / CLASSES[0] / "nowhere.JPEG").symlink_to("gone.JPEG")
    (data / "train" / CLASSES[0] / "loop.JPEG").symlink_to("loop.JPEG")
    index = scan_folder(data)
    assert index.split("train").rejected == 2
    assert [note for note in index.notes if note.startswith("left out: 1 pipes, sockets and devices")]


@pytest.mark.parametrize("in_tar", [False, True])
def test_names_that_are_not_utf_8_are_refused_before_decoding(
    folders: Path, tmp_path: Path, in_tar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    os.rename(os.fsencode(val_images(data)[0]), os.fsencode(val_images(data)[0].parent) + b"/gru\xe9.JPEG")
    if in_tar:
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            tar.add(data, ".")
    monkeypatch.setattr("vggrepro.data.images.scan.verify", None)
    with pytest.raises(UserError, match=r"gru\\udce9.JPEG has a name that is not UTF-8; rename it"):
        scan([tmp_path / "all.tar" if in_tar else data], "full")
    with pytest.raises(UserError, match="not UTF-8"):
        open_index(str(tmp_path / "data"), None, tmp_path / "cache", lambda done, total: None)


def test_a_repeated_sample_of_a_shard_is_refused(folders: Path, tmp_path: Path) -> None:
    """Shards with repeated samples used to lose 46 of 48 images."""
    members = []
    for file in sorted(folders.glob("train/*/*")):
        members += [("same.jpg", file.read_bytes()), ("same.cls", b"0")]
    (tmp_path / "train-0.tar").write_bytes(tar_of(members))
    (tmp_path / "val-0.tar").write_bytes(tar_of([("a.jpg", members[0][1]), ("a.cls", b"0")]))
    with pytest.raises(UserError, match=r"train-0.tar holds same.(jpg|cls) several times; give every sample"):
        scan([tmp_path], "header")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.cls of .* contains no class; write one into it"),
        (b"\0" * 9, "a.cls of .* contains no class; write one into it"),
        ("²".encode(), None),
        (b" 7\n", None),
        (b"x" * 2000, "a.cls is longer than"),
    ],
)
def test_contents_of_a_class_file(folders: Path, tmp_path: Path, content: bytes, message: str | None) -> None:
    image = val_images(folders)[0].read_bytes()
    (tmp_path / "val-0.tar").write_bytes(tar_of([("a.jpg", image), ("a.cls", content)]))
    if message:
        with pytest.raises(UserError, match=message):
            scan([tmp_path / "val-0.tar"], "header")
    else:
        index = scan([tmp_path / "val-0.tar"], "header")
        assert index.classes[index.split("val").label[0]] == content.decode().strip()


def test_archives_with_the_same_images_are_refused(folders: Path, tmp_path: Path) -> None:
    """ILSVRC2012_img_train_t3.tar repeats the dogs; a tar of a split may be beside the other split's folder."""
    archives(folders, tmp_path)
    shutil.copy(tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "ILSVRC2012_img_train_t3.tar")
    with pytest.raises(
        UserError, match=r"train.tar and .*train_t3.tar both hold n\d+_\d+.JPEG of class n\d+; name only one"
    ):
        scan([tmp_path], "header")
    (tmp_path / "ILSVRC2012_img_train_t3.tar").unlink()
    (tmp_path / "ILSVRC2012_img_val.tar").rename(tmp_path / "ILSVRC2012_img_test_v10102019.tar")
    shutil.copytree(folders / "val", tmp_path / "val")
    index = scan([tmp_path], "header")
    assert index.fingerprint == scan_folder(folders).fingerprint
    assert [note for note in index.notes if note.startswith("left out: 1 archives of a test set")]


# Folders near the right one


def test_a_fitting_folder_is_suggested(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "above" / "data")
    for wrong in ("above", "above/data/train", f"above/data/val/{CLASSES[0]}"):
        with pytest.raises(UserError, match=rf"give {re.escape(str(tmp_path / 'above' / 'data'))}, which does"):
            scan_folder(tmp_path / wrong)


def test_the_error_about_nested_folders_does_not_suggest_removal(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "data")
    shutil.copytree(folders / "train", tmp_path / "data" / "train" / "train")
    with pytest.raises(
        UserError, match=r"train/train holds folders \(n\d+\), no images; .* move what is in train"
    ) as error:
        scan_folder(tmp_path / "data")
    assert "remove it" not in str(error.value)


def test_two_folders_of_the_same_split_are_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "data")
    shutil.copytree(folders / "val", tmp_path / "data" / "validation")
    with pytest.raises(UserError, match="holds val and validation, both val by their names"):
        scan_folder(tmp_path / "data")


@pytest.mark.parametrize("in_tar", [False, True])
def test_the_only_folder_of_val_is_ambiguous(folders: Path, tmp_path: Path, in_tar: bool) -> None:
    """Tiny ImageNet's images used to be of a single class, `images`."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    shutil.copytree(folders / "val" / CLASSES[0], tmp_path / "data" / "val" / "images")
    source = tmp_path / "data"
    if in_tar:
        source = tmp_path / "val.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(tmp_path / "data", ".")
    with pytest.raises(
        UserError, match=r"the only folder of val: a class, or images of all classes\? Put a label file"
    ):
        scan([source], "header")
    (tmp_path / "names").write_text("images\nothers\n")
    assert scan([source], "header", classes=str(tmp_path / "names")).classes == ("images", "others")
    put_named_labels(folders, tmp_path if in_tar else tmp_path / "data")
    index = scan([source], "header")
    assert index.classes == tuple(CLASSES)
    assert set(index.split("val").label.tolist()) == {0}
    assert [note for note in index.notes if note.startswith("classes of validation images are those of ")]


def test_labels_that_contradict_folders_of_val(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val", tmp_path / "data" / "val")
    other = {CLASSES[0]: CLASSES[1], CLASSES[1]: CLASSES[0]}
    lines = [f"{file.name} {other[file.parent.name]}\n" for file in val_images(folders)]
    (tmp_path / "data" / "val_labels.txt").write_text("".join(lines))
    index = scan_folder(tmp_path / "data")
    assert (
        index.fingerprint == scan([folders / ".." / folders.name], "header").fingerprint
        or len(index.split("train")) == 0
    )
    assert np.array_equal(index.split("val").label, scan_folder(folders).split("val").label)
    assert index.notes == (f"{tmp_path / 'data' / 'val_labels.txt'} is not used: folders or archives name the classes",)


# Parquet tables


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"data_page_size": 20000, "write_page_checksum": True},
    ],
)
def test_tables_are_read_in_place_with_any_page_layout(
    folders: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    tables(folders, tmp_path, **options)
    assert same_images(scan([tmp_path], "full"), scan_folder(folders))


def test_class_names_come_from_the_schema_in_its_order(folders: Path, tmp_path: Path) -> None:
    tables(folders, tmp_path, names=("zebra", "ant, emmet"), with_wnids=False)
    index = scan([tmp_path], "header")
    assert index.classes == ("zebra", "ant, emmet")
    assert np.array_equal(index.split("val").label, scan_folder(folders).split("val").label)
    index.save(tmp_path / "index")
    assert same_images(load(tmp_path / "index"), index)
    (tmp_path / "wnids").write_text("\n".join(CLASSES))
    assert scan([tmp_path], "header", classes=str(tmp_path / "wnids")).classes == tuple(CLASSES)
    tables(folders, tmp_path / "unnamed", names=(), with_wnids=False)
    assert scan([tmp_path / "unnamed"], "header").classes == ("0", "1")


def test_compressed_tables_are_rewritten_once(folders: Path, tmp_path: Path) -> None:
    tables(folders, tmp_path, compression="snappy")
    with pytest.raises(UserError, match=r"parquet is compressed, not readable in place; .*`vggrepro repack`"):
        scan([tmp_path], "header")
    out, steps = tmp_path / "out", []
    repacked = repack([tmp_path / "data"], out, lambda done, total: steps.append((done, total)))
    assert [file.name for file in repacked] == sorted(file.name for file in (tmp_path / "data").iterdir())
    assert len(steps) == 6
    for file in repacked:
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "data" / file.name), check_metadata=True)
    assert same_images(scan([out], "header"), scan_folder(folders))
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=out, check=True, capture_output=True)


def test_an_interrupted_repack_resumes(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(folders, tmp_path, compression="zstd")
    out = tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if len((out / SUMS).read_text().splitlines()) == 2:
            raise Stop

    with pytest.raises(Stop):
        repack([tmp_path / "data"], out, stop)
    (out / ".train-00002.parquet").write_bytes(b"torn")
    then = {file.name: file.stat().st_mtime_ns for file in out.glob("[tv]*.parquet")}
    assert len(then) == 2
    repack([tmp_path / "data"], out, lambda done, total: None)
    now = {file.name: file.stat().st_mtime_ns for file in out.glob("[tv]*.parquet")}
    assert len(now) == 6
    assert then.items() <= now.items()
    assert same_images(scan([out], "header"), scan_folder(folders))


def test_invalid_tables_are_refused(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(folders, tmp_path, compression="snappy")
    data = tmp_path / "data"

    def refused(message: str, *sources: Path, out: Path = tmp_path / "out") -> None:
        with pytest.raises(UserError, match=message) as error:
            repack(sources, out, lambda done, total: None)
        assert "\n" not in str(error.value)

    refused("two tables are called train-00000", data / "train-00000-of-00003.parquet", data)
    refused("holds no .*parquet; name the folder", tmp_path)
    refused("--out .*data holds train-00000-of-00003.parquet itself", data, out=data)
    (tmp_path / "file").write_text("")
    refused("--out .*file cannot be written to", data, out=tmp_path / "file")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing")
    refused("x.parquet cannot be read as Parquet", tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    refused(r"x.parquet has the columns text, label; a table of images has image", tmp_path / "x.parquet")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, 5 << 20))
    monkeypatch.setattr("vggrepro.data.images.parquet._size", lambda table: 1 << 20)
    refused("has 5 MiB free, but 6 are needed", data)
    assert not (tmp_path / "out" / SUMS).exists()


def test_missing_tables_are_counted(folders: Path, tmp_path: Path) -> None:
    tables(folders, tmp_path)
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"not looked at")
    notes = " ".join(scan([tmp_path], "header").notes)
    assert "1 of 3 tables " in notes
    assert "train-* are missing, the first is number 1" in notes
    assert "left out: 1 archives of a test set" in notes
    shutil.copy(tmp_path / "data" / "train-00000-of-00003.parquet", tmp_path / "table.tar")
    with pytest.raises(
        UserError, match=r"table.tar is a Parquet table, not a tar archive; rename it to end in .parquet"
    ):
        scan([tmp_path / "table.tar"], "header")
    (tmp_path / "table.tar").unlink()
    rows = pq.read_table(tmp_path / "data" / "train-00000-of-00003.parquet")
    unlabelled = rows.set_column(1, "label", pa.array([-1] * len(rows)))
    pq.write_table(unlabelled, tmp_path / "data" / "train-00001-of-00003.parquet", compression="none")
    with pytest.raises(UserError, match=r"train-00001-of-00003.parquet: row 0 has no label"):
        scan([tmp_path], "header")


@pytest.mark.parametrize(
    ("magic", "program"),
    [(b"PK\x03\x04", "unzip"), (b"\x1f\x8b", "gunzip"), (b"BZh", "bunzip2"), (b"\xfd7zXZ", "unxz")],
)
def test_the_program_that_uncompresses_is_named(tmp_path: Path, magic: bytes, program: str) -> None:
    (tmp_path / "train.tar").write_bytes(magic + bytes(600))
    with pytest.raises(UserError, match=rf"train.tar is compressed, .* once \({program}\)"):
        scan([tmp_path / "train.tar"], "header")
    (tmp_path / "imagenet.zip").write_bytes(magic + bytes(600))
    with pytest.raises(UserError, match=rf"imagenet.zip is compressed, .* once \({program}\)"):
        scan([tmp_path / "imagenet.zip"], "header")


# Read-only folders


def test_a_read_only_folder_names_its_setting(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vggrepro.config.settings import Config
    from vggrepro.pipeline.session import open_session

    monkeypatch.setattr("vggrepro.files.os.access", lambda place, mode: False)
    index = open_index(str(folders), None, tmp_path / "cache", lambda done, total: None)
    assert index.fingerprint == scan_folder(folders).fingerprint
    assert not (tmp_path / "cache").exists()
    config = Config(model={"net": "A"}, run={"root": tmp_path / "runs"})
    with (
        pytest.raises(UserError, match=r"run.root=.*runs is not writable \(Permission denied\); set it to a folder"),
        open_session([config]),
    ):
        pass
