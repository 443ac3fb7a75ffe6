"""The page as Streamlit runs it: full at once, whatever is chosen or dropped, and one line where something is wrong."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import tiny_vgg
from PIL import Image
from streamlit.testing.v1 import AppTest

from vggrepro.models.weights import PREPROCESSING, write
from vggrepro.pipeline.weights import export_weights
from vggrepro.show import views
from vggrepro.show.exhibit import Exhibit
from vggrepro.storage.directory import RunDirectory


def page_of(source: object) -> AppTest:
    def script(source: str) -> None:
        from vggrepro.show.page import show_page

        show_page(source)

    return AppTest.from_function(script, args=(str(source),), default_timeout=60)


def texts(page: AppTest) -> str:
    assert not page.exception, page.exception
    kinds = (page.header, page.subheader, page.caption, page.markdown, page.code, page.error, page.info)
    return "\n".join(element.value for kind in kinds for element in kind)


def table(page: AppTest, number: int = 0) -> dict[str, Any]:
    return page.dataframe[number].value.set_index("class").to_dict()


def png(mode: str = "RGB", size: tuple[int, int] = (70, 50)) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest leaves the page as `__main__`, which processes that later tests fork would run first."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def page(shown_run: RunDirectory) -> AppTest:
    return page_of(shown_run.path).run()


def test_the_page_is_full_at_once(page: AppTest, exhibit: Exhibit) -> None:
    text = texts(page)
    assert not page.error
    assert "What net A sees" in text
    assert "3 classes · crop 32 px · stride 32 px" in text
    pixels = exhibit.pixels(0)
    sight = views.see(exhibit.net, pixels, (37, 72, 110), 37, flip=True)
    shown = table(page)
    columns = {"dense, Q = 37", "dense, Q = 72", "dense, Q = 110", "mean over Q", "centre, Q = 37", " "}
    assert shown.keys() == columns
    largest = max(
        abs(shown[name][exhibit.class_name(label)] - float(values[label]))
        for name, values in sight.columns().items()
        for label in range(3)
    )
    assert largest < 1e-7
    assert shown[" "]["n01"] == "true", "the first validation image is of the first class"
    assert re.search(r"The true class, n01: dense, Q = 37: guess \d; .*centre, Q = 37: guess \d\.", text)
    rows, places = sight.at_Q[2].shape
    assert f"{rows} x {places} = {rows * places} positions, 32 px apart" in text
    assert "the softmax of all classes' means, averaged with the mirror image's, is the posterior, " in text
    assert "Position: Q = 110, row" in text
    assert "| dense, Q = 37, 72, 110 |" in text
    assert "| centre, Q = 37 |" in text
    assert "train.batch: 8 instead of 256" in text


def test_another_class_and_place_do_not_run_the_net_again(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggrepro.show.page.see", None)
    other = page.selectbox[0].options[-1]
    page.selectbox[0].select(other).run()
    assert not page.exception
    page.selectbox[1].select("Q = 37, row 1, column 1").run()
    text = texts(page)
    assert "Position: Q = 37, row 1, column 1" in text
    page.segmented_control[0].select("posterior").run()
    assert not page.exception
    assert not page.error


def test_the_next_image_and_its_class(page: AppTest, exhibit: Exhibit) -> None:
    assert exhibit.images is not None
    page.button[0].click().run()
    assert page.number_input[0].value == 1
    page.number_input[0].set_value(11).run()
    assert table(page)[" "][exhibit.class_name(int(exhibit.images.label[11]))] == "true"
    page.button[0].click().run()
    assert page.number_input[0].value == 0, "after the last comes the first"
    page.button[1].click().run()
    assert 0 <= page.number_input[0].value <= 11
    texts(page)


def test_a_place_that_is_clicked_on_is_chosen(exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the browser reports; the click itself was looked at in Chromium."""
    from vggrepro.show import page

    sight = views.see(exhibit.net, exhibit.pixels(0), (110,), 37, flip=True)
    state: dict[str, Any] = {"map": {"selection": {"picked": [{"row": 1, "column": 2}]}}}
    monkeypatch.setattr(page.st, "session_state", state)
    page._pick("map", "place", sight.at_Q[0])
    assert state["place"] == "Q = 110, row 1, column 2"
    state["map"] = {"selection": {}}
    page._pick("map", "place", sight.at_Q[0])
    assert state["place"] == "Q = 110, row 1, column 2", "a click beside all places changes nothing"


def test_a_file_is_dropped(page: AppTest, exhibit: Exhibit) -> None:
    content = png("RGBA")
    page.file_uploader[0].upload("mine.png", content, "image/png").run()
    text = texts(page)
    assert not page.error
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    sight = views.see(exhibit.net, pixels, (37, 72, 110), 37, flip=True)
    shown = table(page)
    assert " " not in shown, "nobody knows the true class"
    assert "The true class, " not in text
    ours = {exhibit.class_name(label): float(sight.average[label]) for label in range(3)}
    assert max(abs(shown["mean over Q"][name] - ours[name]) for name in ours) < 1e-7


@pytest.mark.parametrize(
    ("content", "reason"),
    [(png()[:300], "bad.png cannot be shown: "), (png(size=(9000, 10)), "too much for one page")],
    ids=["torn", "film"],
)
def test_a_bad_file_is_one_line(page: AppTest, content: bytes, reason: str) -> None:
    page.file_uploader[0].upload("bad.png", content, "image/png").run()
    text = texts(page)
    (error,) = page.error
    assert reason in error.value
    assert "\n" not in error.value
    assert "Errors and departures" in page.expander[0].label
    assert "The net" in text, "what is known of the net stays"


def test_names_are_shown_as_they_are(page: AppTest) -> None:
    """Markdown would make a formula of dollars, and something bold of stars."""
    page.file_uploader[0].upload("$a$ **b** [c](d).png", b"text", "image/png").run()
    (error,) = page.error
    assert error.value.startswith(r"\$a\$ \*\*b\*\* \[c\](d).png cannot be shown: not an image")


def test_a_bad_q_is_one_line(page: AppTest) -> None:
    page.text_input[0].input("16, 40").run()
    (error,) = page.error
    assert error.value.startswith("Q '16, 40': expected whole numbers from 32 (the crop) to 128")
    page.text_input[0].input("64").run()
    assert not page.error
    assert set(table(page)) >= {"dense, Q = 64", "mean over Q"}


def test_image_and_q_may_stand_in_the_address(shown_run: RunDirectory) -> None:
    page = page_of(shown_run.path)
    page.query_params["image"] = "5"
    page.query_params["Q"] = "40,64"
    page.run()
    assert page.number_input[0].value == 5
    assert "dense, Q = 64" in table(page)
    page = page_of(shown_run.path)
    page.query_params["image"] = "99"
    assert page.run().number_input[0].value == 11
    texts(page)


def test_of_a_weight_file_nothing_more_is_known(tmp_path: Path) -> None:
    small = {"net": "D", "classes": 7, "crop": 32, "width": 0.0625, "batch_norm": False}
    file = tmp_path / "theirs.safetensors"
    weights = tiny_vgg("D", classes=7).state_dict()
    write(file, weights, model=small, preprocessing=PREPROCESSING["torchvision"], classes=None)
    page = page_of(file).run()
    text = texts(page)
    assert "No validation images: the images of a weight file are unknown." in text
    assert "Drop an image" in text
    assert "Its training is unknown." in text
    assert "No errors are stored for this net." in text
    assert "No ledger of departures from the paper is known" in text
    page.file_uploader[0].upload("mine.png", png(), "image/png").run()
    guessed = table(page)["mean over Q"]
    assert len(guessed) >= 5
    assert guessed.keys() <= {f"class {label}" for label in range(7)}
    texts(page)


def test_an_exported_net_is_tested_as_its_run_is(shown_run: RunDirectory, exhibit: Exhibit, tmp_path: Path) -> None:
    export_weights(shown_run.path, tmp_path / "A.safetensors")
    page = page_of(tmp_path / "A.safetensors").run()
    assert page.text_input[0].value == "37, 72, 110"
    page.file_uploader[0].upload("mine.png", png(), "image/png").run()
    pixels = np.asarray(Image.open(io.BytesIO(png())).convert("RGB"))
    sight = views.see(exhibit.net, pixels, (37, 72, 110), 37, flip=True)
    shown = table(page)["mean over Q"]
    assert (
        max(abs(shown[name] - float(sight.average[label])) for label, name in enumerate(("n01", "n02", "n03"))) < 1e-7
    )
