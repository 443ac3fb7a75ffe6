"""Opening of a net for the page, and the pixels of a file."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggrepro.errors import UserError
from vggrepro.show.exhibit import Exhibit, decoded, open_exhibit
from vggrepro.storage.directory import RunDirectory

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_files_of_any_mode() -> None:
    grey = Image.fromarray(GREY)
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    for mode in ("L", "RGB", "RGBA", "LA"):
        assert np.array_equal(decoded(saved(grey.convert(mode)), "mine.png"), expected), mode
    sixteen = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(decoded(saved(sixteen), "mine.png"), expected), "16 bits are scaled, not clipped"
    assert np.array_equal(decoded(saved(grey.convert("RGB"), "WEBP", lossless=True), "mine.webp"), expected)
    for mode, kind in (("P", "GIF"), ("1", "PNG"), ("CMYK", "JPEG")):
        assert decoded(saved(grey.convert(mode), kind), "mine").shape == (20, 30, 3)


def test_exif_rotates_nothing() -> None:
    """As in the pipeline: a net was trained on pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(GREY)
    assert decoded(saved(image, "JPEG", exif=exif), "mine.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<svg/>", "not an image"),
        (saved(Image.fromarray(GREY))[:120], "(truncated|broken.*)"),
        (saved(Image.fromarray(GREY), "JPEG")[:500], "truncated"),
    ],
    ids=["empty", "text", "png", "jpeg"],
)
def test_a_bad_file_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^mine.jpg cannot be shown: {reason}; choose another image") as mistake:
        decoded(content, "mine.jpg")
    assert "\n" not in str(mistake.value)


def test_a_run_without_its_images_is_shown_all_the_same(shown_run: RunDirectory, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "paper" / "A"
    shutil.copytree(shown_run.path, run)
    stored = (run / "config.yaml").read_text()
    gone = tmp_path / "gone"
    (run / "config.yaml").write_text(re.sub(r"(?m)^  root: .*images.*$", f"  root: {gone}", stored))
    found = open_exhibit(str(run))
    assert found.images is None
    assert str(gone) in found.why_no_images
    assert [(measured.method, measured.Q) for measured in found.errors()] == [
        ("centre", (37,)),
        ("dense", (37,)),
        ("dense", (37, 72, 110)),
    ]
    departures = found.departures()
    assert departures is not None
    assert "model.width" in [departure.setting for departure in departures]


def test_images_of_other_classes_are_not_shown(shown_run: RunDirectory, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(images, other)
    for split in ("train", "val"):
        (other / split / "n03").rename(other / split / "n04")
    run = tmp_path / "runs" / "paper" / "A"
    shutil.copytree(shown_run.path, run)
    stored = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^  root: .*images.*$", f"  root: {other}", stored))
    found = open_exhibit(str(run))
    assert found.images is None
    assert "has other classes than the net was trained on" in found.why_no_images


def test_a_checkpoint_in_its_run_directory_and_one_taken_out(shown_run: RunDirectory, tmp_path: Path) -> None:
    final = shown_run.checkpoints / "final.pt"
    inside = open_exhibit(str(final))
    assert inside.run is not None
    assert inside.images is not None
    assert len(list(inside.errors())) == 3
    shutil.copy(final, tmp_path / "A.pt")
    outside = open_exhibit(str(tmp_path / "A.pt"))
    assert (outside.run, outside.images) == (None, None)
    assert outside.net.weights == inside.net.weights
    assert (outside.stage.single_Q, outside.stage.evaluation.flip) == ((37,), True)
    assert list(outside.errors()) == []
    assert outside.departures() is None


def test_an_image_that_has_gone_bad_is_named(shown_run: RunDirectory, images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    run = tmp_path / "runs" / "paper" / "A"
    shutil.copytree(shown_run.path, run)
    stored = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^  root: .*images.*$", f"  root: {root}", stored))
    found: Exhibit = open_exhibit(str(run))
    assert found.images is not None
    file = Path(found.images.name_of(2))
    file.write_bytes(file.read_bytes()[:-200])
    assert found.pixels(1).shape[2] == 3
    with pytest.raises(UserError, match=rf"{re.escape(str(file))} cannot be shown: \d+ bytes long, \d+ when"):
        found.pixels(2)
