"""Boxes: formats, matching with images, storage, and the command."""

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from boxes_as_files import (
    FORMATS,
    FOUND_BESIDE,
    Objects,
    put_archives,
    put_kaggle,
    put_table,
    put_xml_tree,
    tar_of,
    voc,
)
from PIL import Image
from programs import Command
from tiny import shared

from vggrepro.data.boxes import box_scan
from vggrepro.data.boxes.box_scan import beside, open_boxes, read_boxes
from vggrepro.data.boxes.box_set import Boxes, BoxSet, load
from vggrepro.data.images import sample_set
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import open_index, scan, scan_folder
from vggrepro.errors import UserError

pytestmark = pytest.mark.usefixtures("inspected_in_process")

WNIDS = ("n03028079", "n11669921")
Put = Callable[[Objects, Path], list[Path]]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of at least 40 px with ILSVRC's names: 2 x 4 for training, 2 x 2 for validation."""
    root = tmp_path_factory.mktemp("pictured")
    number = 0
    for split, count in (("train", 4), ("val", 2)):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            for n in range(count):
                number += 1
                name = f"{wnid}_{n}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                Image.new("RGB", (40 + number, 60 + number)).save(root / split / wnid / f"{name}.JPEG")
    return root


@pytest.fixture(scope="module")
def index(pictured: Path) -> Index:
    return scan_folder(pictured)


def places(index: Index, split: str) -> list[str]:
    """Lists split/class/name of the images of a split, in index order."""
    part = index.split(split)
    return ["/".join(Path(part.name_of(n)).parts[-3:]) for n in range(len(part))]


@pytest.fixture(scope="module")
def objects(index: Index) -> Objects:
    """Zero to three boxes per image; the last extends to the image's width and height."""
    boxes_of_image: Objects = {}
    for split in ("train", "val"):
        for n, place in enumerate(places(index, split)):
            height, width = index.split(split).size[n].tolist()
            boxes = [(n, 2, n + 10, 20), (5, 6 + n, 5, 6 + n), (7, 8, width, height)]
            if n % 4:
                boxes_of_image[place] = boxes[: n % 4]
    return boxes_of_image


def expected(index: Index, objects: Objects, split: str) -> Boxes:
    """Edges of the boxes in index order."""
    found, start = [], [0]
    for n, place in enumerate(places(index, split)):
        height, width = index.split(split).size[n].tolist()
        found += [(a, b, min(c + 1, width), min(d + 1, height)) for a, b, c, d in objects.get(place, [])]
        start.append(len(found))
    return Boxes(np.array(start), np.array(found, np.float64).reshape(-1, 4))


def same(found: BoxSet, index: Index, objects: Objects) -> bool:
    wanted = {split: expected(index, objects, split) for split in ("train", "val")}
    return all(
        np.array_equal(found.split(split).start, boxes.start) and np.array_equal(found.split(split).box, boxes.box)
        for split, boxes in wanted.items()
    )


@pytest.mark.parametrize("put", FORMATS)
def test_all_formats_give_the_same_boxes(index: Index, objects: Objects, tmp_path: Path, put: Put) -> None:
    found = read_boxes(index, put(objects, tmp_path))
    assert same(found, index, objects)
    assert found.flagged == ()
    assert found.counts["boxes"] == sum(map(len, objects.values()))
    assert found.counts["images"]["train"] == {"with": 6, "without": 2}
    assert found.counts["images"]["val"] == {"with": 3, "without": 1}
    assert found.counts["rejected"] == found.counts["unknown"] == found.counts["clipped"] == 0


@pytest.mark.parametrize("put", FOUND_BESIDE)
def test_boxes_are_found_beside_their_images(
    pictured: Path, index: Index, objects: Objects, tmp_path: Path, put: Put
) -> None:
    root = tmp_path / "imagenet"
    shutil.copytree(pictured, root)
    sources = put(objects, root)
    scanned = scan_folder(root)
    assert scanned.fingerprint == index.fingerprint, "annotations are not images"
    assert beside(root) == sources
    for folder in (root, None):
        found = open_boxes(scanned, None, folder, tmp_path / "cache")
        assert same(found, scanned, objects)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("put", [put_xml_tree, put_archives])
def test_boxes_are_found_in_kaggles_tree_from_any_folder_of_it(
    pictured: Path, objects: Objects, tmp_path: Path, put: Put
) -> None:
    images = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(pictured, images)
    sources = put(objects, tmp_path / "kaggle" / "ILSVRC")
    for root in (tmp_path / "kaggle", tmp_path / "kaggle" / "ILSVRC", images):
        assert beside(root) == sources
        assert same(open_boxes(scan_folder(root), None, root, tmp_path / "cache"), scan_folder(root), objects)


def test_archives_of_images_and_boxes_may_share_a_folder(
    pictured: Path, index: Index, objects: Objects, tmp_path: Path
) -> None:
    def images(split: str) -> Iterator[tuple[str, bytes]]:
        for file in sorted((pictured / split).rglob("*.JPEG")):
            yield f"{split}/{file.parent.name}/{file.name}", file.read_bytes()

    (tmp_path / "images.tar").write_bytes(tar_of([*images("train"), *images("val")]))
    put_archives(objects, tmp_path)
    scanned = open_index(str(tmp_path), None, tmp_path / "cache", lambda done, total: None)
    for root in (tmp_path, None):
        found = open_boxes(scanned, None, root, tmp_path / "cache")
        assert all(
            np.array_equal(found.split(s).box, expected(index, objects, s).box) and not found.flagged
            for s in ("train", "val")
        )
    assert beside(tmp_path / "images.tar") == beside(tmp_path)


@pytest.mark.parametrize("put", [put_archives, put_kaggle])
def test_ilsvrcs_download_folder(pictured: Path, index: Index, objects: Objects, tmp_path: Path, put: Put) -> None:
    """Images, labels and boxes as downloaded, with the boxes uncompressed or not."""

    def flat(folder: Path) -> list[tuple[str, bytes]]:
        return [(file.name, file.read_bytes()) for file in sorted(folder.rglob("*.JPEG"))]

    classes = [(f"{wnid}.tar", tar_of(flat(pictured / "train" / wnid))) for wnid in WNIDS]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(flat(pictured / "val")))
    labels = [f"{file.name} {file.parent.name}\n" for file in sorted((pictured / "val").rglob("*.JPEG"))]
    (tmp_path / "val_labels.txt").write_text("".join(labels))
    all_objects = {place: [(1, 1, 5, 5)] for split in ("train", "val") for place in places(index, split)} | objects
    for file in put(all_objects, tmp_path):
        if file.suffix == ".tgz":
            file.with_suffix(".tar").write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()
    scanned = open_index(str(tmp_path), None, tmp_path / "cache", lambda done, total: None)
    assert scanned.fingerprint == index.fingerprint
    found = open_boxes(scanned, None, tmp_path, tmp_path / "cache")
    for split in ("train", "val"):
        assert np.array_equal(found.split(split).box, expected(index, all_objects, split).box)


def test_boxes_tsv_overrides_other_annotations(pictured: Path, objects: Objects, tmp_path: Path) -> None:
    put_archives(objects, tmp_path)
    assert beside(tmp_path) == [tmp_path / "ILSVRC2012_bbox_train_v2.tar.gz", tmp_path / "ILSVRC2012_bbox_val_v3.tgz"]
    assert beside(tmp_path) != put_table(objects, tmp_path) == beside(tmp_path)


def test_boxes_per_image_largest_and_subsets(index: Index, objects: Objects, tmp_path: Path) -> None:
    boxes = read_boxes(index, put_table(objects, tmp_path)).split("train")
    assert boxes.counts.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert boxes.has.tolist() == [False, True, True, True] * 2
    assert boxes.of(0).shape == (0, 4)
    assert boxes.of(2).tolist() == [[2, 2, 13, 21], [5, 8, 6, 9]]
    largest = boxes.largest()
    assert np.isnan(largest[0]).all()
    for image in boxes.has.nonzero()[0]:
        of = boxes.of(image)
        area = (of[:, 2] - of[:, 0]) * (of[:, 3] - of[:, 1])
        assert largest[image].tolist() == of[area.argmax()].tolist()
    some = boxes.take(np.array([3, 0, 2, 3]))
    assert some.counts.tolist() == [3, 0, 2, 3]
    assert [some.of(n).tolist() for n in range(4)] == [boxes.of(n).tolist() for n in (3, 0, 2, 3)]
    assert boxes.take(np.array([], np.int64)).largest().shape == (0, 4)
    equal = Boxes(np.array([0, 2]), np.array([[0.0, 0, 2, 3], [1, 1, 4, 3]]))
    assert equal.largest().tolist() == [[0, 0, 2, 3]]


def test_duplicate_boxes_count_once(index: Index, objects: Objects, tmp_path: Path) -> None:
    found = read_boxes(index, [*put_table(objects, tmp_path), *put_archives(objects, tmp_path)])
    assert same(found, index, objects)
    assert found.counts["left_out"] == {"said before": sum(map(len, objects.values()))}
    assert all("ILSVRC2012_bbox" in place for _, place in found.flagged), "the later ones are left out"


@pytest.fixture
def alike(tmp_path: Path) -> Index:
    """1.png in both classes and both splits, 2.png only in train/cat, all of one size."""
    for place in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png", "train/cat/2.png"):
        file = tmp_path / "alike" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 50)).save(file)
    Image.new("RGB", (50, 50)).save(tmp_path / "alike" / "train" / "dog" / "1.jpg")
    return scan_folder(tmp_path / "alike")


def with_boxes(found: BoxSet, index: Index) -> dict[str, list[list[float]]]:
    return {
        place: found.split(split).of(n).tolist()
        for split in ("train", "val")
        for n, place in enumerate(places(index, split))
        if found.split(split).has[n]
    }


def test_images_with_the_same_name_differ_by_class_split_or_suffix(alike: Index, tmp_path: Path) -> None:
    named = ["train/cat/1.png", "train/dog/1.jpg", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png"]
    table = put_table({place: [(n, n, 20, 20)] for n, place in enumerate(named)}, tmp_path)
    assert with_boxes(read_boxes(alike, table), alike) == {p: [[n, n, 21, 21]] for n, p in enumerate(named)}
    for split, wnid, is_named in (
        ("val", "dog", True),
        ("train", "cat", True),
        ("train", "dog", False),
        ("", "cat", False),
    ):
        file = tmp_path / "xml" / split / "1.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(voc([(1, 1, 20, 20)], wnid))
        found = read_boxes(alike, [tmp_path / "xml"])
        if is_named:
            assert with_boxes(found, alike) == {f"{split}/{wnid}/1.png": [[1, 1, 21, 21]]}
        else:
            assert with_boxes(found, alike) == {}
            assert found.counts["left_out"] == {"of one of several images": 1}
        file.unlink()


def test_boxes_do_not_match_images_of_another_split_or_class(alike: Index, tmp_path: Path) -> None:
    table = put_table({"val/cat/2.png": [(1, 1, 9, 9)], "train/cat/1.png": [(1, 1, 9, 9)]}, tmp_path)
    found = read_boxes(alike, table)
    assert list(with_boxes(found, alike)) == ["train/cat/1.png"]
    assert found.counts["unknown"] == 1
    table = put_table({"train/dog/2.png": [(1, 1, 9, 9)], "cat/2.png": [(2, 2, 9, 9)]}, tmp_path)
    found = read_boxes(alike, table)
    assert with_boxes(found, alike) == {"train/cat/2.png": [[2, 2, 10, 10]]}
    assert found.counts["left_out"] == {"of another class than the image": 1}


def test_ilsvrc_names_match_in_another_split(pictured: Path, objects: Objects, tmp_path: Path) -> None:
    """Boxes are found if training images are used for validation."""
    root = tmp_path / "own"
    shutil.copytree(pictured / "train", root / "train")
    moved = root / "val" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG"
    moved.parent.mkdir(parents=True)
    shutil.move(root / "train" / WNIDS[0] / moved.name, moved)
    scanned = scan_folder(root)
    found = read_boxes(scanned, put_archives(objects, tmp_path))
    assert found.split("val").of(0).tolist() == [[1, 2, 12, 21]]
    assert found.counts["unknown"] == 3, "of the missing validation images"


def test_rejected_and_missing_images_are_counted(pictured: Path, objects: Objects, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(pictured, root)
    with_box = [place for place in objects if place.startswith("train")]
    (root / with_box[0]).write_bytes(b"no image")
    (root / with_box[1]).unlink()
    scanned = scan_folder(root)
    left = {place: boxes for place, boxes in objects.items() if place not in with_box[:2]}
    found = read_boxes(scanned, put_xml_tree(objects, tmp_path))
    assert same(found, scanned, left)
    assert (found.counts["rejected"], found.counts["unknown"]) == (1, 1)


def test_boxes_are_saved_and_loaded(index: Index, objects: Objects, tmp_path: Path) -> None:
    found = read_boxes(index, [*put_table({**objects, places(index, "val")[0]: [(9, 9, 3, 3)]}, tmp_path)])
    file = tmp_path / "new" / "boxes.npz"
    found.save(file)
    loaded = load(file, index)
    assert (loaded.fingerprint, loaded.summary(), loaded.flagged) == (found.fingerprint, found.summary(), found.flagged)
    assert len(loaded.flagged) == 1
    assert np.array_equal(loaded.split("train").box, found.split("train").box)
    assert open_boxes(index, file, None, tmp_path / "unused").fingerprint == found.fingerprint
    assert not (tmp_path / "unused").exists()
    other = read_boxes(index, put_table({place: boxes[:1] for place, boxes in objects.items()}, tmp_path))
    assert other.fingerprint != found.fingerprint


def test_invalid_and_foreign_files_are_refused(pictured: Path, index: Index, objects: Objects, tmp_path: Path) -> None:
    file = tmp_path / "boxes.npz"
    with pytest.raises(UserError, match=r"does not exist; make it with `vggrepro boxes"):
        load(file, index)
    read_boxes(index, put_table(objects, tmp_path)).save(file)
    shutil.copytree(pictured / "val", tmp_path / "other" / "val")
    with pytest.raises(UserError, match="is of other images than"):
        load(file, scan_folder(tmp_path / "other"))
    saved = file.read_bytes()
    for damaged in (b"", saved[:100], saved[: len(saved) // 2], saved[:-30], b"x" * 1000, b"PK" + bytes(500)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read .*; make it again"):
            load(file, index)
    with np.load(overwritten(file, saved)) as stored:
        arrays = dict(stored)
    for name, wrong in {
        "start_train": arrays["start_train"][::-1],
        "box_val": arrays["box_val"][:-1],
        "box_train": arrays["box_train"] * np.nan,
        "start_val": np.zeros(2, np.int64),
    }.items():
        np.savez(file, **(arrays | {name: wrong}))
        with pytest.raises(UserError, match=r"(is damaged|cannot be read .*); make it again"):
            load(file, index)


def overwritten(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def test_cached_boxes_are_renewed_when_a_file_or_an_image_changes(
    pictured: Path, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "own", tmp_path / "cache"
    shutil.copytree(pictured, root)
    put_xml_tree(objects, root)
    readings = []

    def read(*arguments: object) -> BoxSet:
        readings.append(1)
        return read_boxes(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(box_scan, "read_boxes", read)

    def reads() -> int:
        before = len(readings)
        open_boxes(scan_folder(root), None, root, cache)
        return len(readings) - before

    assert (reads(), reads()) == (1, 0)
    xml_file = next((root / "Annotations").rglob("*.xml"))
    os.utime(xml_file, ns=(1, 1))
    assert (reads(), reads()) == (1, 0)
    xml_file.unlink()
    assert (reads(), reads()) == (1, 0)
    image = next((root / "train").rglob("*.JPEG"))
    Image.new("RGB", (99, 99)).save(image)
    assert (reads(), reads()) == (1, 0)
    for cached in cache.iterdir():
        cached.write_bytes(b"torn")
    assert (reads(), reads()) == (1, 0)


def test_missing_boxes_are_an_error_that_lists_the_formats(index: Index, pictured: Path, tmp_path: Path) -> None:
    for root in (pictured, None):
        with pytest.raises(UserError, match=r"no boxes beside its images \(boxes.tsv, .* in data.boxes$"):
            open_boxes(index, None, root, tmp_path)
    with pytest.raises(UserError, match="does not exist; give a file or folder of boxes"):
        read_boxes(index, [tmp_path / "nothing"])
    with pytest.raises(UserError, match="holds no annotations"):
        read_boxes(index, [pictured])


def test_the_command_vggrepro_boxes(
    pictured: Path, index: Index, objects: Objects, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index.save(tmp_path / "images.idx")
    wrong = next(iter(objects))
    (table,) = put_table({**objects, wrong: [(0, 0, 500, 20), (9, 9, 3, 3)]}, tmp_path)
    status, out, _ = command("boxes", "images.idx", table, "--out", "boxes.npz", "--report")
    assert status == 0
    assert "of another" not in out
    assert f"left out: inverted\t{table}:3: 9 9 3 3\n" in out
    assert f"clipped: reaches beyond the image\t{table}:2: 0 0 500 20\n" in out
    assert out.endswith("wrote boxes.npz\n")
    printed = command.json("boxes", pictured, table, "--out", "again.npz")
    assert printed == load(tmp_path / "boxes.npz", index).summary()
    assert printed["left_out"] == {"inverted": 1}
    shutil.copytree(pictured, "imagenet")
    put_table(objects, Path("imagenet"))
    assert command.json("boxes", "imagenet", "--out", "beside.npz")["boxes"] == sum(map(len, objects.values()))
    assert "no boxes beside" in command.mistake("boxes", pictured, "--out", "x.npz")
    assert "is a folder" in command.mistake("boxes", pictured, "--out", tmp_path)
    assert "does not exist" in command.mistake("boxes", "nowhere", "--out", "x.npz")


def test_tiny_imagenets_real_boxes(tmp_path: Path) -> None:
    images, table = shared("tiny-imagenet-60c-sub.tar"), shared("tiny-imagenet-60c-boxes.tsv")
    index = scan([images], "header")
    found = read_boxes(index, [table])
    assert found.flagged == ()
    assert found.counts["images"] == {"train": {"with": 18000, "without": 0}, "val": {"with": 3000, "without": 0}}
    assert found.counts["boxes"] == found.counts["annotations"] == 21000
    largest = found.split("val").largest()
    assert (largest[:, 2:] > largest[:, :2]).all()
    assert largest.max() == 64


def test_the_sample_set_has_boxes(digits: Path, tmp_path: Path) -> None:
    index = scan_folder(digits)
    found = open_boxes(index, None, digits, tmp_path)
    assert found.flagged == ()
    assert found.counts["images"] == {"train": {"with": 2000, "without": 0}, "val": {"with": 500, "without": 0}}
    assert found.counts["boxes"] == 2500


def test_the_box_of_a_digit_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a uniform background, the digit differs by more than half of the maximum difference."""
    monkeypatch.setattr(sample_set, "_texture", lambda height, width, random: np.full((height, width, 3), 127.0))
    for _, image, box in islice(sample_set._images(), 60):
        difference = np.abs(np.asarray(image, np.float64) - 127).sum(axis=2)
        rows, columns = np.nonzero(difference > difference.max() / 2)
        assert np.allclose(box, [columns.min(), rows.min(), columns.max(), rows.max()], atol=1)
