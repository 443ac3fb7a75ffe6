"""The store of predictions, which are computed once from a mean of posteriors."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from programs import call_in_two_threads

from vggrepro.config.settings import Evaluation
from vggrepro.errors import UserError
from vggrepro.evaluation import predictions as predictions_module
from vggrepro.evaluation import store
from vggrepro.evaluation.errors import true_class_rank
from vggrepro.evaluation.measure import NetResults, fuse
from vggrepro.evaluation.posteriors import Posteriors
from vggrepro.evaluation.predictions import Predictions, StoredTest, predictions
from vggrepro.storage.directory import RunDirectory

IMAGES, CLASSES, SIDES = 23, 12, (256, 384)
LABELS = np.random.default_rng(5).integers(0, CLASSES, IMAGES)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_module, "_ROWS_AT_ONCE", 7)  # so that there are blocks, the last one smaller


def net(folder: Path, seed: int) -> NetResults:
    """A net that is tested dense and multi-crop at two Q, with ties in its posteriors."""
    results = NetResults(RunDirectory(folder), f"{seed:064}", "d" * 64, Evaluation())
    random = np.random.default_rng(seed)
    for method in ("dense", "multicrop"):
        for side in SIDES:
            values = random.integers(0, 6, (IMAGES, CLASSES)).astype(np.float32) / 8
            results.posteriors(method, side).save(results.run, Posteriors(values, LABELS))
    return results


def stored_test(results: NetResults, method: str = "both", Q: tuple[int, ...] = SIDES) -> StoredTest:
    test = results.test(method, Q)
    assert test is not None
    return test


@pytest.fixture
def nets(tmp_path: Path) -> list[NetResults]:
    return [net(tmp_path / "D", 1), net(tmp_path / "E", 2)]


def assert_equal(first: Predictions, second: Predictions) -> None:
    for field in dataclasses.fields(Predictions):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def forbid_posteriors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("posteriors are read again")

    monkeypatch.setattr(predictions_module, "array_rows", refuse)


def test_blocks_equal_all_posteriors_at_once(nets: list[NetResults]) -> None:
    found = predictions([stored_test(net) for net in nets])
    expected = fuse([scored for net in nets if (scored := net.scored("both", SIDES))])
    by_hand = [
        np.stack([np.load(key.file(net.run))["values"] for key in over_Q]).mean(axis=0, dtype=np.float64)
        for net in nets
        for over_Q in stored_test(net).sets
    ]
    np.testing.assert_allclose(expected.values, np.mean(by_hand, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.rank, true_class_rank(expected.values, LABELS))
    np.testing.assert_array_equal(found.guesses, np.argsort(-expected.values, axis=1, kind="stable")[:, :5])
    np.testing.assert_array_equal(found.confidence, expected.values[np.arange(IMAGES), LABELS])
    assert (found.top1, found.top5) == (expected.measured.top1, expected.measured.top5)


@pytest.mark.parametrize("classes", [3, 255, 256, 1000])
def test_the_smallest_integers_hold_classes_and_ranks(classes: int) -> None:
    values = np.arange(classes, dtype=np.float32)[None].repeat(4, axis=0)
    values[3, 1] = np.nan
    labels = np.array([0, classes - 1, 1, 0])
    found = Predictions.of(values, labels)
    assert found.rank[:3].tolist() == [classes - 1, 0, classes - 2]
    assert found.rank[3] >= classes, "an image with a score that is not a number is wrong"
    assert found.guesses[0].tolist() == list(range(classes))[: -min(5, classes) - 1 : -1]
    assert found.guess[3] == classes - 1
    assert found.labels.tolist() == labels.tolist()
    assert sum(getattr(found, name).itemsize for name in ("labels", "rank", "guesses", "confidence")) <= 10


def test_guesses_from_nan_are_different_classes() -> None:
    values = np.full((3, 7), np.nan, np.float32)
    values[1, 4], values[2] = 0.5, [0.1, np.inf, -np.inf, 0.2, -np.inf, np.nan, 0.2]
    found = Predictions.of(values, np.array([0, 4, 1]))
    assert found.guesses.tolist() == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [1, 3, 6, 0, 2]]
    assert found.top5.wrong == 3


def test_posteriors_are_read_once(nets: list[NetResults], monkeypatch: pytest.MonkeyPatch) -> None:
    fused, alone = predictions([stored_test(net) for net in nets]), predictions([stored_test(nets[1])])
    assert [len(list((net.run.path / "predictions").glob("*.npz"))) for net in nets] == [1, 1]
    forbid_posteriors(monkeypatch)
    assert_equal(predictions([stored_test(net) for net in nets]), fused)
    assert_equal(predictions([stored_test(nets[1])]), alone)
    assert nets[1].measured("both", SIDES)
    with pytest.raises(AssertionError, match="read again"):
        predictions([stored_test(nets[0])])  # which was fused only


@pytest.mark.parametrize(("method", "Q"), [("dense", SIDES), ("both", SIDES[:1]), ("both", SIDES[::-1])])
def test_every_mean_has_separate_predictions(nets: list[NetResults], method: str, Q: tuple[int, ...]) -> None:
    predictions([stored_test(nets[0])])
    predictions([stored_test(nets[0], method, Q)])
    assert len(list((nets[0].run.path / "predictions").glob("*.npz"))) == 2


def test_recomputed_posteriors_are_read_again(nets: list[NetResults]) -> None:
    before = predictions([stored_test(nets[0])])
    key = nets[0].posteriors("dense", 256)
    values = np.random.default_rng(9).random((IMAGES, CLASSES)).astype(np.float32)
    key.save(nets[0].run, Posteriors(values, LABELS))
    assert (predictions([stored_test(nets[0])]).rank != before.rank).any()


def test_a_copy_of_the_run_keeps_its_predictions(nets: list[NetResults], monkeypatch: pytest.MonkeyPatch) -> None:
    before = predictions([stored_test(nets[0])])
    moved = nets[0].run.path.rename(nets[0].run.path.with_name("moved"))
    for file in moved.rglob("*.npz"):
        file.touch()
    forbid_posteriors(monkeypatch)
    assert_equal(predictions([stored_test(dataclasses.replace(nets[0], run=RunDirectory(moved)))]), before)


def test_damaged_predictions_are_recomputed(nets: list[NetResults]) -> None:
    before = predictions([stored_test(nets[0])])
    (file,) = (nets[0].run.path / "predictions").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert_equal(predictions([stored_test(nets[0])]), before)
    assert np.load(file)["rank"].tolist() == before.rank.tolist()


def test_an_unwritable_folder_only_costs_time(nets: list[NetResults], capsys: pytest.CaptureFixture[str]) -> None:
    (nets[0].run.path / "predictions").write_text("in the way")
    first, second = predictions([stored_test(nets[0])]), predictions([stored_test(nets[0])])
    assert_equal(first, second)
    assert capsys.readouterr().err.count("cannot be written to") == 1


def test_a_single_process_computes_and_others_wait(nets: list[NetResults], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compute = [], predictions_module._compute

    def counted(tests: list[StoredTest]) -> Predictions:
        calls.append(tests)
        return compute(tests)

    monkeypatch.setattr(predictions_module, "_compute", counted)
    call_in_two_threads(lambda: predictions([stored_test(nets[0])]))
    assert len(calls) == 1


def test_damage_inside_posteriors_is_noticed(nets: list[NetResults]) -> None:
    file = nets[0].posteriors("dense", 256).file(nets[0].run)
    content = bytearray(file.read_bytes())
    content[content.index(b"values.npy") + 400] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"posteriors .* cannot be read .*CRC.*remove the file and evaluate again"):
        predictions([stored_test(nets[0])])


def test_an_array_is_read_in_rows(tmp_path: Path) -> None:
    array = np.arange(30, dtype=np.float32).reshape(10, 3)
    store.write_arrays(tmp_path / "a.npz", values=array, other=np.ones(5))
    header = store.array_header(tmp_path / "a.npz", "values")
    assert (header.shape, header.dtype) == ((10, 3), np.float32)
    blocks = list(store.array_rows(tmp_path / "a.npz", "values", 4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), array)
    with pytest.raises(UserError, match="cannot be read"):
        store.array_header(tmp_path / "a.npz", "nothing")
    store.write_arrays(tmp_path / "b.npz", values=np.asfortranarray(array))
    np.testing.assert_array_equal(np.concatenate(list(store.array_rows(tmp_path / "b.npz", "values", 4))), array)
