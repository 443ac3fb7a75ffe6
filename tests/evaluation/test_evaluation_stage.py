"""Evaluation of a full split: any number of ranks, interrupted and resumed, from the store."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_nets import CLASSES, tiny_net
from forks import set_up_fork
from numpy.typing import NDArray
from programs import free_port, rank_variables
from torch import multiprocessing

from vggrepro.config.settings import Config, Data, Evaluation, Model
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Loader, make_loader
from vggrepro.errors import UserError
from vggrepro.evaluation import methods, run_split
from vggrepro.evaluation.measure import NetResults, fuse
from vggrepro.evaluation.posteriors import Posteriors
from vggrepro.evaluation.run_split import PartialResults
from vggrepro.evaluation.stage import as_the_net_expects, evaluate
from vggrepro.evaluation.store import Arrays
from vggrepro.ranks.group import process_group
from vggrepro.ranks.topology import Topology, topology_of
from vggrepro.ranks.watch import Interrupted, Watch
from vggrepro.storage.directory import RunDirectory

WEIGHTS = "f" * 64
CONFIG = Config(
    model=Model(net="A", classes=len(CLASSES), crop=32, width=0.0625),
    data=Data(S=40, backend="torchvision", workers=1),
    evaluation=Evaluation(batch=4),
)
METHODS = ("centre", "dense", "multicrop")


def results(index: Index, run: RunDirectory, config: Config = CONFIG) -> NetResults:
    return NetResults(run, WEIGHTS, index.fingerprint, config.evaluation)


def run_evaluation(
    index: Index, run: RunDirectory, loader: Loader, topology: Topology | None = None, **options: Any
) -> None:
    wanted = [(method, options.get("wanted", (40, 36))) for method in options.get("methods", METHODS)]
    with Watch(topology) as watch:
        evaluate(results(index, run), lambda: (tiny_net(), loader), index, watch, wanted)


def stored(index: Index, run: RunDirectory, Q: int, method: str) -> Posteriors:
    found = results(index, run).posteriors(method, Q).load(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def complete(odd_index: Index, loader: Loader, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """An uninterrupted evaluation on a single rank."""
    run = RunDirectory(tmp_path_factory.mktemp("whole"))
    run_evaluation(odd_index, run, loader)
    return run


def assert_same(index: Index, first: RunDirectory, other: RunDirectory) -> None:
    for Q in (40, 36):
        for method in METHODS:
            expected, found = stored(index, first, Q, method), stored(index, other, Q, method)
            assert expected.values.std(axis=0).min() > 0.01
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.labels, index.split("val").label)


def rank(number: int, world: int, port: int, index: Index, folder: Path) -> None:
    """Runs on each rank of the test below."""
    set_up_fork()
    torch.set_num_threads(1)
    os.environ.update(rank_variables(number, world, port))
    topology = topology_of(os.environ)
    loader = make_loader(CONFIG.data, torch.device("cpu"))
    with process_group(topology, torch.device("cpu")):
        run_evaluation(index, RunDirectory(folder), loader, topology)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_identical_posteriors(
    odd_index: Index, complete: RunDirectory, tmp_path: Path, world: int
) -> None:
    places = (world, free_port(), odd_index, tmp_path)
    multiprocessing.start_processes(rank, places, nprocs=world, start_method="forkserver")
    assert_same(odd_index, complete, RunDirectory(tmp_path))


@pytest.mark.parametrize("when", ["first", "between", "second"])
def test_interrupted_and_resumed_gives_identical_posteriors(
    odd_index: Index, complete: RunDirectory, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The interrupt comes in the first Q, between the two, or in the second."""
    batches = [
        len(methods.uncropped_views(odd_index.split("val"), Q, CONFIG.evaluation.batch // 2, 32)) for Q in (36, 40)
    ]
    survive = {"first": 1, "between": batches[0], "second": batches[0] + 3}[when]
    run, seen = RunDirectory(tmp_path), []
    original = Loader.batches

    def counted(self: Loader, *args: Any) -> Iterator[Any]:
        for batch in original(self, *args):
            if len(seen) == survive:
                raise KeyboardInterrupt
            seen.append(batch)
            yield batch

    monkeypatch.setattr(Loader, "batches", counted)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(odd_index, run, loader)
    survive = 10**9
    run_evaluation(odd_index, run, loader)
    assert len(seen) == sum(batches), "nothing is computed twice"
    assert_same(odd_index, complete, run)
    assert not list(run.posteriors.glob("*.parts"))


def test_a_signal_stops_and_loses_nothing(
    odd_index: Index, complete: RunDirectory, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, watch, beats = RunDirectory(tmp_path), Watch(), []
    original = Watch.beat

    def beat(self: Watch, doing: str) -> bool:
        beats.append(doing)
        self.reason = "SIGTERM" if len(beats) == 4 else None
        return original(self, doing)

    monkeypatch.setattr(Watch, "beat", beat)
    wanted = [(method, (36, 40)) for method in METHODS]
    with pytest.raises(Interrupted, match="SIGTERM"):
        evaluate(results(odd_index, run), lambda: (tiny_net(), loader), odd_index, watch, wanted)
    monkeypatch.undo()
    done = PartialResults(results(odd_index, run).posteriors("dense", 36).file(run)).done(11)
    assert 3 <= done.sum() < 11
    run_evaluation(odd_index, run, loader)
    assert_same(odd_index, complete, run)


def test_killed_after_some_parts(odd_index: Index, complete: RunDirectory, loader: Loader, tmp_path: Path) -> None:
    """The parts come from another number of ranks and overlap, and half a file has its temporary name."""
    run = RunDirectory(tmp_path)
    for method in METHODS:
        values = stored(odd_index, complete, 40, method).values
        for rows in ([0, 2], [2, 3, 9]):
            parts = PartialResults(results(odd_index, run).posteriors(method, 40).file(run))
            parts.add(np.array(rows), values[rows][:, None])
            parts.flush()
        (parts.folder / ".torn.npz.1").write_bytes(b"half")
    run_evaluation(odd_index, run, loader)
    assert_same(odd_index, complete, run)


def test_a_truncated_part_is_a_one_line_error(odd_index: Index, loader: Loader, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    parts = PartialResults(results(odd_index, run).posteriors("dense", 40).file(run))
    parts.folder.mkdir(parents=True)
    (parts.folder / "torn.npz").write_bytes(b"PK half")
    with pytest.raises(UserError, match=r"torn.npz cannot be read .*; remove the file and evaluate again"):
        run_evaluation(odd_index, run, loader)


def test_rows_written_elsewhere_are_missing(odd_index: Index, tmp_path: Path) -> None:
    parts = PartialResults(
        results(odd_index, RunDirectory(tmp_path)).posteriors("dense", 40).file(RunDirectory(tmp_path))
    )
    parts.add(np.arange(4), np.full((4, 1, 3), 1 / 3, np.float32))
    parts.flush()
    with pytest.raises(UserError, match=r"7 of 11 images are missing .* shared file system"):
        parts.gather(11)


def test_parts_are_joined_sequentially(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of ILSVRC's 200 MB is in memory once, and finding the rows needs no values."""
    expected = np.random.default_rng(0).random((11, 1, 3), np.float32)
    for rows in np.array_split(np.random.default_rng(1).permutation(11), 4):
        part = PartialResults(tmp_path / "set.npz")
        part.add(rows, expected[rows])
        part.flush()
    names, alive = list[tuple[str, ...]](), list[weakref.ref[NDArray[Any]]]()
    real = run_split.read_arrays

    def reading(file: Path, *wanted: str) -> Arrays:
        assert sum(values() is not None for values in alive) <= 1, "a part outlives the next one"
        names.append(wanted)
        arrays = real(file, *wanted)
        alive.extend(weakref.ref(arrays[name]) for name in wanted if name == "values")
        return arrays

    monkeypatch.setattr(run_split, "read_arrays", reading)
    assert part.done(11).all()
    assert names == [("rows",)] * 4
    start, values = part.gather(11)
    assert len(alive) == 4
    np.testing.assert_array_equal(start, np.arange(12))
    np.testing.assert_array_equal(values, expected[:, 0])


def test_stored_results_are_not_computed_again(odd_index: Index, complete: RunDirectory) -> None:
    def never() -> Any:
        raise AssertionError("the net was made again")

    wanted = [(method, (36, 40)) for method in ("dense", "both", "centre")]
    evaluate(results(odd_index, complete), never, odd_index, Watch(), wanted)
    lacking = results(odd_index, complete).lacking([("both", (36, 40, 44))])
    assert [(key.method, key.Q) for key in lacking] == [("dense", 44), ("multicrop", 44)]


def test_averages_against_numpy(odd_index: Index, complete: RunDirectory) -> None:
    """Averages are over Q inside a method, then over methods, then over nets."""
    labels = odd_index.split("val").label
    by_method = {(Q, m): stored(odd_index, complete, Q, m).values.astype(np.float64) for Q in (36, 40) for m in METHODS}
    dense, crops = ((by_method[36, m] + by_method[40, m]) / 2 for m in ("dense", "multicrop"))
    expected = {"dense": dense, "multicrop": crops, "both": (dense + crops) / 2}
    for method, values in expected.items():
        found = results(odd_index, complete).scored(method, (36, 40))
        assert found is not None
        np.testing.assert_allclose(found.values, values, rtol=1e-6)
        wrong = int((values.argmax(axis=1) != labels).sum())
        measured = results(odd_index, complete).measured(method, (36, 40))
        assert measured is not None
        assert (measured.top1.wrong, measured.top1.n) == (wrong, len(labels))
    first = results(odd_index, complete).scored("dense", (36, 40))
    second = results(odd_index, complete).scored("dense", (40,))
    assert first is not None
    assert second is not None
    fused = fuse([first, second])
    np.testing.assert_allclose(fused.values, (dense + by_method[40, "dense"]) / 2, rtol=1e-6)
    assert fused.Q == (36, 40)
    assert results(odd_index, complete).measured("dense", (36, 44)) is None


def test_mean_and_std_of_the_weights_are_used(odd_index: Index, loader: Loader) -> None:
    preprocessing = {"channels": "RGB", "range": [0, 255], "mean": [10, 20, 30], "std": [2.0, 4.0, 8.0]}
    split = odd_index.split("val")
    views = methods.uncropped_views(split, 40, 1, 32)[:1]
    (plain,), (other,) = (
        list(first.batches(split, views)) for first in (loader, as_the_net_expects(loader, preprocessing))
    )
    pixels = plain.images + torch.tensor(CONFIG.data.mean)[:, None, None]
    expected = (pixels - torch.tensor([10.0, 20, 30])[:, None, None]) / torch.tensor([2.0, 4, 8])[:, None, None]
    torch.testing.assert_close(other.images, expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_precisions(odd_index: Index, tmp_path: Path, device: str, precision: Any, tolerance: float) -> None:
    """Each precision has a file, with values near those of fp32."""
    changed = CONFIG.model_copy(update={"evaluation": Evaluation(batch=4, precision=precision)})
    found = {}
    for config, where in ((CONFIG, "cpu"), (changed, device)):
        loader_there = make_loader(config.data, torch.device(where))
        run = RunDirectory(tmp_path / where / config.evaluation.precision)
        there, opened = results(odd_index, run, config), (tiny_net().to(where), loader_there)
        evaluate(there, lambda opened=opened: opened, odd_index, Watch(), [("dense", (40,))])
        found_posteriors = there.posteriors("dense", 40).load(run)
        assert found_posteriors is not None
        found[where, config.evaluation.precision] = found_posteriors.values
    plain, other = found["cpu", "fp32"], found[device, precision]
    assert np.abs(plain - other).max() < tolerance
