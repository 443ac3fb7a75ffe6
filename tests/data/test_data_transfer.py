"""Folders of classes: what is an image of which class, however they are packed, and how they are split at random."""

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

pytestmark = pytest.mark.usefixtures("looked_at_here")

DRAWING = Drawing(seed=3, splits=2, train_per_class=5, test_per_class=2)
CALTECH101 = {"BACKGROUND_Google": 9, "Faces": 7, "accordion": 6}
CALTECH256 = {"001.ak47": 6, "056.dog": 8, "257.clutter": 7}


def put_image(file: Path, colour: int) -> None:
    """A JPEG whose size and content are its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + colour % 7, 16 + colour % 5), (colour % 256, colour // 256, 9)).save(file)


def packed(folder: Path, tar: Path, top: str) -> Path:
    """A folder as a tar, in an order of its own."""
    with tarfile.open(tar, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.add(file, f"{top}{file.relative_to(folder)}")
    return tar


@pytest.fixture(scope="module")
def caltech101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torchvision puts it, with what macOS adds."""
    root = tmp_path_factory.mktemp("data") / "caltech101"
    for place, (name, count) in enumerate(CALTECH101.items()):
        for number in range(1, count + 1):
            put_image(root / "101_ObjectCategories" / name / f"image_{number:04d}.jpg", 100 * place + number)
    (root / "Annotations" / "Faces").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def caltech256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the two things in it that are no images."""
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


def test_caltech101_is_what_torchvision_finds_and_the_background(caltech101: Path, cache: Path) -> None:
    """torchvision itself is no way to it: it needs extracted files, knows no offsets, and drops the background class,
    which the paper's 102 classes count."""
    from torchvision.datasets import Caltech101, ImageFolder

    made = opened(caltech101, cache, "caltech101")
    usual = Caltech101(str(caltech101.parent))
    folders = ImageFolder(str(caltech101 / "101_ObjectCategories"))
    assert made.measure == "recall"
    assert made.boxes is None
    assert made.boxes_fingerprint == ""
    assert made.classes == tuple(folders.classes) == ("BACKGROUND_Google", *usual.categories)
    assert made.targets.argmax(axis=1).tolist() == [label for _, label in folders.samples]
    assert ((made.targets == 1).sum(axis=1) == 1).all()
    assert (made.targets != 0).all()
    names = [f"{usual.categories[y]}/image_{number:04d}.jpg" for y, number in zip(usual.y, usual.index, strict=True)]
    assert list(made.names[CALTECH101["BACKGROUND_Google"] :]) == names
    split = made.index.split("val")
    for row in (0, 10, -1):
        assert split.read(int(made.image[row])) == Path(folders.samples[row][0]).read_bytes()


def test_caltech256_is_what_torchvision_finds(caltech256: Path, cache: Path) -> None:
    from torchvision.datasets import Caltech256

    made = opened(caltech256, cache, "caltech256")
    usual = Caltech256(str(caltech256.parent))
    assert made.classes == tuple(usual.categories)
    assert made.targets.argmax(axis=1).tolist() == usual.y
    assert made.names[:2] == ["001.ak47/001_0001.jpg", "001.ak47/001_0002.jpg"]
    assert made.rejected == 0


@pytest.mark.parametrize("top", ["256_ObjectCategories/", "./256_ObjectCategories/", "", "./"])
def test_folder_and_tar_are_the_same_data_set(caltech256: Path, cache: Path, tmp_path: Path, top: str) -> None:
    folder = tmp_path / "unpacked" / "256_ObjectCategories"
    shutil.copytree(caltech256 / "256_ObjectCategories", folder)
    put_image(folder / ".hidden" / "1.jpg", 1)
    put_image(folder / "001.ak47" / "._001_0001.jpg", 1)
    put_image(folder / "__MACOSX" / "1.jpg", 1)
    made = opened(folder, cache)
    (tmp_path / "tars").mkdir()
    tar = packed(folder, tmp_path / "tars" / "256_ObjectCategories.tar", top)
    for source in (tar, tar.parent):  # named, or alone in a folder
        other = opened(source, cache)
        assert other.fingerprint == made.fingerprint
        assert np.array_equal(other.targets, made.targets)
        assert list(other.names) == list(made.names)
        for one, two in zip(other.partitions, made.partitions, strict=True):
            assert np.array_equal(one.test, two.test)
            assert np.array_equal(one.fit, two.fit)
        assert other.index.split("val").read(5) == made.index.split("val").read(5)


def test_train_and_val_are_pooled(caltech101: Path, cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "both"
    for split in ("train", "val"):
        shutil.copytree(caltech101 / "101_ObjectCategories", root / split)
    put_image(root / "val" / "Faces" / "image_0001.jpg", 77)
    made = opened(root, cache)
    assert np.bincount(made.targets.argmax(axis=1)).tolist() == [18, 14, 12]
    assert made.names[0] == "train/BACKGROUND_Google/image_0001.jpg"
    assert made.names[9] == "val/BACKGROUND_Google/image_0001.jpg"
    assert len(set(made.names)) == 44
    assert made.index.split("val").read(18 + 7) == (root / "val" / "Faces" / "image_0001.jpg").read_bytes()
    other = opened(packed(root, tmp_path / "both.tar", "both/"), cache)
    assert (other.fingerprint, list(other.names)) == (made.fingerprint, list(made.names))
    assert np.array_equal(other.targets, made.targets)


def test_splits_are_disjoint_and_have_the_right_counts(caltech256: Path, cache: Path) -> None:
    made = opened(caltech256, cache, "caltech256")
    label = made.targets.argmax(axis=1)
    for partition in made.partitions:
        every = np.concatenate([partition.train, partition.test])
        assert len(set(every.tolist())) == len(every)
        assert np.array_equal(np.sort(partition.train), np.sort([*partition.fit, *partition.validation]))
        assert np.bincount(label[partition.fit]).tolist() == [4, 4, 4]
        assert np.bincount(label[partition.validation]).tolist() == [1, 1, 1]
        assert np.bincount(label[partition.test]).tolist() == [1, 2, 2]
    assert len(made.partitions) == 2
    assert made.partitions[0].train.tolist() != made.partitions[1].train.tolist()
    rest = opened(caltech256, cache, drawing=replace(DRAWING, test_per_class=None)).partitions[0]
    assert np.bincount(label[rest.test]).tolist() == [1, 3, 2]
    assert np.array_equal(rest.fit, made.partitions[0].fit)


def test_draws_are_a_matter_of_seed_split_and_class(caltech256: Path, cache: Path) -> None:
    made = opened(caltech256, cache)
    again = opened(caltech256, cache, drawing=replace(DRAWING, splits=1))
    assert np.array_equal(again.partitions[0].test, made.partitions[0].test)
    other = opened(caltech256, cache, drawing=replace(DRAWING, seed=4))
    assert not np.array_equal(other.partitions[0].fit, made.partitions[0].fit)
    assert other.fingerprint == made.fingerprint  # which is of the data, not of splits
    first = class_permutation(3, 0, 1, 8)
    assert sorted(first) == list(range(8))
    assert len({tuple(class_permutation(3, split, place, 8)) for split in range(3) for place in range(3)}) == 9
    assert not np.array_equal(first, class_permutation(4, 0, 1, 8))


def test_draws_are_what_they_always_were(caltech256: Path, cache: Path) -> None:
    """A change of these numbers is a change of every result on Caltech."""
    assert class_permutation(0, 0, 0, 8).tolist() == [5, 6, 4, 0, 3, 2, 1, 7]
    assert class_permutation(7, 2, 256, 8).tolist() == [2, 7, 3, 4, 6, 1, 5, 0]
    partition = opened(caltech256, cache).partitions[0]
    assert [partition.fit.tolist(), partition.validation.tolist(), partition.test.tolist()] == [
        [0, 1, 4, 5, 6, 8, 9, 11, 15, 16, 19, 20],
        [2, 10, 14],
        [3, 7, 13, 17, 18],
    ]


def test_draws_are_even() -> None:
    """Each image is first in one draw of ten: chi-squared, 9 degrees of freedom, one chance in a thousand."""
    first = np.array([class_permutation(seed, 0, 0, 10)[0] for seed in range(2000)])
    assert ((np.bincount(first, minlength=10) - 200) ** 2 / 200).sum() < 27.9


def test_listing_order_does_not_matter(caltech256: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vggrepro.data.images import tree

    made = opened(caltech256, cache)
    whole = tree.os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with whole(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[object]:
            return list(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(tree.os, "scandir", Backwards)
    other = opened(caltech256, cache)
    assert other.fingerprint == made.fingerprint
    assert list(other.names) == list(made.names)
    assert np.array_equal(other.partitions[1].fit, made.partitions[1].fit)


def test_files_that_are_no_images_are_counted_and_no_samples(caltech101: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    (tmp_path / "mine" / "Faces" / "image_0003.jpg").write_text("no image")
    (tmp_path / "mine" / "Faces" / "image_0099.jpg").write_bytes(b"")
    made = opened(tmp_path / "mine", cache)
    assert made.rejected == 2
    assert np.bincount(made.targets.argmax(axis=1)).tolist() == [9, 6, 6]
    assert "Faces/image_0003.jpg" not in made.names
    assert made.names[9:12] == ["Faces/image_0001.jpg", "Faces/image_0002.jpg", "Faces/image_0004.jpg"]
    assert len(made.image) == len(made.names) == len(made.index.split("val"))


def test_the_index_is_kept_and_renewed(
    caltech101: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    made = opened(tmp_path / "mine", cache)
    looked: list[int] = []
    whole = scan_module._findings
    monkeypatch.setattr(
        scan_module, "_findings", lambda members, *rest: looked.append(len(members)) or whole(members, *rest)
    )
    assert opened(tmp_path / "mine", cache).fingerprint == made.fingerprint
    assert looked == []
    put_image(tmp_path / "mine" / "accordion" / "image_0001.jpg", 250)
    assert opened(tmp_path / "mine", cache).fingerprint != made.fingerprint
    assert looked == [22]


def test_fingerprints_tell_data_sets_apart(caltech101: Path, cache: Path) -> None:
    made = opened(caltech101, cache, "caltech101")
    assert len(made.fingerprint) == 64
    boxes = np.zeros((len(made.image), 4))
    others = [
        replace(made, classes=("a", "b", "c")),
        replace(made, targets=-made.targets),
        replace(made, image=made.image[::-1]),
        replace(made, boxes=boxes),
        replace(made, boxes=boxes + 1),
    ]
    assert len({one.fingerprint for one in (made, *others)}) == 6
    assert others[-1].boxes_fingerprint != others[-2].boxes_fingerprint


def _few(root: Path) -> None:
    (root / "Faces" / "image_0001.jpg").unlink()
    (root / "Faces" / "image_0002.jpg").unlink()


def _compressed(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    with tarfile.open(root / "101_ObjectCategories.tar.gz", "w:gz"):
        pass


def _one_class(root: Path) -> None:
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
    ("spoil", "said"),
    [
        (_few, "class Faces of .* has 5 usable images, .* need 6; add images, or lower transfer.train_per_class"),
        (_compressed, "101_ObjectCategories.tar.gz is compressed.*; uncompress it once"),
        (_one_class, "has one class only, accordion; give a folder of classes"),
        (_emptied, "holds no images in folders; give a folder of classes"),
        (_no_images, "holds no images in folders; give a folder of classes"),
        (lambda root: (root / "empty\nclass").mkdir(), r"holds no images, so class empty\\nclass has none; fill it or"),
        (shutil.rmtree, "does not exist; give a folder of classes"),
        (lambda root: (root / "Faces" / "\udcff.jpg").touch(), r"\\udcff.jpg has a name that is not UTF-8; rename it"),
    ],
)
def test_mistakes_are_said_in_one_line(
    caltech101: Path, cache: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(caltech101 / "101_ObjectCategories", tmp_path / "mine")
    spoil(tmp_path / "mine")
    with pytest.raises(UserError, match=said) as error:
        opened(tmp_path / "mine", cache)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "said"), [(b"PK\x03\x04", "is compressed"), (b"torn" * 300, "is not a tar")])
def test_files_that_are_no_tar(cache: Path, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "mine.tar").write_bytes(content)
    with pytest.raises(UserError, match=said):
        opened(tmp_path / "mine.tar", cache)


@pytest.mark.parametrize("field", ["splits", "train_per_class", "test_per_class"])
def test_numbers_that_leave_nothing(field: str) -> None:
    with pytest.raises(UserError, match=f"{field}=0 is too few; give "):
        replace(DRAWING, **{field: 0})
