"""Folders of classes: images, classes, packing and random splits."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggrepro.data.images import scan as scan_module
from vggrepro.data.sampler import class_permutation
from vggrepro.data.transfer.transfer_scan import open_transfer
from vggrepro.data.transfer.transfer_set import Drawing, TransferSet
from vggrepro.errors import UserError

pytestmark = pytest.mark.usefixtures("inspected_in_process")

DRAWING = Drawing(seed=3, splits=2, train_per_class=5, test_per_class=2)
CALTECH101 = {"BACKGROUND_Google": 9, "Faces": 7, "accordion": 6}
CALTECH256 = {"001.ak47": 6, "056.dog": 8, "257.clutter": 7}


def put_image(file: Path, colour: int) -> None:
    """Writes a JPEG of unique size and content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + colour % 7, 16 + colour % 5), (colour % 256, colour // 256, 9)).save(file)


def packed(folder: Path, tar: Path, top: str) -> Path:
    """Writes a folder as a tar in a different order."""
    with tarfile.open(tar, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.add(file, f"{top}{file.relative_to(folder)}")
    return tar


@pytest.fixture(scope="module")
def caltech101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caltech-101 in torchvision's folders, with files that macOS adds."""
    root = tmp_path_factory.mktemp("data") / "caltech101"
    for place, (name, count) in enumerate(CALTECH101.items()):
        for number in range(1, count + 1):
            put_image(root / "101_ObjectCategories" / name / f"image_{number:04d}.jpg", 100 * place + number)
    (root / "Annotations" / "Faces").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def caltech256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caltech-256 with its two entries that are not images."""
    root = tmp_path_factory.mktemp("data") / "caltech256"
    top = root / "256_ObjectCategories"
    for place, (name, count) in enumerate(CALTECH256.items()):
        for number in range(1, count + 1):
            put_image(top / name / f"{place + 1:03d}_{number:04d}.jpg", 100 * place + number)
    (top / "257.clutter" / "RENAME2").write_text("mv")
    put_image(top / "056.dog" / "greg" / "vision309" / "dog.jpg", 7)
    return root


def opened(source: Path, cache: Path, name: str = "mine", drawing: Drawing = DRAWING) -> TransferSet:
    return open_transfer(name, source, drawing, cache)


def test_caltech101_equals_torchvisions_plus_background(caltech101: Path, cache: Path) -> None:
    """torchvision cannot replace our reader: it needs extracted files, has no offsets, and drops the background class,
    which is one of the paper's 102 classes."""
    from torchvision.datasets import Caltech101, ImageFolder

    dataset = opened(caltech101, cache, "caltech101")
    usual = Caltech101(str(caltech101.parent))
    folders = ImageFolder(str(caltech101 / "101_ObjectCategories"))
    assert dataset.measure == "recall"
    assert dataset.boxes is None
    assert dataset.boxes_fingerprint == ""
    assert dataset.classes == tuple(folders.classes) == ("BACKGROUND_Google", *usual.categories)
    assert dataset.targets.argmax(axis=1).tolist() == [label for _, label in folders.samples]
    assert ((dataset.targets == 1).sum(axis=1) == 1).all()
    assert (dataset.targets != 0).all()
    names = [f"{usual.categories[y]}/image_{number:04d}.jpg" for y, number in zip(usual.y, usual.index, strict=True)]
    assert list(dataset.names[CALTECH101["BACKGROUND_Google"] :]) == names
    split = dataset.index.split("val")
    for row in (0, 10, -1):
        assert split.read(int(dataset.image[row])) == Path(folders.samples[row][0]).read_bytes()


def test_caltech256_equals_torchvisions(caltech256: Path, cache: Path) -> None:
    from torchvision.datasets import Caltech256

    dataset = opened(caltech256, cache, "caltech256")
    usual = Caltech256(str(caltech256.parent))
    assert dataset.classes == tuple(usual.categories)
    assert dataset.targets.argmax(axis=1).tolist() == usual.y
    assert dataset.names[:2] == ["001.ak47/001_0001.jpg", "001.ak47/001_0002.jpg"]
    assert dataset.rejected == 0


@pytest.mark.parametrize("top", ["256_ObjectCategories/", "./256_ObjectCategories/", "", "./"])
def test_folder_and_tar_are_the_same_data_set(caltech256: Path, cache: Path, tmp_path: Path, top: str) -> None:
    folder = tmp_path / "unpacked" / "256_ObjectCategories"
    shutil.copytree(caltech256 / "256_ObjectCategories", folder)
    put_image(folder / ".hidden" / "1.jpg", 1)
    put_image(folder / "001.ak47" / "._001_0001.jpg", 1)
    put_image(folder / "__MACOSX" / "1.jpg", 1)
    dataset = opened(folder, cache)
    (tmp_path / "tars").mkdir()
    tar = packed(folder, tmp_path / "tars" / "256_ObjectCategories.tar", top)
    for source in (tar, tar.parent):  # named, or the only archive in a folder
        other = opened(source, cache)
        assert other.fingerprint == dataset.fingerprint
        assert np.array_equal(other.targets, dataset.targets)
        assert list(other.names) == list(dataset.names)
        for left, right in zip(other.partitions, dataset.partitions, strict=True):
            assert np.array_equal(left.test, right.test)
            assert np.array_equal(left.fit, right.fit)
        assert other.index.split("val").read(5) == dataset.index.split("val").read(5)


def test_train_and_val_are_pooled(caltech101: Path, cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "both"
    for split in ("train", "val"):
        shutil.copytree(caltech101 / "101_ObjectCategories", root / split)
    put_image(root / "val" / "Faces" / "image_0001.jpg", 77)
    dataset = opened(root, cache)
    assert np.bincount(dataset.targets.argmax(axis=1)).tolist() == [18, 14, 12]
    assert dataset.names[0] == "train/BACKGROUND_Google/image_0001.jpg"
    assert dataset.names[9] == "val/BACKGROUND_Google/image_0001.jpg"
    assert len(set(dataset.names)) == 44
    assert dataset.index.split("val").read(18 + 7) == (root / "val" / "Faces" / "image_0001.jpg").read_bytes()
    other = opened(packed(root, tmp_path / "both.tar", "both/"), cache)
    assert (other.fingerprint, list(other.names)) == (dataset.fingerprint, list(dataset.names))
    assert np.array_equal(other.targets, dataset.targets)


def test_splits_are_disjoint_and_have_the_right_counts(caltech256: Path, cache: Path) -> None:
    dataset = opened(caltech256, cache, "caltech256")
    label = dataset.targets.argmax(axis=1)
    for partition in dataset.partitions:
        every = np.concatenate([partition.train, partition.test])
        assert len(set(every.tolist())) == len(every)
        assert np.array_equal(np.sort(partition.train), np.sort([*partition.fit, *partition.validation]))
        assert np.bincount(label[partition.fit]).tolist() == [4, 4, 4]
        assert np.bincount(label[partition.validation]).tolist() == [1, 1, 1]
        assert np.bincount(label[partition.test]).tolist() == [1, 2, 2]
    assert len(dataset.partitions) == 2
    assert dataset.partitions[0].train.tolist() != dataset.partitions[1].train.tolist()
    rest = opened(caltech256, cache, drawing=replace(DRAWING, test_per_class=None)).partitions[0]
    assert np.bincount(label[rest.test]).tolist() == [1, 3, 2]
    assert np.array_equal(rest.fit, dataset.partitions[0].fit)


def test_draws_depend_on_seed_split_and_class(caltech256: Path, cache: Path) -> None:
    dataset = opened(caltech256, cache)
    fewer = opened(caltech256, cache, drawing=replace(DRAWING, splits=1))
    assert np.array_equal(fewer.partitions[0].test, dataset.partitions[0].test)
    other = opened(caltech256, cache, drawing=replace(DRAWING, seed=4))
    assert not np.array_equal(other.partitions[0].fit, dataset.partitions[0].fit)
    assert other.fingerprint == dataset.fingerprint  # the fingerprint is of the data, not of splits
    first = class_permutation(3, 0, 1, 8)
    assert sorted(first) == list(range(8))
    assert len({tuple(class_permutation(3, split, place, 8)) for split in range(3) for place in range(3)}) == 9
    assert not np.array_equal(first, class_permutation(4, 0, 1, 8))


def test_draws_are_pinned(caltech256: Path, cache: Path) -> None:
    """A change of these numbers changes every result on Caltech."""
    assert class_permutation(0, 0, 0, 8).tolist() == [5, 6, 4, 0, 3, 2, 1, 7]
    assert class_permutation(7, 2, 256, 8).tolist() == [2, 7, 3, 4, 6, 1, 5, 0]
    partition = opened(caltech256, cache).partitions[0]
    assert [partition.fit.tolist(), partition.validation.tolist(), partition.test.tolist()] == [
        [0, 1, 4, 5, 6, 8, 9, 11, 15, 16, 19, 20],
        [2, 10, 14],
        [3, 7, 13, 17, 18],
    ]


def test_draws_are_uniform() -> None:
    """Each image is first in 1 of 10 draws: chi-squared test, 9 degrees of freedom, level 0.001."""
    first = np.array([class_permutation(seed, 0, 0, 10)[0] for seed in range(2000)])
    assert ((np.bincount(first, minlength=10) - 200) ** 2 / 200).sum() < 27.9


def test_listing_order_does_not_matter(caltech256: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vggrepro.data.images import tree

    dataset = opened(caltech256, cache)
    original = tree.os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with original(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[object]:
            return list(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(tree.os, "scandir", Backwards)
    other = opened(caltech256, cache)
    assert other.fingerprint == dataset.fingerprint
    assert list(other.names) == list(dataset.names)
    assert np.array_equal(other.partitions[1].fit, dataset.partitions[1].fit)


def test_files_that_are_not_images_are_counted_but_not_samples(caltech101: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    (tmp_path / "mine" / "Faces" / "image_0003.jpg").write_text("no image")
    (tmp_path / "mine" / "Faces" / "image_0099.jpg").write_bytes(b"")
    dataset = opened(tmp_path / "mine", cache)
    assert dataset.rejected == 2
    assert np.bincount(dataset.targets.argmax(axis=1)).tolist() == [9, 6, 6]
    assert "Faces/image_0003.jpg" not in dataset.names
    assert dataset.names[9:12] == ["Faces/image_0001.jpg", "Faces/image_0002.jpg", "Faces/image_0004.jpg"]
    assert len(dataset.image) == len(dataset.names) == len(dataset.index.split("val"))


def test_the_index_is_cached_and_renewed(
    caltech101: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    dataset = opened(tmp_path / "mine", cache)
    looked: list[int] = []
    original = scan_module._findings
    monkeypatch.setattr(
        scan_module, "_findings", lambda members, *rest: looked.append(len(members)) or original(members, *rest)
    )
    assert opened(tmp_path / "mine", cache).fingerprint == dataset.fingerprint
    assert looked == []
    put_image(tmp_path / "mine" / "accordion" / "image_0001.jpg", 250)
    assert opened(tmp_path / "mine", cache).fingerprint != dataset.fingerprint
    assert looked == [22]


def test_fingerprints_distinguish_data_sets(caltech101: Path, cache: Path) -> None:
    dataset = opened(caltech101, cache, "caltech101")
    assert len(dataset.fingerprint) == 64
    boxes = np.zeros((len(dataset.image), 4))
    changed = [
        replace(dataset, classes=("a", "b", "c")),
        replace(dataset, targets=-dataset.targets),
        replace(dataset, image=dataset.image[::-1]),
        replace(dataset, boxes=boxes),
        replace(dataset, boxes=boxes + 1),
    ]
    assert len({left.fingerprint for left in (dataset, *changed)}) == 6
    assert changed[-1].boxes_fingerprint != changed[-2].boxes_fingerprint


def _few(root: Path) -> None:
    (root / "Faces" / "image_0001.jpg").unlink()
    (root / "Faces" / "image_0002.jpg").unlink()


def _compressed(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    with tarfile.open(root / "101_ObjectCategories.tar.gz", "w:gz"):
        pass


def _single_class(root: Path) -> None:
    shutil.rmtree(root / "Faces")
    shutil.rmtree(root / "BACKGROUND_Google")


def _emptied(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _no_images(root: Path) -> None:
    _emptied(root)
    (root / "one").mkdir()
    (root / "two").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_few, "class Faces of .* has 5 usable images, .* need 6; add images, or lower transfer.train_per_class"),
        (_compressed, "101_ObjectCategories.tar.gz is compressed.*; uncompress it once"),
        (_single_class, "has only one class, accordion; give a folder of classes"),
        (_emptied, "holds no images in folders; give a folder of classes"),
        (_no_images, "holds no images in folders; give a folder of classes"),
        (lambda root: (root / "empty\nclass").mkdir(), r"holds no images of class empty\\nclass; fill it or"),
        (shutil.rmtree, "does not exist; give a folder of classes"),
        (lambda root: (root / "Faces" / "\udcff.jpg").touch(), r"\\udcff.jpg has a name that is not UTF-8; rename it"),
    ],
)
def test_mistakes_are_single_line_errors(
    caltech101: Path, cache: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    spoil(tmp_path / "mine")
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "mine", cache)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [(b"PK\x03\x04", "is compressed"), (b"torn" * 300, "is not a tar")])
def test_files_that_are_not_tars_are_refused(cache: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "mine.tar", cache)


@pytest.mark.parametrize("field", ["splits", "train_per_class", "test_per_class"])
def test_numbers_that_leave_no_images_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"{field}=0 must be at least "):
        replace(DRAWING, **{field: 0})
