"""Page of `vggrepro show RUN`; Streamlit reruns it at each change: `streamlit run page.py RUN`."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from vggrepro.errors import UserError
from vggrepro.reporting.documents import figures
from vggrepro.show import charts
from vggrepro.show.exhibit import Exhibit, decoded, open_exhibit
from vggrepro.show.views import Place, ScoredImage, Sight, alone, guesses, see, sides_in

_SCORE, _POSTERIOR = "class score", "posterior"
_PER_ROW = 3
_FILES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"]


@st.cache_resource(show_spinner="testing the net on the image", max_entries=16)
def _sight(source: str, sha256: str, sides: tuple[int, ...], _pixels: NDArray[np.uint8]) -> Sight:
    """Computes a sight, cached by the image's hash, so that another class or position does not rerun the net."""
    exhibit = open_exhibit(source)
    stage = exhibit.stage
    return see(exhibit.net, _pixels, sides, stage.single_Q[0], flip=stage.evaluation.flip)


def show_page(source: str) -> None:
    """Draws the page of a net; an error is a line on it."""
    st.set_page_config(page_title=f"{source} · vggrepro", page_icon=":material/grid_view:", layout="wide")
    try:
        exhibit = open_exhibit(source)
        _head(exhibit)
        try:
            _image_and_answers(exhibit)
        except UserError as error:  # of the image: what is known of the net is shown below all the same
            st.error(_plain(str(error)))
        _net(exhibit)
    except UserError as error:
        st.error(_plain(str(error)))


def _plain(text: str) -> str:
    """Escapes text for Markdown: names of files and classes are arbitrary."""
    return re.sub(r"([\\`*_\[\]$<~|])", r"\\\1", text)


def _head(exhibit: Exhibit) -> None:
    net = exhibit.net.net.architecture
    st.header(f"What net {net.name} sees", anchor=False)
    st.caption(
        f"`{exhibit.name}` · {net.outputs:,} classes · crop {net.crop} px · stride {net.stride} px · "
        f"weights {exhibit.net.weights[:12]}"
    )


def _image_and_answers(exhibit: Exhibit) -> None:
    pixels, label, caption, sides = _chosen_image(exhibit)
    if pixels is None:
        st.info("Drop an image to see what the net makes of it.")
        return
    sha256 = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    sight = _sight(exhibit.name, sha256, sides, pixels)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        st.image(pixels, caption=caption, width=charts.LONGER_SIDE)
    with right:
        _answers(exhibit, sight, label)
    _class_maps(exhibit, sight, f"{sha256}-{sides}")


def _chosen_image(exhibit: Exhibit) -> tuple[NDArray[np.uint8] | None, int | None, str, tuple[int, ...]]:
    """Returns pixels, true class, caption and Q, as chosen on the page. Raises UserError."""
    of_file, of_split, of_Q = st.columns([1.2, 1.2, 1], gap="large")
    with of_file:
        file = st.file_uploader("An image of yours", type=_FILES, key="file")
    with of_split:
        number = _image_number(exhibit)
    with of_Q:
        text = st.text_input(
            "Q: shorter sides of the image, px",
            st.query_params.get("Q", ", ".join(map(str, exhibit.net.Q))),
            key="Q",
            help="Shorter sides of the uncropped image; default: the paper's multi-scale test of this net (Table 4).",
        )
    sides = sides_in(text, exhibit.net.net.architecture.crop)
    if file is not None:
        return decoded(file.getvalue(), file.name), None, f"{_plain(file.name)}; its true class is not known", sides
    if exhibit.images is None or number is None:
        return None, None, "", sides
    label = int(exhibit.images.label[number])
    pixels, name = exhibit.pixels(number), _plain(exhibit.class_name(label))
    size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
    return pixels, label, f"validation image {number}, {size}; true class: {name}", sides


def _image_number(exhibit: Exhibit) -> int | None:
    """Returns the number of the chosen validation image; None without validation images."""
    if exhibit.images is None:
        st.caption(f"No validation images: {_plain(exhibit.why_no_images)}.")
        return None
    last = len(exhibit.images) - 1
    given = st.query_params.get("image", "0")
    st.session_state.setdefault("image", min(int(given), last) if given.isdecimal() else 0)

    def turn_to(number: int) -> None:
        st.session_state["image"] = number

    number = st.number_input(f"or a validation image, 0 to {last}", 0, last, key="image")
    with st.container(horizontal=True):
        st.button("next", on_click=turn_to, args=((number + 1) % (last + 1),), icon=":material/arrow_forward:")
        st.button("random", on_click=turn_to, args=(random.randint(0, last),), icon=":material/casino:")
    if st.session_state.get("file") is not None:
        st.caption("The uploaded file takes precedence; remove it to see this image.")
    return int(number)


def _answers(exhibit: Exhibit, sight: Sight, label: int | None) -> None:
    """Shows the five guesses of each test side by side."""
    st.subheader("Five guesses, test by test", anchor=False)
    columns = sight.columns()
    rows = sight.guessed()
    table: dict[str, list[object]] = {"class": [exhibit.class_name(guess) for guess in rows]}
    settings: dict[str, object] = {"class": st.column_config.TextColumn(pinned=True, width=90)}
    if label is not None:
        table[" "] = ["true" if guess == label else "" for guess in rows]
        settings[" "] = st.column_config.TextColumn(width=45)
    for name, values in columns.items():
        table[name] = [float(values[guess]) for guess in rows]
        settings[name] = _share(width=118)
    st.dataframe(table, column_config=settings, hide_index=True, width="stretch")
    mirrored = "each averaged with its mirror image's, " if exhibit.stage.evaluation.flip else ""
    lines = [
        f"Posteriors of every class that is among the first five of a test. Dense: the whole image at shorter side Q, "
        f"{mirrored}as `vggrepro evaluate` computes them. Centre: the one crop in the middle."
    ]
    if label is not None:
        lines.append(f"The true class, {_plain(exhibit.class_name(label))}: " + _ranks(columns, label))
    st.caption(" ".join(lines))


def _share(**options: int) -> object:
    """Configures a column of posteriors as bars."""
    return st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0, **options)


def _ranks(columns: dict[str, NDArray[np.float32]], label: int) -> str:
    texts = []
    for name, values in columns.items():
        found = guesses(values)
        texts.append(f"{name}: {f'guess {found.index(label) + 1}' if label in found else 'not among the five'}")
    return "; ".join(texts) + "."


def _class_maps(exhibit: Exhibit, sight: Sight, image: str) -> None:
    net = exhibit.net.net.architecture
    st.subheader("The class map: where in the image a class has its score", anchor=False)
    of_class, of_values, of_place = st.columns([1.2, 1, 1.2], gap="large")
    with of_class:
        order = [int(label) for label in np.argsort(-sight.average, kind="stable")]
        label = st.selectbox("Class", order, format_func=exhibit.class_name, key=f"class-{image}")
    with of_values:
        values = st.segmented_control(
            "Shown at each position", [_SCORE, _POSTERIOR], default=_SCORE, required=True, key="values"
        )
    every = {_name(at_Q, place): (at_Q, place) for at_Q in sight.at_Q for place in at_Q.places()}
    with of_place:
        key, last = f"place-{image}", sight.at_Q[-1]
        first = list(every).index(_name(last, last.best_place(label)))
        chosen = st.selectbox("Position (or click one)", list(every), index=first, key=key)
    scored, place = every[chosen]
    maps = [at_Q.local[label] if values == _POSTERIOR else at_Q.scores[label] for at_Q in sight.at_Q]
    limits = (0.0, 1.0) if values == _POSTERIOR else charts.limits_of(maps)
    title = f"{exhibit.class_name(label)[:24]}: " + ("posterior" if values == _POSTERIOR else "class score (logit)")
    for start in range(0, len(maps), _PER_ROW):
        for column, at_Q, shown in zip(
            st.columns(_PER_ROW, gap="large"),
            sight.at_Q[start : start + _PER_ROW],
            maps[start : start + _PER_ROW],
            strict=False,
        ):
            with column:
                st.markdown(f"**Q = {at_Q.Q}**")
                drawn = charts.class_map(at_Q, shown, title, limits, place if at_Q is scored else None)
                map_key = f"map-{at_Q.Q}-{image}"
                st.altair_chart(
                    drawn, width="content", key=map_key, on_select=partial(_pick, map_key, key, at_Q),
                    selection_mode=charts.PICKED,
                )  # fmt: skip
                st.caption(_of_map(at_Q, label, flip=exhibit.stage.evaluation.flip))
    shared = 1 - net.stride / net.crop
    st.caption(
        f"Fully-connected layers applied as convolutions (Section 3.2) score the class at every position. A position "
        f"stands for a window of {net.crop} x {net.crop} px, the next position for the window {net.stride} px further, "
        f"so neighbours share {100 * shared:.0f} % of their pixels and their scores are not independent. A cell is "
        f"drawn in the middle of its window; no window is centred in the rim of "
        f"{(net.crop - net.stride) // 2} px or more. The scores of a position depend on more than its window, up to "
        f"{net.field_of_view} x {net.field_of_view} px (dashed), because the convolutions reach beyond it."
    )
    _position(exhibit, scored, place)


def _name(scored: ScoredImage, place: Place) -> str:
    return f"Q = {scored.Q}, row {place.row + 1}, column {place.column + 1}"


def _pick(map_key: str, place_key: str, scored: ScoredImage) -> None:
    """Chooses the clicked position."""
    picked = st.session_state[map_key]["selection"].get(charts.PICKED)
    if picked:
        place = Place(int(picked[0]["row"]) - 1, int(picked[0]["column"]) - 1)
        st.session_state[place_key] = _name(scored, place)


def _of_map(scored: ScoredImage, label: int, *, flip: bool) -> str:
    rows, columns = scored.shape
    height, width = scored.pixels.shape[:2]
    n = rows * columns
    places = "1 position" if n == 1 else f"{rows} x {columns} = {n} positions, {scored.architecture.stride} px apart"
    mean = f"{scored.scores[label].mean():.2f}"
    mirror = ", averaged with the mirror image's," if flip else ""
    return (
        f"{width} x {height} px, {places}. Mean class score {mean}; the softmax of all classes' means{mirror} is the "
        f"posterior, {100 * scored.posteriors[label]:.2f} %."
    )


def _position(exhibit: Exhibit, scored: ScoredImage, place: Place) -> None:
    """Shows the crop window of the chosen position and the net's posteriors there."""
    st.subheader(f"Position: {_name(scored, place)}", anchor=False)
    window, answers = st.columns([1, 2.6], gap="large")
    left, top, right, bottom = scored.window(place)
    crop = scored.crop(place)
    with window:
        st.image(crop, caption=f"its crop window: x {left} to {right - 1}, y {top} to {bottom - 1}", width=200)
    with answers:
        here, cut = scored.local[:, place.row, place.column], alone(exhibit.net, crop)
        rows = list(dict.fromkeys([*guesses(here), *guesses(cut)]))
        columns = {"in the image (dense)": here, "the window cut out": cut}
        table: dict[str, list[object]] = {"class": [exhibit.class_name(guess) for guess in rows]}
        table |= {name: [float(values[guess]) for guess in rows] for name, values in columns.items()}
        st.dataframe(table, column_config=dict.fromkeys(columns, _share()), hide_index=True, width="stretch")
        st.caption(
            "Two results for the same pixels: within the image the convolutions see the neighbouring pixels, around a "
            "cut-out window they see zeros (Section 3.2's reason why dense and multi-crop testing complement each "
            "other)."
        )


def _net(exhibit: Exhibit) -> None:
    """Shows the net's filters, curves, errors and departures."""
    st.subheader("The net", anchor=False)
    filters, curves = st.columns([1, 1.6], gap="large")
    with filters:
        weights = exhibit.net.net.named_layers()["conv1_1"].state_dict()["weight"]
        st.image(figures.filters(weights.float().cpu().numpy()), caption="filters of conv1_1", width="stretch")
    with curves:
        run = exhibit.run
        if run is not None and run.records("train"):
            drawn = figures.learning_curves({exhibit.stage.name: run})
            st.image(drawn, caption="training loss and validation error", width="stretch")
        else:
            st.caption("Its training is unknown.")
    with st.expander("Errors and departures from the paper"):
        _errors(exhibit)
        _departures(exhibit)


def _errors(exhibit: Exhibit) -> None:
    errors = list(exhibit.errors())
    if not errors:
        st.markdown("No errors are stored for this net.")
        return
    lines = ["| test | top-1 error, % | top-5 error, % | images |", "|---|---|---|---|"]
    for measured in errors:
        cells = [f"{measured.method}, Q = {', '.join(map(str, measured.Q))}"]
        cells += [
            "{:.2f} ({:.2f} to {:.2f})".format(rate.percent, *rate.interval) for rate in (measured.top1, measured.top5)
        ]
        lines.append(f"| {' | '.join(cells)} | {measured.top1.n:,} |")
    st.markdown("\n".join(lines))
    st.caption("Validation images; in brackets 95 % intervals.")


def _departures(exhibit: Exhibit) -> None:
    departures = exhibit.departures()
    if departures is None:
        st.markdown("No ledger of departures from the paper is known for this net.")
    elif not departures:
        st.markdown("It does not depart from the paper.")
    else:
        st.markdown("Departures from the paper:")
        st.code("\n".join(map(str, departures)), language=None, wrap_lines=True)


def _main(arguments: Sequence[str]) -> None:
    show_page(arguments[0])


if __name__ == "__main__":
    _main(sys.argv[1:])
