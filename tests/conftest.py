"""Fixtures for tests of several rooms: small images in ImageNet's layout, and settings that make nets small."""

import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in ranks: more threads change the order of sums

import numpy as np
import pytest
from budget import file_seconds, over_budget, slowest_files, start_rank
from drawing import BLANK, BLANK_SITE, REAL, figures_drawn_by
from forks import start_fork_server
from PIL import Image
from tiny import TINY, PublicPredictions, shared

from vggrepro.data.images import sample_set
from vggrepro.data.images.scan import scan_folder

pytest.register_assert_rewrite("programs")

from programs import Command  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: start_rank(item.path.as_posix()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the slowest files after a run of the full suite, and the files over their budget."""
    files = file_seconds(terminalreporter)
    if files:
        terminalreporter.section("slowest files")
        for line in slowest_files(files):
            terminalreporter.line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and over_budget(file_seconds(reporter)) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the variables of a launcher that runs the tests."""
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "VGGREPRO_ATTEMPT")
    for name in (*variables, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _imports_hidden_from_collector() -> Iterator[None]:
    """Hides imported modules from the garbage collector, which takes a quarter of the tests' time to scan them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gc, "unfreeze", gc.freeze)
        gc.freeze()
        yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> None:
    start_fork_server()


@pytest.fixture(scope="session", autouse=True)
def _blank_figures() -> Iterator[None]:
    with figures_drawn_by(BLANK):
        yield


@pytest.fixture
def drawing() -> Iterator[None]:
    """Draws figures for real, for tests of figures."""
    with figures_drawn_by(REAL):
        yield


@pytest.fixture(scope="session")
def blank_figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of processes that draw no figures."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(BLANK_SITE)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes with 8 + 4 JPEGs each, 40 to 90 px: noise with a colour per class."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("n01", "n02", "n03")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([label, number, count])
                height, width = random.integers(40, 91, 2)
                pixels = random.integers(0, 100, (height, width, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{number}.JPEG", quality=92)
    return root


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> list[str]:
    """Overrides that make any configuration small, read `images` and put runs into `tmp_path`."""
    return [*TINY, f"data.root={images}", f"run.root={tmp_path / 'runs'}"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of fabricated runs."""
    return tmp_path / "runs"


@pytest.fixture
def paper_of_2000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes runs on 2,000 images of 10 classes count as the paper's data set, which is too large for a test."""
    from vggrepro.paper import value
    from vggrepro.reporting.stored import runs

    small = {"classes": 10, "val_images": 2000}
    monkeypatch.setattr(runs, "value", lambda name: small.get(name) or value(name))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `vggrepro`; its output includes what native libraries print."""
    return Command(monkeypatch, capfd)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample set with only the first 2,000 + 500 images, made once for all workers because it takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patched, (folder / "digits.lock").open("w") as lock:
        patched.setattr(sample_set, "TRAIN_IMAGES", 2000)
        patched.setattr(sample_set, "VAL_IMAGES", 500)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sample_set.ensure(folder / "digits")


@pytest.fixture(scope="session")
def index_file(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of `images`."""
    file = tmp_path_factory.mktemp("index") / "images.idx"
    scan_folder(images).save(file)
    return file


@pytest.fixture(scope="session")
def public_predictions() -> PublicPredictions:
    """Labels of ILSVRC-2012's 50,000 validation images, and the five best guesses of each public net, in order."""
    with np.load(shared("vgg_ilsvrc2012_val_top5.npz"), allow_pickle=False) as stored:
        guesses = {name: stored[name].astype(np.int64) for name in stored.files if name.startswith("vgg")}
        return stored["label"].astype(np.int64), guesses
