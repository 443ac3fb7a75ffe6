"""The index: layouts, messages about users' mistakes, caching and renewal."""

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts_as_files import (
    LABELS,
    WNIDS,
    flat,
    flat_val,
    ilsvrc_archives,
    put_devkit,
    put_kaggle_labels,
    put_named_labels,
    same_images,
    tar_of,
    val_images,
)
from tiny import TINY

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Data
from vggrepro.data.decode import BadImageError
from vggrepro.data.images import scan as scan_module
from vggrepro.data.images.index import Index, load
from vggrepro.data.images.scan import open_index, scan, scan_folder
from vggrepro.data.images.sources import check_md5
from vggrepro.data.loading.loader import Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.errors import UserError
from vggrepro.models.weights import ILSVRC_CLASSES_SHA256
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import train_stage
from vggrepro.storage.checkpoint import newest
from vggrepro.storage.directory import RunDirectory


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize("put_labels", LABELS)
def test_original_archives_equal_folders(
    folders: Path, tmp_path: Path, put_labels: Callable[[Path, Path], None]
) -> None:
    ilsvrc_archives(folders, tmp_path)
    put_labels(folders, tmp_path)
    archives, unpacked = scan([tmp_path], "header"), scan_folder(folders)
    assert archives.classes == tuple(sorted(WNIDS.values()))
    assert archives.summary()["splits"] == {"train": 24, "val": 8}
    assert same_images(archives, unpacked)
    assert archives.fingerprint == unpacked.fingerprint


def test_original_archives_give_the_same_batches_as_folders(folders: Path, tmp_path: Path, backend: str) -> None:
    ilsvrc_archives(folders, tmp_path)
    put_devkit(folders, tmp_path)
    of: list[list[torch.Tensor]] = []
    for index in (scan([tmp_path], "header"), scan_folder(folders)):
        split = index.split("train")
        sampler = TrainingSampler(split.size, Data(S=(64, 128)), 64, seed=0)
        loader = Loader(backend, (123.68, 116.779, 103.939), 2, torch.device("cpu"))
        batches = loader.batches(split, (sampler.views(step * 8, 8) for step in range(6)))
        of.append([part for batch in batches for part in (batch.images, batch.labels)])
    assert len(of[0]) == 12
    assert all(torch.equal(left, right) for left, right in zip(*of, strict=True))


def test_training_on_original_archives_equals_training_on_folders(folders: Path, tmp_path: Path) -> None:
    """Weights and momentum, losses and validation errors are equal bit for bit."""
    ilsvrc_archives(folders, tmp_path)
    put_devkit(folders, tmp_path)
    runs = []
    for name, source in (("archives", tmp_path), ("folders", folders)):
        file = tmp_path / f"{name}.idx"
        scan([source], "full").save(file)
        texts = [*TINY, "model.classes=2", "data.S=[37, 60]", f"data.index={file}", f"run.root={tmp_path / 'runs'}"]
        stage = override(Config(model={"net": "A"}), [*texts, f"run.name={name}"], file)
        with open_session([stage]) as session:
            train_stage(stage, None, session)
        runs.append(RunDirectory(stage.directory))
    states = []
    for run in runs:
        saved = newest(run.checkpoints)
        assert saved is not None
        states.append(
            saved.weights | {f"momentum {name}": tensor for name, tensor in saved.training["momentum"].items()}
        )
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for kind, what in (("train", "loss"), ("validation", "top1_error")):
        courses = [[record[what] for record in run.records(kind)] for run in runs]
        assert courses[0]
        assert courses[0] == courses[1]


def test_archives_and_labels_may_be_named_individually(folders: Path, tmp_path: Path) -> None:
    archives, elsewhere = tmp_path / "archives", tmp_path / "elsewhere"
    archives.mkdir(), elsewhere.mkdir()
    ilsvrc_archives(folders, archives)
    put_devkit(folders, elsewhere)
    files = [*sorted(archives.iterdir()), elsewhere / "ILSVRC2012_devkit_t12.tar.gz"]
    assert same_images(scan(files, "header"), scan_folder(folders))


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tree(folders: Path, tmp_path: Path, given: str) -> None:
    flat_val(folders, tmp_path / "ILSVRC/Data/CLS-LOC")
    put_kaggle_labels(folders, tmp_path)
    assert same_images(scan_folder(tmp_path / given), scan_folder(folders))


def test_a_flat_val_folder_with_labels(folders: Path, tmp_path: Path) -> None:
    flat_val(folders, tmp_path)
    put_named_labels(folders, tmp_path)
    assert same_images(scan_folder(tmp_path), scan_folder(folders))


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize("top", ["", "./", "imagenet/"])
def test_a_folder_in_a_tar(folders: Path, tmp_path: Path, top: str) -> None:
    members = [(f"{top}{file.relative_to(folders)}", file.read_bytes()) for file in sorted(folders.rglob("*.JPEG"))]
    (tmp_path / "all.tar").write_bytes(tar_of(members))
    index, of_folders = scan([tmp_path / "all.tar"], "header"), scan_folder(folders)
    assert same_images(index, of_folders)
    inside = Path(of_folders.split("val").name_of(3)).relative_to(folders)
    assert Path(index.split("val").name_of(3)) == tmp_path / "all.tar" / top / inside


def only_val(folders: Path, to: Path) -> Path:
    """The original archive of validation images suffices for testing."""
    to.mkdir()
    ilsvrc_archives(folders, to)
    (to / "ILSVRC2012_img_train.tar").unlink()
    return to / "ILSVRC2012_img_val.tar"


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize("put_labels", LABELS)
@pytest.mark.parametrize("named_in_full", [False, True])
def test_the_validation_archive_alone(
    folders: Path, tmp_path: Path, put_labels: Callable[[Path, Path], None], named_in_full: bool
) -> None:
    archive = only_val(folders, tmp_path / "val")
    elsewhere = tmp_path / ("labels" if named_in_full else "val")
    elsewhere.mkdir(exist_ok=True)
    put_labels(folders, elsewhere)
    named = [file for file in elsewhere.rglob("*") if file.is_file() and file.name not in (archive.name, "meta.mat")]
    alone = scan([archive, *named] if named_in_full else [archive], "header")
    assert same_images(alone, scan_folder(folders), ["val"])
    assert alone.summary()["splits"] == {"train": 0, "val": 8}
    assert len(alone.split("train")) == alone.split("train").rejected == 0
    alone.save(tmp_path / "index")
    assert same_images(load(tmp_path / "index"), alone, ["val"])
    assert load(tmp_path / "index").fingerprint == alone.fingerprint


def test_a_folder_with_val_only(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val", tmp_path / "data" / "val")
    assert same_images(scan_folder(tmp_path / "data"), scan_folder(folders), ["val"])
    with pytest.raises(UserError, match=r"--mean needs training images, but .*data has none"):
        scan([tmp_path / "data"], mean=True)


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize("put_labels", LABELS)
def test_labels_of_missing_images_add_classes(
    folders: Path, tmp_path: Path, put_labels: Callable[[Path, Path], None]
) -> None:
    """A part of the validation set has the classes of the full set."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    churches = val_images(folders)[::2]
    for file in churches:
        shutil.copy(file, tmp_path / "data" / "val")
    put_labels(folders, tmp_path / "data")
    part, complete = scan_folder(tmp_path / "data"), scan_folder(folders)
    assert part.classes == complete.classes
    assert {file.parent.name for file in churches} == {WNIDS["church"]}
    names = part.split("val").names.to_pylist()
    label = dict(zip(complete.split("val").names.to_pylist(), complete.split("val").label.tolist(), strict=True))
    assert part.split("val").label.tolist() == [label[name] for name in names]


def class_lists(to: Path) -> Iterator[str]:
    """Writes all classes in every format, including a class without images."""
    wnids = [*sorted(WNIDS.values(), reverse=True), "n99999999"]
    (to / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (to / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} a name, another one\n" for wnid in wnids))
    rows = "".join(f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4\n" for n, wnid in enumerate(wnids))
    (to / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    for file in sorted(to.iterdir()):
        yield str(file)


@pytest.mark.usefixtures("inspected_in_process")
def test_a_class_list_determines_all_classes(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val" / WNIDS["church"], tmp_path / "data" / "val" / WNIDS["church"])
    assert scan_folder(tmp_path / "data").classes == (WNIDS["church"],)
    (tmp_path / "lists").mkdir()
    every = (*sorted(WNIDS.values()), "n99999999")
    for class_list in class_lists(tmp_path / "lists"):
        part = scan([tmp_path / "data"], "header", classes=class_list)
        assert part.classes == every, class_list
        assert set(part.split("val").label.tolist()) == {every.index(WNIDS["church"])}
        assert scan([folders], "header", classes=class_list).classes == every, "also beside training images"
    part = scan([tmp_path / "data"], "header", classes="ilsvrc2012")
    assert len(part.classes) == 1000
    assert hashlib.sha256("\n".join(part.classes).encode()).hexdigest() == ILSVRC_CLASSES_SHA256
    assert part.against_ilsvrc() == ["0 train images, ILSVRC-2012 has 1281167", "4 val images, ILSVRC-2012 has 50000"]


def test_class_numbers_in_shards_are_positions_in_the_class_list(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"class {n:02}" for n in range(12)))
    members: list[tuple[str, bytes]] = []
    for number, file in enumerate(val_images(folders)[:3]):
        members += [(f"{number}.jpg", file.read_bytes()), (f"{number}.cls", str(4 * number).encode())]
    (tmp_path / "val-0.tar").write_bytes(tar_of(members))
    part = scan([tmp_path / "val-0.tar"], "header", classes=str(tmp_path / "names.txt"))
    assert part.split("val").label.tolist() == [0, 4, 8]
    assert part.classes[8] == "class 08"
    (tmp_path / "names.txt").write_text("\n".join(f"class {n}" for n in range(8)))
    with pytest.raises(UserError, match="an image has the class 8, but there are 8 classes; give the complete list"):
        scan([tmp_path / "val-0.tar"], "header", classes=str(tmp_path / "names.txt"))


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--classes .*list is not a file; give a list of all classes, one per line, or ilsvrc2012"),
        (b"", "--classes .*list is empty"),
        (b"cat\ndog\ncat\n", "--classes .*list names cat twice"),
        (b"\xff\xfe\x00", "--classes .*list cannot be read"),
        (b"n00000001\n", r"class n\d+ of .* is not among the 1 listed"),
    ],
)
def test_a_wrong_list_of_classes(folders: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        scan([folders], "header", classes=str(tmp_path / "list"))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("inspected_in_process")
def test_webdataset_shards(folders: Path, tmp_path: Path) -> None:
    """Class numbers are labels in the order of the folders' names; shards of a split are joined."""
    number = {wnid: str(n) for n, wnid in enumerate(sorted(WNIDS.values()))}
    for split in ("train", "val"):
        files = sorted((folders / split).rglob("*.JPEG"))
        for shard in range(2):
            members: list[tuple[str, bytes]] = []
            for file in files[shard::2]:
                of_class = number[file.parent.name].encode()
                members += [(f"{file.stem}.jpg", file.read_bytes()), (f"{file.stem}.cls", of_class)]
            (tmp_path / f"imagenet-{split}-{shard:06d}.tar").write_bytes(tar_of(members))
    index = scan([tmp_path], "header")
    assert index.classes == ("0", "1")
    for name in ("train", "val"):
        assert np.array_equal(index.split(name).label, scan_folder(folders).split(name).label)
        assert np.array_equal(index.split(name).size, scan_folder(folders).split(name).size)


# Users' mistakes


def emptied(folders: Path, to: Path) -> Path:
    (to / "train" / "n00000000").mkdir(parents=True)
    shutil.copytree(folders, to, dirs_exist_ok=True)
    return to


def without_val(folders: Path, to: Path) -> Path:
    shutil.copytree(folders / "train", to / "train")
    return to


def unknown_val_class(folders: Path, to: Path) -> Path:
    shutil.copytree(folders, to)
    (to / "val" / "n03028079").rename(to / "val" / "n99999999")
    return to


def no_class_folders(folders: Path, to: Path) -> Path:
    (to / "train").mkdir(parents=True)
    (to / "val").mkdir()
    return to


def archives_without_labels(folders: Path, to: Path) -> Path:
    to.mkdir()
    ilsvrc_archives(folders, to)
    return to


def archives_with_few_labels(folders: Path, to: Path) -> Path:
    archives_without_labels(folders, to)
    (to / "val_labels.txt").write_text("ILSVRC2012_val_00000001.JPEG n03028079\n")
    return to


def only_training_archive(folders: Path, to: Path) -> Path:
    archives_without_labels(folders, to)
    return to / "ILSVRC2012_img_train.tar"


def half_copied(folders: Path, to: Path) -> Path:
    archive = only_training_archive(folders, to)
    os.truncate(archive, archive.stat().st_size // 3)
    return to


def compressed(folders: Path, to: Path) -> Path:
    to.mkdir()
    with tarfile.open(to / "train.tar", "w:gz") as tar:
        tar.add(folders / "train", "train")
    return to


def not_a_tar(folders: Path, to: Path) -> Path:
    to.mkdir()
    (to / "train.tar").write_bytes(b"<html>404</html>" * 100)
    return to


def images_of_no_class(folders: Path, to: Path) -> Path:
    to.mkdir()
    (to / "train.tar").write_bytes(tar_of(flat((folders / "train").rglob("*.JPEG"))))
    return to


def broken_labels(folders: Path, to: Path) -> Path:
    archives_without_labels(folders, to)
    (to / "meta.bin").write_bytes(b"nothing that torch has saved")
    return to


@pytest.mark.usefixtures("inspected_in_process")
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda folders, to: to, "wrong does not exist"),
        (no_class_folders, "train has no class folders"),
        (emptied, "n00000000 holds no images"),
        (without_val, "wrong has no val images"),
        (unknown_val_class, "n99999999 .* no train images"),
        (archives_without_labels, "labels of the validation images .* are missing; put ILSVRC2012_devkit_t12.tar.gz"),
        (archives_with_few_labels, r"val_labels.txt has no label for ILSVRC2012_val_00000002.JPEG \(1 labels\)"),
        (only_training_archive, "ILSVRC2012_img_train.tar has no val images"),
        (half_copied, "ILSVRC2012_img_train.tar is cut off"),
        (compressed, "train.tar is compressed"),
        (not_a_tar, "train.tar is not a tar archive"),
        (images_of_no_class, "train.tar holds .*JPEG, but"),
        (broken_labels, "meta.bin cannot be read"),
    ],
)
def test_user_mistakes_are_single_line_errors(
    folders: Path, tmp_path: Path, mistake: Callable[[Path, Path], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        scan([mistake(folders, tmp_path / "wrong")], "header")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "wrong")
    (tmp_path / "wrong" / "train").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        scan_folder(tmp_path / "wrong")
    (tmp_path / "wrong" / "train").chmod(0o755)


def test_wrong_md5(folders: Path, tmp_path: Path) -> None:
    ilsvrc_archives(folders, tmp_path)
    with pytest.raises(UserError, match=r"MD5 .*, not 1d675b47d978889d74fa0da5fadfb00e"):
        check_md5([tmp_path / "ILSVRC2012_img_train.tar"])
    with pytest.raises(UserError, match=r"none of .* is ILSVRC2012_img_train.tar"):
        check_md5([folders])


# Caching and renewal


def test_a_saved_index_is_loaded_as_a_memory_map(folders: Path, tmp_path: Path) -> None:
    scanned = scan([folders], "full", mean=True)
    scanned.save(tmp_path / "x.idx")
    loaded = load(tmp_path / "x.idx")
    assert loaded.summary() == scanned.summary()
    assert loaded.mean_rgb == scanned.mean_rgb
    assert same_images(scanned, loaded)
    for column in ("label", "offset", "length", "size", "container"):
        assert not getattr(loaded.split("train"), column).flags.owndata  # shared by all processes of a machine


def test_mean_rgb_is_the_mean_of_the_images_means(folders: Path) -> None:
    from PIL import Image

    means = [np.asarray(Image.open(file)).mean(axis=(0, 1)) for file in (folders / "train").rglob("*.JPEG")]
    assert np.allclose(scan([folders], "full", mean=True).mean_rgb, np.mean(means, axis=0))


def test_an_index_older_than_its_files_is_refused(folders: Path, tmp_path: Path) -> None:
    ilsvrc_archives(folders, tmp_path)
    put_devkit(folders, tmp_path)
    path = tmp_path / "x.idx"
    scan([tmp_path], "header").save(path)
    load(path)
    archive = tmp_path / "ILSVRC2012_img_val.tar"
    os.utime(archive, (1, 1))
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar has changed since index .* was made"):
        load(path)
    archive.unlink()
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar of index .* is missing"):
        load(path)


def test_an_index_older_than_its_folders_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "data")
    scan_folder(tmp_path / "data").save(tmp_path / "x.idx")
    next((tmp_path / "data/train").rglob("*.JPEG")).unlink()
    with pytest.raises(UserError, match="has changed since index"):
        load(tmp_path / "x.idx")


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0 and then nothing", b"something else"])
def test_a_torn_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(UserError, match=r"x.idx cannot be read .* make it again"):
        load(tmp_path / "x.idx")


def test_a_cached_scan_is_reused_until_a_file_changes(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(folders, root)
    scans: list[object] = []
    real = scan_module.scan
    monkeypatch.setattr(scan_module, "scan", lambda *args, **options: scans.append(1) or real(*args, **options))

    def opened() -> Index:
        return open_index(str(root), None, cache, lambda done, total: None)

    first = opened()
    assert opened().fingerprint == first.fingerprint
    assert len(scans) == 1
    image, other = sorted((root / "train").rglob("*.JPEG"))[:2]
    shutil.copy(other, image)  # in place: the folder does not change
    assert opened().fingerprint != first.fingerprint
    assert len(scans) == 2
    image.unlink()
    assert opened().table.num_rows == first.table.num_rows - 1
    assert len(scans) == 3


def test_an_interrupted_scan_resumes(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_CHUNK", 4)
    journal = tmp_path / "journal"

    class Interrupt(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= 12:
            raise Interrupt

    with pytest.raises(Interrupt):
        scan([folders], "header", journal=journal, progress=interrupt)
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:
        file.write('["torn')
    looked_at: list[int] = []
    real = scan_module.verify

    def counted(chunks, how, **options):  # type: ignore[no-untyped-def]
        chunks = list(chunks)
        looked_at.extend(map(len, chunks))
        return real(chunks, how, **options)

    monkeypatch.setattr(scan_module, "verify", counted)
    resumed = scan([folders], "header", journal=journal)
    assert sum(looked_at) == 32 - 12
    assert resumed.summary() == scan([folders], "header").summary()
    assert not journal.exists()


def test_an_image_that_grew_or_shrank_is_bad(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "data")
    split = scan_folder(tmp_path / "data").split("train")
    for image, change in enumerate((b"x", b"")):
        file = Path(split.name_of(image))
        content = file.read_bytes()
        file.write_bytes(content + change if change else content[:-1])
        with pytest.raises(BadImageError, match=r"bytes long, \d+ when it was indexed"):
            split.read(image)
    Path(split.name_of(2)).unlink()
    with pytest.raises(BadImageError, match="No such file"):
        split.read(2)


def test_a_data_set_with_ilsvrcs_classes_is_compared_with_ilsvrc(folders: Path) -> None:
    index = scan_folder(folders)
    assert index.against_ilsvrc() is None
    claims = Index(index.table, tuple(f"n{n:08d}" for n in range(1000)), "", "full", ())
    differences = claims.against_ilsvrc()
    assert differences == ["24 train images, ILSVRC-2012 has 1281167", "8 val images, ILSVRC-2012 has 50000"]
    assert all(re.fullmatch(r"\d+ \w+ images, .*", line) for line in differences)
