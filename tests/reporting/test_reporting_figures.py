import io
from pathlib import Path

import numpy as np
import pytest
from drawing import BLANK, figures_drawn_by
from numpy.typing import NDArray
from PIL import Image
from reporting_runs import dense, make_run

from vggrepro.evaluation.predictions import Predictions
from vggrepro.reporting.documents import figures
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def has_colour(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    """Pixels within a few grey levels of a colour."""
    return int((np.abs(image.astype(int) - colour).max(axis=2) < 8).sum())


pytestmark = pytest.mark.usefixtures("drawing")
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def test_curves_have_a_colour_a_run_and_a_line_a_drop(root: Path) -> None:
    runs = {}
    for net, drops in (("A", False), ("B", True)):
        run = runs[net] = make_run(root, net)
        for step in (200, 300, 400):
            rate = 0.001 if drops and step >= 300 else 0.01
            run.append({"kind": "train", "step": step, "loss": 2.0 - step / 400, "learning_rate": rate})
            run.append({"kind": "validation", "step": step, "top1_error": 50.0, "top5_error": 20.0})
    both = pixels(figures.learning_curves(runs))
    only_A = pixels(figures.learning_curves({"A": runs["A"]}))
    assert has_colour(both, BLUE) > 100
    assert has_colour(both, ORANGE) > 100
    assert has_colour(only_A, ORANGE) == 0


@pytest.mark.parametrize("error", ["top1_error", "top5_error", "box_error"])
def test_curves_show_each_error_that_validation_has(root: Path, error: str) -> None:
    drawn = []
    for name, last in (("flat", 50.0), ("falling", 20.0)):
        run = make_run(root, "A", name=name)
        errors = {"box_error": 50.0} if error == "box_error" else {"top1_error": 50.0, "top5_error": 50.0}
        for step, single in ((200, 50.0), (300, last)):
            run.append({"kind": "validation", "step": step, **errors, error: single})
        drawn.append(pixels(figures.learning_curves({"A": run})))
    assert not np.array_equal(*drawn)


@pytest.mark.usefixtures("paper_of_2000")
def test_error_by_depth_and_scale(root: Path) -> None:
    for net, wrong in (("A", 592), ("D", 540)):
        make_run(root, net, posteriors=dense(224, 256, 288, wrong1=wrong, wrong5=100))
    report = build_report(find_runs([root]))
    for draw in (figures.error_by_depth, figures.error_by_scale):
        png = draw(report, report.groups[0].id)
        assert png is not None
        assert has_colour(pixels(png), BLUE) > 50
        assert draw(report, "no such group") is None


def test_depth_is_that_of_the_groups_own_nets(root: Path) -> None:
    """Five blocks and three of them in one experiment are two groups, each with its weight layers."""
    for net in ("A", "D"):
        make_run(root, net, posteriors=dense(256, wrong1=5, wrong5=1))
        small = {"blocks": 3, "crop": 56}
        make_run(root, net, 64, name=f"{net}-small", geometry=small, posteriors=dense(64, wrong1=5, wrong5=1))
    report = build_report(find_runs([root]))
    with figures_drawn_by({"_png": lambda figure: figure}):
        drawn = {
            group.title.partition("images, ")[2]: figures.error_by_depth(report, group.id) for group in report.groups
        }
    ticks = {title: [tick.get_text() for tick in made.axes[0].get_xticklabels()] for title, made in drawn.items()}
    assert ticks == {"crop 224 px": ["A\n11", "D\n16"], "crop 56 px, 3 blocks": ["A\n7", "D\n10"]}


GREEN, GREY = (0x00, 0x9E, 0x73), (0x66, 0x66, 0x66)


def test_effects_have_the_colour_of_their_verdict(root: Path) -> None:
    for net, wrong in (("A", 592), ("B", 500), ("C", 560), ("D", 558)):
        make_run(root, net, posteriors=dense(224, 256, 288, wrong1=wrong, wrong5=100))
    report = build_report(find_runs([root]))
    drawn = figures.of_report(report, report.groups[0].id)
    assert set(drawn) == {"error_by_depth", "error_by_scale", "effect_of_nets", "effect_of_several_scales"}
    png = drawn["effect_of_nets"]  # B over A; not C over B; D over C undecided; D over A
    for colour in (GREEN, ORANGE, GREY):
        assert has_colour(pixels(png), colour) > 30
    with figures_drawn_by(BLANK):
        axes = figures._figure(1, 1, 1, 1)[1]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(figures, "_figure", lambda *_, **__: (None, axes))
            shown = [claim for claim in report.claims if claim.effect is not None and claim.interval]
            figures.effects(shown, "title")
    for call, claim in zip(axes[0, 0].errorbar.call_args_list, shown, strict=True):
        (effect,), reach = call.args[0], call.kwargs["xerr"].ravel()
        assert (effect - reach[0], effect + reach[1]) == pytest.approx(claim.interval)
    nothing_gained = pixels(drawn["effect_of_several_scales"])
    assert has_colour(nothing_gained, GREEN) == 0
    assert figures.of_report(report, "no such group") == {}


def test_lines_have_a_panel_a_title_and_a_colour_a_curve() -> None:
    curves = {"A": ([1, 2], [0.5, -1.0]), "D": ([1, 2, 3], [0.1, 0.2, 0.3])}
    single = pixels(figures.lines({"first": curves}, "x", "y"))
    two = pixels(figures.lines({"first": curves, "second": {"A": curves["A"]}}, "x", "y"))
    assert two.shape[1] == 2 * single.shape[1]
    assert has_colour(single, ORANGE) > 50
    half = two.shape[1] // 2
    assert has_colour(two[:, half:], BLUE) > 50
    assert has_colour(two[:, half:], ORANGE) == 0


def predictions(guess: list[int], label: list[int]) -> Predictions:
    true, first = np.array(label), np.array(guess)
    return Predictions(true, (true != first).astype(int), first[:, None], np.ones(len(true), np.float32))


def test_the_worst_classes_come_first() -> None:
    made = predictions(guess=[0, 0, 0, 1, 1, 2], label=[0, 1, 1, 1, 2, 2])
    assert figures.worst_classes(made, 3) == [1, 2, 0]
    assert figures.worst_classes(made, 1) == [1]
    assert pixels(figures.confusion(made, ["a", "b", "c"], "dense", worst=2)).std() > 0


def test_crops_are_shown_with_the_mean_added_again() -> None:
    red = np.zeros((2, 32, 32, 3), np.float32) - 100.0
    red[..., 0] = 155.0
    sheet = pixels(figures.crops_sheet(red, (100.0, 100.0, 100.0), ["a", "b"]))
    assert has_colour(sheet, (255, 0, 0)) > 1000


def test_filters_are_stretched_to_all_grey_levels() -> None:
    weights = np.zeros((17, 3, 3, 3), np.float32)
    weights[:, 1] = 1e-6  # faint, but the only colour there is
    image = pixels(figures.filters(weights))
    assert has_colour(image, (0, 255, 0)) > 1000
