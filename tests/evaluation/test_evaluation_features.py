"""Features, descriptors made of them, their stores, and the views of boxes."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Loader
from vggrepro.data.transfer.transfer_set import Partition, TransferSet
from vggrepro.data.views import region, region_shape
from vggrepro.errors import UserError
from vggrepro.evaluation import recognition
from vggrepro.evaluation.features import Features, FeaturesKey, descriptors, normalised, stacked
from vggrepro.evaluation.methods import region_views
from vggrepro.evaluation.transfers import (
    NetProtocol,
    SplitKey,
    TransferProtocol,
    list_transferred,
    load_transferred,
    save_truth,
    truth_file,
)
from vggrepro.storage.directory import RunDirectory

KEY = FeaturesKey("a" * 64, "fc7", "d" * 64, 256, flip=True)
NET = NetProtocol("a" * 64, "fc7", (256, 384), flip=True, precision="fp32")
TEST = TransferProtocol("mine", "d" * 64, "recall", (NET,), "stack", boxes=False, drawing={"seed": 0}, splits=2)
TARGETS = np.where(np.arange(6)[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)


def some(n: int = 7, d: int = 5, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((n, d), np.float32) * 9


# descriptors


def test_descriptors_have_unit_length() -> None:
    first, other = some(), some(seed=1) * 1000
    for combine in ("average", "stack"):
        found = descriptors([first, other], combine)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
        assert found.shape == (7, 5 if combine == "average" else 10)


def test_each_scale_counts_alike() -> None:
    """Features are normalised before they are averaged or stacked."""
    first, other = some().astype(np.float64), some(seed=1).astype(np.float64)
    a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, other))
    mean = (a + b) / np.linalg.norm(a + b, axis=1, keepdims=True)
    given = [part.astype(np.float32) for part in (first, other * 50)]
    np.testing.assert_allclose(descriptors(given, "average"), mean, rtol=1e-5)
    np.testing.assert_allclose(descriptors(iter(given), "stack"), np.hstack([a, b]) / 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(stacked(given[:1]), a, rtol=1e-5)
    np.testing.assert_array_equal(given[0], first.astype(np.float32), err_msg="what was given is as it was")


def test_rows_of_zeros_stay_zeros() -> None:
    values = some()
    values[3] = 0
    assert not normalised(values)[3].any()
    for combine in ("average", "stack"):
        assert np.isfinite(found := descriptors([values, values], combine)).all()
        assert not found[3].any()
    half = descriptors([values, some(seed=1)], "average")
    np.testing.assert_allclose(half[3], normalised(some(seed=1))[3], rtol=1e-6)


# stores


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_features_are_stored_as_they_are(run: RunDirectory) -> None:
    assert KEY.load(run) is None
    KEY.save(run, Features(some()))
    found = KEY.load(run)
    assert found is not None
    np.testing.assert_array_equal(found.values, some())


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "b" * 64},
        {"layer": "pool5"},
        {"data": "e" * 64},
        {"Q": 384},
        {"flip": False},
        {"precision": "bf16"},
        {"boxes": "f" * 64},
    ],
)
def test_each_protocol_has_a_separate_file(run: RunDirectory, change: dict) -> None:
    KEY.save(run, Features(some()))
    assert replace(KEY, **change).load(run) is None


def test_a_file_of_another_protocol_is_refused(run: RunDirectory) -> None:
    """The hashes of both protocols have the same first digits, so that the files have the same name."""
    KEY.save(run, Features(some()))
    other = replace(KEY, weights="a" * 12 + "b" * 52)
    with pytest.raises(UserError, match="are of another protocol; remove the file and evaluate again") as refused:
        other.load(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_a_one_line_error(run: RunDirectory, share: float) -> None:
    KEY.save(run, Features(some()))
    file = KEY.file(run)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cannot be read .*; remove the file") as refused:
        KEY.load(run)
    assert "\n" not in str(refused.value)


def scores(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32)


def keep(run: RunDirectory, *splits: int) -> None:
    """Stores the scores of some splits."""
    for split in splits:
        note = recognition.SplitScores(np.arange(3) + split, scores(split))
        SplitKey(TEST, split).save(run, note, C=0.1, validated=[(0.1, 50.0)], unfinished=(), runs=["x:D"], images=6)


def test_a_test_exists_once_all_splits_do(run: RunDirectory) -> None:
    keep(run, 0)
    save_truth(TARGETS, run, TEST.data)
    assert not all(file.exists() for file in TEST.files(run))
    assert load_transferred(TEST, run) is None
    assert not list(list_transferred(run))
    keep(run, 0, 1)
    assert all(file.exists() for file in TEST.files(run))
    (found,) = list_transferred(run)
    assert (found.protocol, found.C, found.note["images"]) == (TEST, (0.1, 0.1), 6)
    for split, figure in enumerate(found.result.figures):
        rows = TARGETS[split : split + 3]
        hits = rows[np.arange(3), scores(split).argmax(1)] > 0
        recalls = [hits[rows[:, c] > 0].mean() for c in (0, 1)]
        assert figure == pytest.approx(100 * np.mean(recalls))


def test_missing_targets_need_another_test(run: RunDirectory) -> None:
    keep(run, 0, 1)
    assert not all(file.exists() for file in TEST.files(run))
    with pytest.raises(UserError, match=r"lack the truth, truth-dddd.*; test again") as refused:
        list(list_transferred(run))
    assert "\n" not in str(refused.value)
    assert truth_file(run, TEST.data).name in str(refused.value)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("content", [b"", b"PK\3\4", "foreign"])
def test_truncated_and_foreign_files_are_one_line_errors(run: RunDirectory, split: int, content: bytes | str) -> None:
    keep(run, 0, 1)
    save_truth(TARGETS, run, TEST.data)
    if isinstance(content, str):
        made = io.BytesIO()
        np.savez(made, rows=np.arange(3))
        content = made.getvalue()
    SplitKey(TEST, split).file(run).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read .*; remove the file") as refused:
        load_transferred(TEST, run)
    assert "\n" not in str(refused.value)


def test_other_tests_have_other_files(run: RunDirectory) -> None:
    others = [
        replace(TEST, nets=(NET, NET)),
        replace(TEST, nets=(replace(NET, Q=(256,)),)),
        replace(TEST, combine="average"),
        replace(TEST, boxes=True),
        replace(TEST, drawing={"seed": 1}),
        replace(TEST, rows="edited"),
        replace(TEST, C=(1.0,)),
    ]
    files = {key.file(run) for test in [TEST, *others] for key in test.keys}
    assert len(files) == 16


def made_set(index: Index, **changes: object) -> TransferSet:
    image, n = np.array([0, 0, 1]), np.arange(3)
    boxes = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9]])
    parts = [Partition(n[:1], n[1:2], n[2:])]
    built = TransferSet("mine", index, ("a", "b"), "mAP", image, TARGETS[:3], parts, boxes=boxes)
    return replace(built, **changes)  # type: ignore[arg-type]


def test_fingerprints_of_a_data_set(odd_index: Index) -> None:
    """The fingerprints change with the images of the boxes and with the splits."""
    first, other = made_set(odd_index), made_set(odd_index, image=np.array([0, 1, 1]))
    assert first.boxes_fingerprint != other.boxes_fingerprint
    assert first.fingerprint != other.fingerprint
    n = np.arange(3)
    moved = made_set(odd_index, partitions=[Partition(n[:1], n[2:], n[1:2])])
    assert moved.fingerprint == first.fingerprint
    assert moved.split_fingerprint != first.split_fingerprint
    assert made_set(odd_index).split_fingerprint == first.split_fingerprint


# boxes


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Two smooth images of 120 x 160 px without compression."""
    root = tmp_path_factory.mktemp("smooth")
    for number in range(2):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
        for split in ("train", "val"):
            (root / split / "x").mkdir(parents=True, exist_ok=True)
            image.save(root / split / "x" / f"{number}.png")
    return scan_folder(root)


BOXES = [
    (40, 30, 100, 90),  # left, top, right, bottom: in the middle
    (0, 0, 160, 120),  # all of it
    (0, 0, 50, 80),
    (110, 20, 160, 120),  # at the edges
    (30.4, 20.6, 77.7, 99.2),  # taken outwards
    (0, 0, 160, 3),  # a strip
    (80, 60, 81, 61),  # a pixel
    (159, 119, 160, 120),  # the last
    (0, 0, 1, 1),
    (5, 50, 7, 118),
]


@pytest.mark.parametrize("Q", [16, 40, 150])
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_a_box_shows_its_pixels(smooth: Index, loader: Loader, box: tuple[float, float, float, float], Q: int) -> None:
    """The view equals PIL's crop and rescale, except for the border, beyond which PIL sees nothing."""
    split = smooth.split("val").take(np.array([0]))
    (views,) = region_views(split, np.array([box], float), Q, 64, 32)
    (batch,) = loader.batches(split, [views])
    shown = batch.images[0].permute(1, 2, 0).numpy() + np.array(loader.mean, np.float32)
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    with Image.open(split.name_of(0)) as image:
        height, width = shown.shape[:2]
        cut = image.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BILINEAR)
    assert min(shown.shape[:2]) == Q
    assert max(shown.shape[:2]) == pytest.approx(
        Q * max(right - left, bottom - top) / min(right - left, bottom - top), abs=1
    )
    difference = np.abs(shown - np.asarray(cut, np.float32))
    # windows begin at whole rescaled pixels: up to half of one, or of so many of the image's, lies between the two
    shrunk = max(1, min(right - left, bottom - top) / Q)
    assert difference.mean() < 3 * shrunk, "of 256 grey levels"
    inner = difference[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    assert inner.mean() < 2 * shrunk


def test_boxes_have_integer_edges_within_the_image() -> None:
    size = np.array([[120, 160]] * 4)
    boxes = np.array([[30.4, 20.6, 77.7, 99.2], [159.2, 119.5, 160, 120], [10, 10, 10, 10], [0, 0, 160, 120]])
    edges, shape = region_shape(size, boxes, 60)
    assert edges.tolist() == [[20, 30, 100, 78], [119, 159, 120, 160], [10, 10, 11, 11], [0, 0, 120, 160]]
    assert shape.tolist() == [[100, 60], [60, 60], [60, 60], [60, 80]]


def test_a_window_is_within_the_rescaled_image() -> None:
    random = np.random.default_rng(0)
    size = random.integers(1, 700, (500, 2))
    low = (random.random((500, 2)) * size).astype(int)
    high = np.minimum(low + 1 + (random.random((500, 2)) * (size - low)).astype(int), size)
    edges = np.concatenate([low, high], axis=1)
    for row in range(500):
        _, shape = region_shape(size[row : row + 1], edges[row : row + 1, [1, 0, 3, 2]].astype(float), 73)
        views = region(np.array([0]), size[row : row + 1], edges[row : row + 1], (int(shape[0, 0]), int(shape[0, 1])))
        assert (views.corner >= 0).all()
        assert (views.corner + views.shape <= views.rescaled).all()
        scale = views.rescaled / size[row : row + 1]
        off = np.abs(views.source_window() - edges[row]) * np.tile(scale, 2)
        assert off.max() <= 1.01 + 0.5 * max(views.shape) / min(views.rescaled.min(), *views.shape), (
            size[row],
            edges[row],
        )


def test_every_box_is_shown_once_for_any_image(smooth: Index) -> None:
    image = np.array([0, 0, 1, 0, 1, 1, 0])
    boxes = np.array(
        [
            [0, 0, 30, 30],
            [50, 20, 80, 50],
            [0, 0, 30, 60],
            [1, 1, 2, 2],
            [9, 9, 39, 39],
            [0, 0, 160, 120],
            [3, 3, 33, 63.0],
        ]
    )
    split = smooth.split("val").take(image)
    views = region_views(split, boxes, 40, 3, 40)
    assert sorted(np.concatenate([view.image for view in views]).tolist()) == list(range(7))
    assert [len(view) for view in views] == sorted((len(view) for view in views), reverse=True)
    assert all(len(view) == 1 or len(view) * np.prod(view.shape) <= 3 * 40**2 for view in views)
    assert [split.name_of(row) for row in range(7)] == [smooth.split("val").name_of(view) for view in image]
