"""PASCAL VOC as distributed: folders and tars are the same data set, and mistakes are errors in one line."""

import io
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from boxes_as_files import tar_of
from PIL import Image

from vggrepro.data.transfer.transfer_scan import list_transfer, open_transfer
from vggrepro.data.transfer.transfer_set import Drawing, TransferSet
from vggrepro.errors import UserError

pytestmark = pytest.mark.usefixtures("inspected_in_process")

Files = dict[str, bytes]
SEED_0 = Drawing(seed=0, splits=1, train_per_class=2, test_per_class=None)
LABELS_2007 = {
    "train": {"000005": (1, -1), "000007": (-1, 1), "000009": (0, 1)},
    "val": {"000012": (1, 1), "000016": (-1, 1)},
    "test": {"000001": (-1, 1), "000002": (0, -1), "000004": (1, -1)},
}
"""Labels of cat and dog."""
TRAIN_2012 = [f"2008_{number:06d}" for number in range(1, 11)]
LABELS_2012 = {
    "train": {image: (1, -1) if number % 3 else (-1, 0) for number, image in enumerate(TRAIN_2012)},
    "val": {"2007_000032": (1, -1), "2011_000007": (-1, 1)},
}
TEST_2012 = ["2008_000018", "2011_000021"]
PERSONS = {
    "train": {image: 1 + number % 3 for number, image in enumerate(TRAIN_2012)},
    "val": {"2007_000032": 2, "2011_000007": 1},
    "test": {"2008_000018": 2, "2011_000021": 1},
}
ACTIONS = ("jumping", "other")


def jpeg(image: str) -> bytes:
    """Builds an image of unique colour, 30 to 39 px wide, 25 to 34 px high."""
    number = int(image[-6:])
    buffer = io.BytesIO()
    size = (30 + number % 10, 25 + number * 7 % 10)
    Image.new("RGB", size, (number % 256, number // 256 % 256, int(image[:4]) % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def xml(image: str, persons: int) -> bytes:
    """Builds the annotation of a chair, then of persons with boxes and heads, as in VOC 2012."""
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    objects = "".join(
        f"<object>{parts}<name>{'person'}</name><actions><jumping>1</jumping></actions>"
        f"<bndbox><xmax>{20 + number}.5</xmax><xmin>{number}</xmin><ymax>18</ymax><ymin>3.25</ymin></bndbox></object>"
        for number in range(1, persons + 1)
    )
    return f"<annotation><filename>{image}.jpg</filename>{objects}</annotation>".encode()


def set_files(labels: Mapping[str, Mapping[str, tuple[int, ...]]], classes: tuple[str, ...]) -> Files:
    """Builds ImageSets/Main, with VOC's lists of all images and trainval."""
    files: Files = {}
    for part, of_image in labels.items():
        for place, name in enumerate(classes):
            lines = "".join(f"{image} {labels_of_image[place]:2d}\n" for image, labels_of_image in of_image.items())
            files[f"ImageSets/Main/{name}_{part}.txt"] = lines.encode()
            if part != "test":
                together = files.get(f"ImageSets/Main/{name}_trainval.txt", b"")
                files[f"ImageSets/Main/{name}_trainval.txt"] = together + lines.encode()
        files[f"ImageSets/Main/{part}.txt"] = "".join(f"{image}\n" for image in of_image).encode()
    return files


def write_voc2007() -> tuple[Files, Files]:
    """Returns the files of VOC2007's archives, trainval and test."""
    both = []
    for parts in (("train", "val"), ("test",)):
        files = set_files({part: LABELS_2007[part] for part in parts}, ("cat", "dog"))
        for image in (image for part in parts for image in LABELS_2007[part]):
            files[f"JPEGImages/{image}.jpg"] = jpeg(image)
            files[f"Annotations/{image}.xml"] = xml(image, 1)
        both.append(files)
    both[0]["JPEGImages/000099.jpg"] = jpeg("000099")  # in no set
    both[0]["SegmentationClass/000005.png"] = b"none of ours"
    return both[0], both[1]


def voc2012() -> tuple[Files, Files]:
    """Returns the files of VOC2012's archives; test has no labels."""
    trainval, test = set_files(LABELS_2012, ("cat", "dog")), {}
    test["ImageSets/Main/test.txt"] = "\n".join(TEST_2012).encode()
    test["ImageSets/Main/cat_test.txt"] = "\n".join(TEST_2012).encode()
    for part, persons in PERSONS.items():
        files = test if part == "test" else trainval
        keys = [f"{image}  {person}" for image, count in persons.items() for person in range(1, count + 1)]
        files[f"ImageSets/Action/{part}.txt"] = "\n".join(keys).encode()
        for place, action in enumerate(ACTIONS if part != "test" else ()):
            lines = [f"{key} {1 if number % 2 == place else -1}" for number, key in enumerate(keys)]
            files[f"ImageSets/Action/{action}_{part}.txt"] = "\r\n".join(lines).encode()
        for image, count in persons.items():
            files[f"JPEGImages/{image}.jpg"] = jpeg(image)
            files[f"Annotations/{image}.xml"] = xml(image, count)
    return trainval, test


def put(files: Files, folder: Path) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def put_tar(files: Files, year: str, tar: Path) -> Path:
    tar.parent.mkdir(exist_ok=True)
    tar.write_bytes(tar_of([(f"VOCdevkit/VOC{year}/{path}", content) for path, content in reversed(files.items())]))
    return tar


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both years, unpacked into the same devkit."""
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    for year, parts in (("2007", write_voc2007()), ("2012", voc2012())):
        for files in parts:
            put(files, root / f"VOC{year}")
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four archives in a folder."""
    root = tmp_path_factory.mktemp("tars")
    for year, names in (
        ("2007", ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar")),
        ("2012", ("VOCtrainval_11-May-2012.tar", "VOC2012test.tar")),
    ):
        for files, name in zip({"2007": write_voc2007, "2012": voc2012}[year](), names, strict=True):
            put_tar(files, year, root / name)
    return root


def opened(name: str, source: Path, cache: Path, seed: int = 0) -> TransferSet:
    return open_transfer(name, source, Drawing(seed, 1, 2, None), cache)


def named(data: TransferSet, rows: np.ndarray) -> list[str]:
    return [data.names[row] for row in rows]


def test_voc2007(devkit: Path, cache: Path) -> None:
    """torchvision finds the same ids, but needs extracted files and has no offsets."""
    from torchvision.datasets import VOCDetection

    data = opened("voc2007", devkit, cache)
    assert (data.classes, data.measure, data.boxes, data.submission) == (("cat", "dog"), "mAP11", None, None)
    (partition,) = data.partitions
    for part, rows in (("train", partition.fit), ("val", partition.validation), ("test", partition.test)):
        usual = VOCDetection(str(devkit.parent), year="2007", image_set=part)
        assert named(data, rows) == [Path(file).stem for file in usual.images] == list(LABELS_2007[part])
        assert data.targets[rows].tolist() == [list(labels) for labels in LABELS_2007[part].values()]
        for row, file in zip(rows, usual.images, strict=True):
            assert data.index.split("val").read(int(data.image[row])) == Path(file).read_bytes()
    assert len(data.index.split("val")) == len(data.names) == 8  # without 000099
    assert data.targets.dtype == np.int8


def test_voc2012(devkit: Path, cache: Path) -> None:
    data = opened("voc2012", devkit, cache)
    (partition,) = data.partitions
    assert data.measure == "mAP"
    assert sorted(named(data, partition.train)) == TRAIN_2012
    assert len(partition.validation) == 2
    assert named(data, partition.test) == list(LABELS_2012["val"])
    assert data.submission is not None
    assert named(data, data.submission.fit) == TRAIN_2012
    assert named(data, data.submission.validation) == list(LABELS_2012["val"])
    assert named(data, data.submission.test) == TEST_2012
    assert not data.targets[data.submission.test].any()
    labels = LABELS_2012["train"] | LABELS_2012["val"]
    for row in np.concatenate([partition.train, partition.test]):
        assert tuple(data.targets[row]) == labels[data.names[row]]
    assert named(data, partition.validation) == ["2008_000006", "2008_000007"]
    drawn = {tuple(opened("voc2012", devkit, cache, seed).partitions[0].validation) for seed in range(6)}
    assert len(drawn) > 3


def test_actions(devkit: Path, cache: Path) -> None:
    """Boxes equal torchvision's; VOC's first pixel is 1. Persons with another action belong to no class."""
    from torchvision.datasets import VOCDetection

    data = opened("voc2012_action", devkit, cache)
    (partition,) = data.partitions
    assert data.classes == ("jumping",)
    assert data.boxes is not None
    usual = VOCDetection(str(devkit.parent), year="2012", image_set="val")
    annotations = {Path(file).stem: usual[row][1]["annotation"]["object"] for row, file in enumerate(usual.images)}
    assert named(data, partition.test) == ["2007_000032 1", "2007_000032 2", "2011_000007 1"]
    for row in partition.test:
        image, number = data.names[row].split()
        box = {side: float(text) for side, text in annotations[image][int(number) - 1]["bndbox"].items()}
        assert data.boxes[row].tolist() == [box["xmin"] - 1, box["ymin"] - 1, box["xmax"], box["ymax"]]
    val, fit = ({data.names[row].split()[0] for row in rows} for rows in (partition.validation, partition.fit))
    assert (len(val), len(fit), val & fit) == (2, 8, set())
    assert len(partition.train) == sum(PERSONS["train"].values())
    assert data.submission is not None
    assert named(data, data.submission.test) == ["2008_000018 1", "2008_000018 2", "2011_000021 1"]
    assert not data.targets[data.submission.test].any()
    assert data.targets[partition.test].tolist() == [[1], [-1], [1]]
    assert len(data.index.split("val")) == 14
    assert len(data.boxes_fingerprint) == 64


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "voc2012_action"])
def test_all_layouts_are_the_same_data_set(name: str, devkit: Path, tars: Path, cache: Path, tmp_path: Path) -> None:
    year = name[3:7]
    files = {"2007": write_voc2007, "2012": voc2012}[year]()
    apart = tmp_path / "apart"  # as on Kaggle
    for part, content in zip(("trainval", "test"), files, strict=True):
        put(content, apart / f"VOC{part}_06-Nov-{year}" / "VOCdevkit" / f"VOC{year}")
    renamed = tmp_path / "mine"
    for content in files:
        put(content, renamed)
    half = tmp_path / "half"  # an archive unpacked, the other not
    put(files[0], half / "VOCdevkit" / f"VOC{year}")
    put_tar(files[1], year, half / f"VOCtest-{year}.tar")
    single_tar = put_tar(files[0] | files[1], year, tmp_path / "one.tar")
    data = opened(name, devkit, cache)
    for source in (devkit.parent, devkit / f"VOC{year}", tars, apart, renamed, half, single_tar):
        other = opened(name, source, cache)
        assert other.fingerprint == data.fingerprint, source
        assert other.boxes_fingerprint == data.boxes_fingerprint
        assert np.array_equal(other.targets, data.targets)
        assert list(other.names) == list(data.names)
        assert np.array_equal(other.partitions[0].validation, data.partitions[0].validation)
        assert other.index.split("val").read(3) == data.index.split("val").read(3)
        assert list_transfer(name, source, SEED_0) == (len(data.classes), len(data.index.split("val")), len(data.image))


def test_without_test_images_nothing_is_submitted(cache: Path, tmp_path: Path) -> None:
    trainval, test = voc2012()
    data = opened("voc2012", put(trainval, tmp_path / "VOC2012"), cache)
    assert data.submission is None
    assert len(data.names) == 12
    put({path: content for path, content in test.items() if not path.endswith("/test.txt")}, tmp_path / "VOC2012")
    extended = opened("voc2012", tmp_path, cache)
    assert extended.submission is not None
    assert named(extended, extended.submission.test) == TEST_2012


MAIN, ACTION = "ImageSets/Main/", "ImageSets/Action/"
TRAINVAL_2007, TEST_2007 = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"
TRAINVAL_2012 = "VOCtrainval_11-May-2012.tar"
Spoil = Callable[[Files], object]


def without(*starts: str) -> Spoil:
    def spoil(files: Files) -> None:
        for path in [path for path in files if path.startswith(starts)]:
            del files[path]

    return spoil


def changed(path: str, old: bytes, new: bytes) -> Spoil:
    def spoil(files: Files) -> None:
        assert old in files[path]
        files[path] = files[path].replace(old, new, 1)

    return spoil


HEAD = f"{ACTION}jumping_train.txt"
FIRST_XML = "Annotations/2008_000001.xml"
MALFORMED: list[tuple[str, Spoil, str]] = [
    ("voc2007", without(MAIN), f"ImageSets/Main of .* has no image sets .*; add {TRAINVAL_2007}"),
    ("voc2007", without(f"{MAIN}cat_test", f"{MAIN}dog_test"), f"no image set test .*; add {TEST_2007}"),
    ("voc2007", without(f"{MAIN}cat_val"), f"has no cat_val.txt; restore it from {TRAINVAL_2007}"),
    ("voc2007", without(f"{MAIN}dog_test"), f"has no dog_test.txt; restore it from {TEST_2007}"),
    ("voc2007", without(f"{MAIN}dog_tra"), "has no dog_train.txt; restore it"),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"16 -1", b"16 2"), "cat_val.txt:2: label 2 must be -1, 0 or 1; "),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"16 -1", b"16"), "cat_val.txt:2: `000016` is not `id label`; restore"),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"16 -1", b"16 -1 1"), "cat_val.txt:2: `000016 -1 1` is not `id label`"),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"000016", b"000012"), "val.txt:2: image 000012 is named twice, first"),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"000016", b"000018"), "cat_val.txt has no image 000016, .*dog_val.txt"),
    ("voc2007", changed(f"{MAIN}dog_val.txt", b"000016  1\n", b""), "dog_val.txt has no image 000016, .*cat_val.txt h"),
    ("voc2007", changed(f"{MAIN}cat_val.txt", b"16 -1", b"16 \xff"), "cat_val.txt:2: not UTF-8; restore the file"),
    ("voc2007", lambda files: files.update({f"{MAIN}cat_val.txt": b"", f"{MAIN}dog_val.txt": b"\n"}), "val is empty"),
    (
        "voc2007",
        lambda files: [changed(f"{MAIN}{name}_val.txt", b"000016", b"000005")(files) for name in ("cat", "dog")],
        "cat_val.txt:2: image 000005 is also in set train .*cat_train.txt:1.*; restore",
    ),
    (
        "voc2007",
        without("JPEGImages/000016"),
        f"cat_val.txt:2: image 000016 is not in JPEGImages .*add {TRAINVAL_2007}",
    ),
    ("voc2007", without("JPEGImages/000004"), f"cat_test.txt:3: image 000004 is not in JPEGImages .*add {TEST_2007}"),
    (
        "voc2007",
        lambda files: files.update({"JPEGImages/000016.jpg": b"torn", "JPEGImages/000002.jpg": b""}),
        "2 images of .* cannot be used, first .*000002.jpg .*; replace or remove them",
    ),
    ("voc2012", without("JPEGImages/2011_000021"), "test.txt:2: image 2011_000021 is not in .*add VOC2012test.tar"),
    ("voc2012", changed(f"{MAIN}test.txt", b"2011_000021", b"a b c"), "test.txt:2: `a b c` is not `id`; restore"),
    ("voc2012_action", without(ACTION), f"ImageSets/Action of .* has no image sets .*; add {TRAINVAL_2012}"),
    ("voc2012_action", changed(HEAD, b"  1 1", b"  0 1"), "jumping_train.txt:1: 0 must be an object's number"),
    ("voc2012_action", changed(HEAD, b"  1 1", b"  x 1"), "jumping_train.txt:1: x must be an object's number"),
    ("voc2012_action", changed(HEAD, b"  1 1", b" 1"), "train.txt:1: `2008_000001 1` is not `id number label`; resto"),
    (
        "voc2012_action",
        lambda files: [
            changed(f"{ACTION}{name}_train.txt", b"2008_000001  1", b"2008_000001  7")(files) for name in ACTIONS
        ],
        "jumping_train.txt:1: person 7 is not in .*2008_000001.xml, which has 1 objects; restore both",
    ),
    ("voc2012_action", without(FIRST_XML), "train.txt:1: Annotations has no 2008_000001.xml with person 1's box"),
    (
        "voc2012_action",
        changed(FIRST_XML, b"</annotation>", b""),
        "2008_000001.xml: torn or invalid XML; restore it fr",
    ),
    (
        "voc2012_action",
        changed(FIRST_XML, b"<annotation>", b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>'),
        "2008_000001.xml: declares a DTD or entities; restore it",
    ),
    (
        "voc2012_action",
        lambda files: files.update({FIRST_XML: b" " * (2 << 20)}),
        "2008_000001.xml is longer than 1 MiB",
    ),
    (
        "voc2012_action",
        changed(FIRST_XML, b"<xmin>1</xmin><ymax", b"<xmin>90</xmin><ymax"),
        "box 90 3.25 21.5 18 of object 1 is inverted; ",
    ),
    (
        "voc2012_action",
        lambda files: files.update(
            {FIRST_XML: files[FIRST_XML].replace(b"21.5", b"99").replace(b">1</xmin><ymax", b">80</xmin><ymax")}
        ),
        "2008_000001.xml: box 80 3.25 99 18 of object 1 is outside the image of 31x32 px; restore",
    ),
    (
        "voc2012_action",
        changed(FIRST_XML, b"<ymin>3.25<", b"<ymin>19<"),
        "box 1 19 21.5 18 of object 1 is empty|invert",
    ),
    ("voc2012_action", changed(FIRST_XML, b"<ymin>3.25</ymin>", b""), "of object 1 is not four numbers; restore the f"),
]


@pytest.mark.parametrize(
    ("name", "spoil", "message"), MALFORMED, ids=[f"{n}-{message[:30]}" for n, (_, _, message) in enumerate(MALFORMED)]
)
def test_mistakes_are_single_line_errors(name: str, spoil: Spoil, message: str, cache: Path, tmp_path: Path) -> None:
    year = name[3:7]
    trainval, test = {"2007": write_voc2007, "2012": voc2012}[year]()
    files = trainval | test
    spoil(files)
    with pytest.raises(UserError, match=message) as error:
        opened(name, put(files, tmp_path / f"VOC{year}"), cache)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError) as of_tar:
        opened(name, put_tar(files, year, tmp_path / "voc.tar"), cache)
    assert re.sub(r"\S*/", "", str(of_tar.value)).replace("voc.tar", f"VOC{year}") == re.sub(
        r"\S*/", "", str(error.value)
    )


def test_other_years_and_unknown_years_are_refused(devkit: Path, tars: Path, cache: Path, tmp_path: Path) -> None:
    trainval, test = voc2012()
    for name, source, message in (
        ("voc2007", devkit / "VOC2012", "holds VOC2012, not VOC2007; give VOCdevkit/VOC2007, or VOCtrainval_06"),
        ("voc2012", tars / TRAINVAL_2007, "holds VOC2007, not VOC2012; give VOCdevkit/VOC2012, or VOCtrainval_11"),
        ("voc2007", put(trainval | test, tmp_path / "mine"), "image 2008_000001 is not from VOC2007; give VOC2007, or"),
        ("voc2012", tmp_path / "not\nthere", "does not exist; give VOCdevkit, or a folder with VOCtrainval_11-May"),
        ("voc2012", cache, "holds nothing of PASCAL VOC, not VOC2012; give"),
    ):
        with pytest.raises(UserError, match=message) as error:
            opened(name, source, cache)
        assert "\n" not in str(error.value)


def test_the_missing_archive_is_named(tars: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no image set test .*; add {TEST_2007}"):
        opened("voc2007", tars / TRAINVAL_2007, cache)
    with pytest.raises(UserError, match=f"no image set train .*; add {TRAINVAL_2007}"):
        opened("voc2007", tars / TEST_2007, cache)
    with pytest.raises(UserError, match=f"has no image sets .*; add {TRAINVAL_2012}"):
        opened("voc2012", tars / "VOC2012test.tar", cache)
    intact = (tars / TRAINVAL_2007).read_bytes()
    (tmp_path / TRAINVAL_2007).write_bytes(intact[: len(intact) // 2 + 100])
    with pytest.raises(UserError, match=f"{TRAINVAL_2007} is cut off"):
        opened("voc2007", tmp_path, cache)
    header = intact.index(b"VOCdevkit", len(intact) // 3)
    (tmp_path / TRAINVAL_2007).write_bytes(intact[: header + 10] + b"damage" + intact[header + 16 :])
    with pytest.raises(UserError, match=f"{TRAINVAL_2007} is damaged at byte {header}; download"):
        opened("voc2007", tmp_path, cache)


@pytest.mark.parametrize("name", ["voc2007", "voc2012_action"])
def test_random_bytes_never_end_in_a_traceback(name: str, cache: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    trainval, test = {"2007": write_voc2007, "2012": voc2012}[name[3:7]]()
    files = trainval | test
    folder = put(files, tmp_path / f"VOC{name[3:7]}")
    where = (ACTION, "Annotations") if name.endswith("action") else (MAIN,)
    paths = [path for path in files if path.startswith(where)]
    messages = []
    for _ in range(150):
        path = draw.choice(paths)
        content = bytearray(files[path])
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(content) + 1)
            content[at : at + draw.randint(0, 4)] = draw.choice([draw.randbytes(3), b"\n", b" 1", b"\0", b""])
        (folder / path).write_bytes(content)
        try:
            opened(name, folder, cache)
        except UserError as error:
            messages.append(str(error))
        (folder / path).write_bytes(files[path])
    assert len(messages) > 50
    assert "\n" not in "".join(messages)
