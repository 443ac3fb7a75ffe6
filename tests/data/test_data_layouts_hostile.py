"""Nearly valid labels, archives and tables give the right labels or an error, never a wrong label."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts_as_files import (
    LABELS,
    flat,
    flat_val,
    ilsvrc_archives,
    put_devkit,
    put_named_labels,
    put_unpacked_devkit,
    same_images,
    tar_of,
    val_images,
)
from test_data_layouts import CLASSES, numbers_of, tables

from vggrepro.data.images.index import Index
from vggrepro.data.images.parquet import SUMS, repack
from vggrepro.data.images.scan import open_index, scan, scan_folder
from vggrepro.errors import UserError

pytestmark = pytest.mark.usefixtures("inspected_in_process")
OF = {"0001.png": "cat", "0002.png": "dog", "0003.png": "eel"}
"""Classes of the images of `dataset`."""


@pytest.fixture
def dataset(folders: Path, tmp_path: Path) -> Path:
    """Three validation images in a folder so deep that nothing is above it."""
    root = tmp_path / "a" / "b" / "c" / "d" / "own"
    (root / "val").mkdir(parents=True)
    for name, image in zip(OF, val_images(folders), strict=False):
        shutil.copy(image, root / "val" / name)
    return root


def labelled(source: Path) -> dict[str, str]:
    scanned = scan([source], "header")
    return {name: scanned.classes[label] for name, label in numbers_of(scanned).items()}


def quiet(done: int, total: int) -> None: ...


def is_read(source: Path) -> bool:
    """Whether a source is accepted; otherwise it must be refused in one line."""
    try:
        scan([source], "header")
    except UserError as error:
        line = str(error)
    else:
        return True
    assert line.isprintable(), line
    return False


# Label files


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{name};{of}\n" for name, of in OF.items()),
        "image;label\n" + "".join(f"{name};{of}\n" for name, of in OF.items()),
        *(
            f"{head},{of}\n" + "".join(f"{name},{of}\n" for name, of in OF.items())
            for head, of in (("image_name", "label"), ("img", "class"), ("Image Name", "Class"), ("what", "label"))
        ),
        "".join(f'"{name}" "{of}"\n' for name, of in OF.items()),
        "".join(f"{name} {of}\n\n" for name, of in OF.items()),
        "".join(f"{name}\t{of}\t1\t2\t3\t4\n" for name, of in OF.items()),
        "".join(f"{name} {of} 1 2 3 4\n" for name, of in OF.items()),
        "".join(f"C:\\data\\val\\{name},{of}\n" for name, of in OF.items()),
        "".join(f"train/dog/{name} dog\n" for name in OF) + "".join(f"val/x/{name} {of}\n" for name, of in OF.items()),
    ],
)
def test_unambiguous_labels_are_read(dataset: Path, text: str) -> None:
    (dataset / "val_labels.csv").write_text(text)
    assert labelled(dataset) == OF


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("val.txt", "".join(f"{name}\n" for name in OF), "'0001.png' in a line is not a class"),
        ("val.txt", "cat\n\ndog\neel\n", "a line between others is empty"),
        ("val.txt", "cat;1\ndog;2\neel;3\n", "has no label for 0001.png"),
        ("captions.csv", "image,caption\n" + "".join(f"{name},a thing\n" for name in OF), "labels .* are missing"),
        ("sizes.csv", "filename,size\n" + "".join(f"{name},700\n" for name in OF), "labels .* are missing"),
        ("pred.txt", "".join(f"{name} 65 0.93\n" for name in OF), "labels .* are missing"),
        ("myval.txt", "cat\ndog\neel\n", "labels .* are missing"),  # unlike `val.txt`, this is not a known name
        ("trainLabels.csv", "id,label\n" + "".join(f"{name},{of}\n" for name, of in OF.items()), "are missing"),
        ("labels.csv", "".join(f"train/{of}/{name},{of}\n" for name, of in OF.items()), "labels .* are missing"),
        ("val.txt", "".join(f"{name} 1700000000\n" for name in OF), "class 1700000000, which is not a class number"),
        ("val.txt", "".join(f"{name} \0abc\n" for name in OF), "it is not text"),
    ],
)
def test_ambiguous_labels_are_a_single_line_error(dataset: Path, name: str, text: str, message: str) -> None:
    (dataset / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        scan([dataset], "header")
    assert "\n" not in str(error.value)


def test_the_nearest_label_file_is_taken_and_named(dataset: Path) -> None:
    """A list of ILSVRC's labels in a folder above used to label any images by the numbers in their names."""
    (dataset.parent / "imagenet_2012_validation_synset_labels.txt").write_text("n01751748\n" * 9)
    (dataset.parent / "val.txt").write_text("".join(f"{name} 7\n" for name in OF))
    (dataset / "labels.csv").write_text("".join(f"{name},{of}\n" for name, of in OF.items()))
    assert labelled(dataset) == OF
    assert scan([dataset], "header").notes == (f"classes of validation images are those of {dataset / 'labels.csv'}",)
    (dataset / "labels.csv").unlink()
    (dataset.parent / "val.txt").unlink()
    (dataset.parent / "imagenet_2012_validation_synset_labels.txt").rename(
        dataset.parent.parent / "imagenet_2012_validation_synset_labels.txt"
    )
    with pytest.raises(UserError, match=r"labels .* are missing"):
        scan([dataset], "header")


def test_images_with_the_same_number_need_names(dataset: Path) -> None:
    (dataset / "val_labels.txt").write_text("cat\ndog\neel\n")
    assert labelled(dataset) == OF
    shutil.copy(dataset / "val" / "0001.png", dataset / "val" / "another_1.png")
    with pytest.raises(UserError, match=r"2 images have the number 1, which identifies images in .*val_labels.txt"):
        scan([dataset], "header")


def test_contradicting_label_files_are_refused(dataset: Path) -> None:
    rows = [f"{name},{of}\n" for name, of in OF.items()]
    (dataset / "labels.csv").write_text("".join(rows))
    (dataset / "others.csv").write_text("".join([*rows[:-1], "0003.png,dog\n"]))
    with pytest.raises(UserError, match=r"labels.csv and .*others.csv give different classes; name the right one"):
        scan([dataset], "header")
    scanned = scan([dataset, dataset / "others.csv"], "header")
    assert {name: scanned.classes[label] for name, label in numbers_of(scanned).items()} == OF | {"0003.png": "dog"}


def test_folders_on_disk_distinguish_images_with_the_same_name(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders / "train", data / "train")
    lines = []
    for folder, wnid in zip(("one", "two"), CLASSES, strict=True):
        (data / "val" / folder).mkdir(parents=True)
        shutil.copy(val_images(folders)[0], data / "val" / folder / "1.jpg")
        lines.append(f"val/{folder}/1.jpg,{wnid}\n")
    (data / "labels.csv").write_text("".join(lines))
    scanned = scan_folder(data)
    split = scanned.split("val")
    assert {Path(split.name_of(image)).parent.name: scanned.classes[split.label[image]] for image in (0, 1)} == dict(
        zip(("one", "two"), CLASSES, strict=True)
    )


@pytest.mark.parametrize("put_labels", LABELS)
def test_names_on_a_hub_end_with_their_wnid(
    folders: Path, tmp_path: Path, put_labels: Callable[[Path, Path], None]
) -> None:
    flat_val(folders, tmp_path)
    for file in (tmp_path / "val").iterdir():
        file.rename(file.with_name(f"{file.stem}_{CLASSES[0]}.JPEG"))
    put_labels(folders, tmp_path)
    assert scan_folder(tmp_path).split("val").label.tolist() == scan_folder(folders).split("val").label.tolist()


def test_a_new_label_file_with_precedence_renews_the_scan(folders: Path, tmp_path: Path) -> None:
    def swapped(index: Index) -> bool:
        return numbers_of(index) == {name: 1 - number for name, number in plain.items()}

    def opened() -> Index:
        return open_index(str(tmp_path), None, tmp_path / "cache", quiet)

    ilsvrc_archives(folders, tmp_path)
    put_named_labels(folders, tmp_path)
    (tmp_path / "val_labels.txt").rename(tmp_path / "some_labels.txt")
    plain = numbers_of(opened())
    put_named_labels(folders, tmp_path)
    text = (tmp_path / "val_labels.txt").read_text()
    for old, new in ((CLASSES[0], "x"), (CLASSES[1], CLASSES[0]), ("x", CLASSES[1])):
        text = text.replace(old, new)
    (tmp_path / "some_labels.txt").unlink()
    (tmp_path / "val_labels.txt").write_text(text)
    assert swapped(opened())
    (tmp_path / "val_labels.txt").unlink()
    put_unpacked_devkit(folders, tmp_path)
    assert not swapped(opened())
    meta = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    content = meta.read_bytes()
    wide = CLASSES[0].encode("utf-16-le") in content
    first, second = (name.encode("utf-16-le" if wide else "ascii") for name in CLASSES)
    none = b"?" * len(first)
    meta.write_bytes(content.replace(first, none).replace(second, first).replace(none, second))
    assert swapped(opened())
    meta.unlink()
    with pytest.raises(UserError, match=r"validation_ground_truth.txt needs .*meta.mat beside it"):
        opened()


# Archives


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: tar[: tar.rindex(b"\xff\xd9") // 512 * 512 + 512] , "is cut off at byte"),
        (lambda tar: tar[: tar.rindex(b"\xff\xd9") // 512 * 512 + 600], "is cut off at byte"),
        (lambda tar: tar + tar, "is damaged, or holds several archives, at byte"),
        (lambda tar: tar[:5120] + bytes(len(tar) - 5120), "is damaged|is cut off|several archives"),
        (lambda tar: tar + bytes(2 << 20), "is damaged, or holds several archives, at byte"),
        (lambda tar: tar[:124] + b"\xff" * 11 + b"\0" + tar[136:], "is damaged|is not a tar archive"),
        (lambda tar: b"", "is cut off|is not a tar archive"),
    ],
)  # fmt: skip
def test_incomplete_archives(folders: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    members = [(str(file.relative_to(folders)), file.read_bytes()) for file in sorted(folders.rglob("*.JPEG"))]
    (tmp_path / "all.tar").write_bytes(damage(tar_of(members)))
    with pytest.raises(UserError, match=message) as error:
        scan([tmp_path / "all.tar"], "header")
    assert "\n" not in str(error.value)


def test_damaged_headers_neither_hang_nor_end_in_a_traceback(folders: Path, tmp_path: Path) -> None:
    """Changes bytes of headers in 1,500 tars, and corrects the checksums."""
    draw = random.Random(0)
    members = [(f"train/{'x' * 150}/{number}.jpg", b"x" * 10) for number in range(3)]
    tar = bytearray(tar_of([*members, ("val/x/1.jpg", b"x")]))
    headers = [at for at in range(0, len(tar), 512) if tar[at + 257 : at + 262] == b"ustar"]
    refused = 0
    for _ in range(1500):
        damaged = bytearray(tar)
        at = draw.choice(headers)
        field, size = draw.choice([(124, 12), (156, 1), (0, 100), (100, 8), (345, 155), (136, 12)])
        for _ in range(draw.randint(1, 4)):
            damaged[at + field + draw.randrange(size)] = draw.choice(
                [0, 0x20, 0x30, 0x37, 0x80, 0xFF, draw.randrange(256)]
            )
        damaged[at + 148 : at + 156] = b" " * 8
        damaged[at + 148 : at + 156] = b"%06o\0 " % sum(damaged[at : at + 512])
        (tmp_path / "a.tar").write_bytes(damaged)
        refused += not is_read(tmp_path / "a.tar")
    assert refused > 300


def test_names_of_links_to_hashes_are_used(folders: Path, tmp_path: Path) -> None:
    """Caches of hubs and git-annex store such links."""
    store, data = tmp_path / "store", tmp_path / "data"
    store.mkdir()
    tables(folders, tmp_path / "hub")
    flat_val(folders, data)
    put_devkit(folders, data)
    for folder in sorted((data / "train").iterdir()):
        (store / f"SHA-{folder.name[::-1]}").write_bytes(tar_of(flat(sorted(folder.iterdir()))))
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.tar").symlink_to(store / f"SHA-{folder.name[::-1]}")
    for number, table in enumerate(sorted((tmp_path / "hub" / "data").iterdir())):
        table.rename(store / f"blob{number}")
        table.symlink_to(store / f"blob{number}")
    for source in (data, tmp_path / "hub"):
        assert same_images(scan([source], "header"), scan_folder(folders)), source
    repacked = repack([tmp_path / "hub" / "data"], tmp_path / "out", quiet)
    assert {file.name for file in repacked} == {file.name for file in (tmp_path / "hub" / "data").iterdir()}
    assert same_images(scan([tmp_path / "out"], "header"), scan_folder(folders))


def test_further_images_of_a_sample_are_counted(folders: Path, tmp_path: Path) -> None:
    image = val_images(folders)[0].read_bytes()
    (tmp_path / "val-0.tar").write_bytes(tar_of([("a.jpg", image), ("a.seg.png", image), ("a.cls", b"cat")]))
    scanned = scan([tmp_path / "val-0.tar"], "header")
    assert len(scanned.split("val")) == 1
    assert [note for note in scanned.notes if note.startswith("left out: 1 further images of samples")]


def test_files_without_an_image_suffix_are_counted(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    first, second, third = sorted((data / "train" / CLASSES[0]).iterdir())[:3]
    first.rename(first.with_suffix(".avif"))
    second.rename(second.with_suffix(""))
    third.rename(third.with_suffix(".jfif"))
    for number in range(5):
        shutil.copy(val_images(folders)[0], data / "train" / f"loose_{number}.JPEG")
    scanned = scan_folder(data)
    assert len(scanned.split("train")) == 22
    assert [note.split(", such as")[0] for note in scanned.notes] == [
        "left out: 5 images of train beside the folders of classes",
        "left out: 2 files without the suffix of an image",
    ]


# Tables


def test_ambiguous_class_names_in_a_schema_are_ignored(folders: Path, tmp_path: Path) -> None:
    """ImageNet has two cranes."""
    tables(folders, tmp_path, names=("crane", "crane"), with_wnids=False)
    scanned = scan([tmp_path], "header")
    assert scanned.classes == ("0", "1")
    assert scanned.split("val").label.tolist() == scan_folder(folders).split("val").label.tolist()


def test_a_class_list_must_contain_the_classes_of_tables(folders: Path, tmp_path: Path) -> None:
    tables(folders, tmp_path, names=tuple(CLASSES), with_wnids=False)
    (tmp_path / "list").write_text("\n".join(["n00000001", *CLASSES, "n99999999"]))
    scanned = scan([tmp_path], "header", classes=str(tmp_path / "list"))
    assert [scanned.classes[label] for label in scanned.split("val").label] == [
        CLASSES[label] for label in scan_folder(folders).split("val").label
    ]
    (tmp_path / "list").write_text("\n".join(["a", "b", "c"]))
    with pytest.raises(UserError, match=r"the tables name 2 classes \(n\d+, ...\) that differ from --classes"):
        scan([tmp_path], "header", classes=str(tmp_path / "list"))


def test_repacked_tables_of_other_sources_are_not_reused(folders: Path, tmp_path: Path) -> None:
    tables(folders, tmp_path / "a", compression="snappy")
    tables(folders, tmp_path / "b", compression="snappy", names=("x", "y"))
    out = tmp_path / "out"
    repacked = repack([tmp_path / "a" / "data"], out, quiet)
    with pytest.raises(UserError, match=r"--out .*out holds .*parquet of .*/a/data/.*parquet; name another folder"):
        repack([tmp_path / "b" / "data"], out, quiet)
    (out / SUMS).write_bytes(b"\xff no sums")
    os.truncate(repacked[0], repacked[0].stat().st_size // 2)
    shutil.copy(tmp_path / "b" / "data" / repacked[1].name, tmp_path / "a" / "data" / repacked[1].name)
    steps: list[int] = []
    repack([tmp_path / "a" / "data"], out, lambda done, total: steps.append(done))
    assert len(steps) == 2
    for file in repacked:
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "a" / "data" / file.name), check_metadata=True)
    assert len((out / SUMS).read_text().splitlines()) == len(repacked)


@pytest.mark.parametrize(
    "rows",
    [
        {"image": [{"bytes": b"x", "path": 3}], "label": [1]},
        {"image": [{"bytes": [1, 2], "path": "x"}], "label": [1]},
        {"image": [b"x"], "label": [1]},
        {"image": [{"bytes": b"x", "path": "x"}], "label": ["cat"]},
        {"image": [{"bytes": b"x", "path": "x"}], "label": [0.5]},
        {"img": [{"bytes": b"x", "path": "x"}], "label": [0]},
    ],
)
def test_tables_with_other_columns_are_refused(tmp_path: Path, rows: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(rows), tmp_path / "train-0.parquet", compression="none")
    with pytest.raises(UserError, match=r"has the columns .*label; a table of images has image = \{bytes, path\}"):
        scan([tmp_path / "train-0.parquet"], "header")


def test_damaged_tables_are_a_single_line_error(folders: Path, tmp_path: Path) -> None:
    """Changes bytes of columns only: a damaged footer may crash the C++ reader."""
    tables(folders, tmp_path)
    draw = random.Random(0)
    file = tmp_path / "data" / "train-00000-of-00003.parquet"
    intact = file.read_bytes()
    footer = len(intact) - 8 - int.from_bytes(intact[-8:-4], "little")
    for _ in range(200):
        damaged = bytearray(intact)
        for _ in range(3):
            damaged[draw.randrange(footer)] = draw.randrange(256)
        file.write_bytes(damaged)
        is_read(tmp_path)
    for content in (b"", b"PAR1", intact[:1000], intact[:-9], json.dumps({}).encode()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as Parquet"):
            scan([tmp_path], "header")
