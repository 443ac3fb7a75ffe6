"""Misfit boxes, torn files and malicious files are reported, and never stop the reading."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxes_as_files import tar_of, voc
from PIL import Image

from vggrepro.data.boxes.box_scan import open_boxes, read_boxes
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan_folder
from vggrepro.errors import UserError

HEIGHT, WIDTH = 40, 60
GOOD = voc([(1, 2, 10, 20)], "cat", (HEIGHT, WIDTH))
CUT_OFF = "archive cut off or damaged"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Training images of cats, 0.png to 9.png, and of a dog; a validation image of a cat."""
    root = tmp_path_factory.mktemp("images")
    for place in (*(f"train/cat/{n}.png" for n in range(10)), "train/dog/dog.png", "val/cat/val.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / place)
    return scan_folder(root)


def table(to: Path, *rows: str, header: str = "file\txmin\tymin\txmax\tymax") -> Path:
    file = to / "boxes.tsv"
    file.write_text("\n".join([header, "val.png\t0\t0\t9\t9", *rows]) + "\n")
    return file


def read_xml(index: Index, to: Path, content: bytes) -> BoxSet:
    """Reads an XML file of 0.png, beside a valid one of 1.png."""
    (to / "0.xml").write_bytes(content)
    (to / "1.xml").write_bytes(GOOD)
    found = read_boxes(index, [to])
    assert found.split("train").of(1).tolist() == [[1, 2, 11, 21]]
    return found


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ("9 5 3 20", "inverted"),
        ("9 20 12 5", "inverted"),
        ("9 5 8.5 20", "inverted"),
        ("9 5 8 20", "empty"),
        ("60 5 70 20", "outside the image"),
        ("5 40 9 50", "outside the image"),
        ("-9 5 -1 20", "outside the image"),
        ("1e300 1e300 1e308 1e308", "outside the image"),
        ("a 5 9 20", "not four numbers"),
        ("nan 5 9 20", "not four numbers"),
        ("1 2 inf 20", "not four numbers"),
        ("1 2 1e999 20", "not four numbers"),
        ("1_0 2 20 20", "not four numbers"),
        ("0x1 2 20 20", "not four numbers"),
        ("1 2 20", "not four numbers"),
        ("", "not four numbers"),
    ],
)
def test_boxes_that_are_left_out(index: Index, tmp_path: Path, numbers: str, reason: str) -> None:
    file = table(tmp_path, "0.png\t" + numbers.replace(" ", "\t"))
    found = read_boxes(index, [file])
    assert found.counts["left_out"] == {reason: 1}
    ((status, place),) = found.flagged
    assert status == f"left out: {reason}"
    assert place.startswith(f"{file}:3: {numbers}")
    assert found.counts["boxes"] == 1
    assert not found.split("train").has.any()


@pytest.mark.parametrize(
    ("numbers", "box", "clipped"),
    [
        ("0 0 59 39", [0, 0, 60, 40], False),
        ("0 0 60 40", [0, 0, 60, 40], False),
        ("-1 -1 5 5", [0, 0, 6, 6], False),
        ("0 0 61 20", [0, 0, 60, 21], True),
        ("-2 3 20 20", [0, 3, 21, 21], True),
        ("5 5 1e308 6", [5, 5, 60, 7], True),
        ("5 6 5 6", [5, 6, 6, 7], False),
        ("5.5 6 7.25 6", [5.5, 6, 8.25, 7], False),
    ],
)
def test_boxes_that_reach_beyond_the_image_are_clipped(
    index: Index, tmp_path: Path, numbers: str, box: list[float], clipped: bool
) -> None:
    """A pixel beyond the image is ILSVRC's way of counting, and is not reported."""
    found = read_boxes(index, [table(tmp_path, "0.png\t" + numbers.replace(" ", "\t"))])
    assert found.split("train").of(0).tolist() == [box]
    assert found.counts["clipped"] == clipped == len(found.flagged)
    assert found.counts["left_out"] == {}


def test_boxes_of_another_class_or_image_size_are_left_out(index: Index, tmp_path: Path) -> None:
    other = voc([(1, 2, 10, 20)], "dog", (HEIGHT, WIDTH))
    assert read_xml(index, tmp_path, other).counts["left_out"] == {"of another class than the image": 1}
    unknown = voc([(1, 2, 10, 20)], "n01", (HEIGHT, WIDTH))
    assert read_xml(index, tmp_path, unknown).counts["left_out"] == {"of another class than the image": 1}
    turned = voc([(1, 2, 10, 20), (3, 3, 4, 4)], "cat", (WIDTH, HEIGHT))
    assert read_xml(index, tmp_path, turned).counts["left_out"] == {"of another image size": 2}
    for size in ((0, 0), None):  # not stated
        assert read_xml(index, tmp_path, voc([(1, 2, 10, 20)], "cat", size)).counts["boxes"] == 2


ENTITIES = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{ENTITIES}]><annotation>&l9;</annotation>'.encode()
EXTERNAL = (
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:-20], "torn or invalid XML"),
        (b"", "torn or invalid XML"),
        (b"\0" * 3000, "torn or invalid XML"),
        (b"<annotation>\xff\xfe</annotation>", "torn or invalid XML"),
        (b'<?xml version="1.0" encoding="no-such"?>' + GOOD, "torn or invalid XML"),
        (b'<?xml version="1.0" encoding="utf-7"?>' + GOOD, "torn or invalid XML"),
        (b"<a/>", "not an annotation of PASCAL VOC"),
        (BOMB, "declares a DTD or entities"),
        (EXTERNAL, "declares a DTD or entities"),
        (b'<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation/>', "declares a DTD or entities"),
        (b"<annotation>" + b" " * (1 << 20) + b"</annotation>", "longer than 1 MiB"),
    ],
)
def test_invalid_xml_is_unread(index: Index, tmp_path: Path, content: bytes, reason: str) -> None:
    started = time.monotonic()
    found = read_xml(index, tmp_path, content)
    assert found.flagged == ((f"unread: {reason}", str(tmp_path / "0.xml")),)
    assert found.counts["unread"] == {reason: 1}
    assert time.monotonic() - started < 5


def test_deep_xml_and_xml_in_other_encodings_are_read(index: Index, tmp_path: Path) -> None:
    deep = b"<x>" * 100_000 + b"</x>" * 100_000
    assert read_xml(index, tmp_path, GOOD.replace(b"</annotation>", deep + b"</annotation>")).flagged == ()
    assert read_xml(index, tmp_path, GOOD.decode().encode("utf-16")).flagged == ()
    assert read_xml(index, tmp_path, GOOD.replace(b"<bndbox>", b"<bndbax>").replace(b"</bndbox>", b"</bndbax>")).counts[
        "left_out"
    ] == {"not four numbers": 1}
    assert read_xml(index, tmp_path, b"<annotation/>").flagged == (), "the image without objects counts"


def test_unreadable_annotation_files_are_reported(index: Index, tmp_path: Path) -> None:
    (tmp_path / "0.xml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "1.xml").write_bytes(GOOD)
    found = read_boxes(index, [tmp_path])
    assert found.counts["unread"] == {"cannot be opened (No such file or directory)": 1}
    assert found.counts["boxes"] == 1
    assert open_boxes(index, None, put_beside(tmp_path), tmp_path / "cache").counts == found.counts


def test_unreadable_folders_are_reported(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.xml").write_bytes(GOOD)
    listed = os.scandir

    def scandir(folder: str) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = read_boxes(index, [tmp_path])
    assert found.counts["boxes"] == 1
    assert [place for _, place in found.flagged] == [str(tmp_path / "closed")]


def put_beside(files: Path) -> Path:
    """Writes these XML files where Kaggle has them."""
    root = files / "root"
    shutil.copytree(files, root / "Annotations" / "CLS-LOC" / "train", symlinks=True, ignore=lambda *_: ["root"])
    return root


def test_damaged_tables_of_boxes(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "LOC_train_solution.csv"
    file.write_bytes(
        b"ImageId,PredictionString\r\n0,cat 1 2 3 4 cat 5 6 7\r\n\r\n,cat 1 2 3 4\n1\n2,\n3,cat 1 2 3 4\xff\n"
        b'4,cat 1 2 3 4\0\n5,"cat 1 2 3 4"\n6,' + b"cat 1 2 3 4 " * 100_000 + b"\n7,cat 1 2 3 4\n"
    )
    found = read_boxes(index, [file])
    assert found.split("train").counts.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found.counts["left_out"] == {"not four numbers": 2}
    assert found.counts["unread"] == {
        "a line longer than 1 MiB, where reading stopped": 1,
        "names no image": 1,
        "not UTF-8": 1,
    }
    assert all(place.isprintable() for _, place in found.flagged)


def test_a_table_may_have_folders_classes_and_more_columns_in_any_order(index: Index, tmp_path: Path) -> None:
    header = "note\tymax\txmax\tclass\tymin\txmin\tfile"
    file = tmp_path / "boxes.tsv"
    rows = ["x\t20\t10\tcat\t2\t1\t./train/cat/0.png", "\t20\t10\tdog\t2\t1\ttrain\\cat\\1.png", "x\t20\t10\t\t2\t1\t2"]
    file.write_bytes(("\ufeff" + "\r\n".join([header, *rows])).encode())
    found = read_boxes(index, [file])
    assert found.split("train").counts.tolist() == [1, 0, 1, *[0] * 8]
    assert found.counts["left_out"] == {"of another class than the image": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"some text\n",
        b"file\txmin\tymin\txmax\n0.png\t1\t2\t3\n",
        GOOD,
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        b"\xff" * 999,
    ],
)
def test_files_without_boxes_are_an_error(index: Index, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "boxes.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"contains no boxes.*; give "):
        read_boxes(index, [file])


def archive_of(numbers: range, mode: str = "w") -> bytes:
    return tar_of([(f"cat/{n}.xml", voc([(n, 2, 20, 20)], "cat")) for n in numbers], mode)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_archive_is_read_up_to_the_cut(index: Index, tmp_path: Path, compressed: bool) -> None:
    file = tmp_path / "boxes.tar"
    complete = archive_of(range(10))
    for end in (1024 * 4, 1024 * 4 + 100, 1024 * 4 + 512, 1024 * 4 + 700, 1024 * 9 + 600):
        cut = complete[:end]
        file.write_bytes(gzip.compress(cut) if compressed else cut)
        found = read_boxes(index, [file])
        assert found.split("train").has.sum() == end // 1024
        assert found.flagged == ((f"unread: {CUT_OFF}", str(file)),)
    file.write_bytes(gzip.compress(complete)[:30] if compressed else complete[:300])
    with pytest.raises(UserError, match=f"contains no boxes .*{CUT_OFF}"):
        read_boxes(index, [file])


def test_a_damaged_header_is_not_the_end_of_an_archive(index: Index, tmp_path: Path) -> None:
    complete = bytearray(archive_of(range(10)))
    complete[1024 * 5 + 150] ^= 0xFF  # the checksum of 5.xml
    (tmp_path / "boxes.tar").write_bytes(complete)
    found = read_boxes(index, [tmp_path / "boxes.tar"])
    assert found.split("train").has.sum() == 5
    assert found.counts["unread"] == {CUT_OFF: 1}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_of_tars_truncated_inside_a_tar(index: Index, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    inner = [
        ("a.tar", archive_of(range(3))),
        ("b.tgz", archive_of(range(3, 6), "w:gz")),
        ("c.tar", archive_of(range(6, 10))),
    ]
    outer = tar_of(inner, "w")
    cut = outer[: outer.index(b"cat/8.xml") + 200]
    file = tmp_path / "boxes.tar"
    file.write_bytes(compress(cut))
    found = read_boxes(index, [file])
    assert found.split("train").has.tolist() == [True] * 8 + [False] * 3
    assert set(found.counts["unread"]) == {CUT_OFF}
    assert f"{file}/c.tar" in {place for _, place in found.flagged}


def test_a_damaged_archive_does_not_stop_the_reading(index: Index, tmp_path: Path) -> None:
    damaged = bytearray(archive_of(range(3, 6), "w:gz"))
    damaged[40:60] = bytes(20)
    inner = [("a.tar", archive_of(range(3))), ("b.tgz", bytes(damaged)), ("c.tgz", archive_of(range(6, 10), "w:gz"))]
    (tmp_path / "boxes.tar").write_bytes(tar_of(inner))
    found = read_boxes(index, [tmp_path / "boxes.tar"])
    assert found.split("train").has[[0, 1, 2, 6, 7, 8, 9]].all()
    assert found.flagged == ((f"unread: {CUT_OFF}", f"{tmp_path / 'boxes.tar'}/b.tgz"),)


def declaring(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def test_headers_with_excessive_sizes(index: Index, tmp_path: Path) -> None:
    """A file or name of 100 MB is never read, and no header points back."""
    file, start = tmp_path / "boxes.tar", archive_of(range(1))[:1024]
    file.write_bytes(
        gzip.compress(start + declaring("cat/1.xml", 100 << 20) + bytes(100 << 20) + archive_of(range(2, 3)))
    )
    found = read_boxes(index, [file])
    assert found.split("train").has.tolist()[:3] == [True, False, True]
    assert found.flagged == (("unread: longer than 1 MiB", f"{file}/cat/1.xml"),)
    for header in (
        declaring("x", 100 << 20, tarfile.GNUTYPE_LONGNAME),
        declaring("x", 100 << 20, tarfile.XHDTYPE),
        declaring("cat/1.xml", -1024),
        declaring("cat/1.xml", -(1 << 60)),
        declaring("x", -1024, tarfile.GNUTYPE_LONGNAME),
        declaring("x", 1 << 62, tarfile.GNUTYPE_SPARSE),
    ):
        file.write_bytes(start + header + bytes(2048))
        started = time.monotonic()
        assert read_boxes(index, [file]).split("train").has.tolist()[:2] == [True, False]
        assert time.monotonic() - started < 5


def test_the_nesting_of_archives_is_limited(index: Index, tmp_path: Path) -> None:
    inner = archive_of(range(1))
    for depth in range(3):
        inner = tar_of([(f"deeper{depth}.tar", inner), (f"cat/{depth + 1}.xml", voc([(1, 2, 20, 20)], "cat"))])
    (tmp_path / "boxes.tar").write_bytes(inner)
    found = read_boxes(index, [tmp_path / "boxes.tar"])
    assert found.split("train").has.tolist()[:4] == [False, True, True, True]
    assert found.counts["unread"] == {"too many nested archives": 1}


def test_control_characters_in_names_are_escaped(index: Index, tmp_path: Path) -> None:
    members = [("cat/\x1b[2J\n.xml", b"torn"), ("cat/\udcff.xml", b"torn"), ("cat/0.xml", GOOD), ("._0.xml", b"x")]
    (tmp_path / "boxes.tar").write_bytes(tar_of(members))
    found = read_boxes(index, [tmp_path / "boxes.tar"])
    assert found.counts["unread"] == {"torn or invalid XML": 2}
    assert all(place.isprintable() for _, place in found.flagged)
    found.save(tmp_path / "boxes.npz")


def test_random_damage_never_ends_in_a_traceback(index: Index, tmp_path: Path) -> None:
    draw = random.Random(0)
    xml = [(f"cat/{n}.xml", voc([(n, 2, 20, 20), (1, 1, 5, 5)], "cat", (HEIGHT, WIDTH))) for n in range(10)]
    rows = "".join(f"{n}.png\t{n}\t2\t20\t20\n" for n in range(10))
    seeds = {
        "one.xml": xml[0][1],
        "flat.tar": tar_of(xml),
        "flat.tgz": tar_of(xml, "w:gz"),
        "tars.tar": tar_of([("a.tar", tar_of(xml[:5])), ("b.tgz", tar_of(xml[5:], "w:gz"))]),
        "boxes.tsv": ("file\txmin\tymin\txmax\tymax\n" + rows).encode(),
        "cat_boxes.txt": rows.encode(),
        "LOC_train_solution.csv": ("ImageId,PredictionString\n" + "0,cat 1 2 3 4 cat 5 6 7 8\n" * 9).encode(),
    }
    ends = {"boxes": 0, "line": 0}
    for number in range(1400):
        name = list(seeds)[number % len(seeds)]
        content = bytearray(seeds[name])
        for _ in range(draw.choice((1, 1, 3, 30))):
            at = draw.randrange(len(content) or 1)
            match draw.randrange(5):
                case 0:
                    content[at : at + 1] = b"%c" % draw.randrange(256)
                case 1:
                    content[at : at + draw.randrange(1, 600)] = b""
                case 2:
                    content[at:at] = content[: draw.randrange(600)]
                case 3:
                    content[at : at + 8] = draw.choice(
                        (b"nan", b"-1e999", b"\0" * 8, b"<", b"\t", b"77777777", b"\xff" * 8)
                    )
                case 4:
                    content = content[: max(at, 1)]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content)
        try:
            found = read_boxes(index, [folder / name])
        except UserError:
            ends["line"] += 1
            continue
        for split in ("train", "val"):
            boxes = found.split(split)
            assert np.isfinite(boxes.box).all()
            assert (boxes.box >= 0).all()
            assert (boxes.box[:, 2:] <= (WIDTH, HEIGHT)).all()
            assert (boxes.box[:, 2:] > boxes.box[:, :2]).all()
            assert boxes.start[-1] == len(boxes.box)
        found.save(tmp_path / "boxes.npz")
        ends["boxes"] += 1
    assert min(ends.values()) > 100, "both ends are reached"


def test_a_stream_is_read_front_to_back_once(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step back would uncompress an archive again from the start."""
    inner = [(f"{k}.tgz", archive_of(range(k, k + 5), "w:gz")) for k in (0, 5)]
    (tmp_path / "boxes.tgz").write_bytes(tar_of([*inner, ("9.tar", archive_of(range(9, 10)))], "w:gz"))
    places, original = [], gzip.GzipFile.seek

    def seek(stream: gzip.GzipFile, to: int, whence: int = io.SEEK_SET) -> int:
        places.append(0 if whence else to - stream._buffer.tell())  # type: ignore[attr-defined]
        return original(stream, to, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", seek)
    assert read_boxes(index, [tmp_path / "boxes.tgz"]).split("train").has.sum() == 10
    assert places
    assert min(places) >= 0
