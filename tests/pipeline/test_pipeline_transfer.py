"""Appendix B on a few images: features for other programs and linear SVMs."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from programs import Command, run_program
from stores import arrays, assert_same_arrays
from tiny import set_words
from transfer_sets import (
    ACTIONS,
    CLASSES,
    import_tiny_net,
    reference_fc7,
    write_class_folders,
    write_voc2007,
    write_voc2012_action,
)

from vggrepro.config.settings import Transfer
from vggrepro.errors import Interrupted, UserError
from vggrepro.evaluation import methods, svm
from vggrepro.evaluation.transfers import list_transferred
from vggrepro.pipeline import features
from vggrepro.pipeline.transfer import transfer_nets
from vggrepro.ranks.watch import Watch
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory

HERE = ("run.device=cpu", "data.backend=torchvision", "data.workers=1", "tracking.mlflow=false")
FEW = ("transfer.train_per_class=5", "transfer.test_per_class=3", "transfer.splits=2")
SETTINGS = set_words(*HERE, *FEW)


@pytest.fixture(autouse=True, scope="module")
def _single_thread() -> None:
    torch.set_num_threads(1)  # as ranks have: with more, sums have another order


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits descriptors into several blocks, as for thousands of images."""
    monkeypatch.setattr(features, "_ROWS", 4)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_class_folders(root / "mine")
    write_voc2007(root / "VOCdevkit")
    write_voc2012_action(root / "VOCdevkit")
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unused run directories of nets; tests work on copies."""
    root = tmp_path_factory.mktemp("nets") / "others"
    import_tiny_net(root / "D")
    import_tiny_net(root / "A", "A", seed=1)
    import_tiny_net(root / "conv", "A", seed=2, fully_connected=False)
    return root


@pytest.fixture
def nets(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "others")


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / "final.pt").weights


def figure_by_hand(features: np.ndarray, labels: np.ndarray, split: np.ndarray) -> float:
    """Computes the mean class recall of scikit-learn's multi-class classifier, with C chosen on validation samples."""
    from sklearn.svm import LinearSVC

    def recall(rows: np.ndarray, on: np.ndarray, C: float) -> float:
        fitted = LinearSVC(C=C, dual=False, tol=1e-6, max_iter=10000).fit(features[rows], labels[rows])
        right = fitted.predict(features[on]) == labels[on]
        return 100 * float(np.mean([right[labels[on] == label].mean() for label in np.unique(labels[on])]))

    grid = [0.01, 0.1, 1, 10, 100]
    best = max(grid, key=lambda C: recall(split == 1, split == 2, C))
    return recall((split == 1) | (split == 2), split == 3, best)


def test_features_for_other_programs(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "made" / "mine.npz"
    summary = command.json("features", nets / "D", "-d", f"mine={sets / 'mine'}", "-o", out, *SETTINGS)
    assert (summary["samples"], summary["dimensions"], summary["scales"], summary["combine"]) == (
        27,
        768,
        [[37, 55, 73]],
        "stack",
    )

    X, y = (np.load(out)[key] for key in "Xy")  # what a user writes
    from sklearn.svm import LinearSVC

    assert LinearSVC().fit(X, y).score(X, y) > 0.5

    content = dict(np.load(out, allow_pickle=False))
    assert (X.dtype, y.dtype, content["Y"].dtype) == (np.float32, np.int64, np.int8)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-5)
    assert list(content["classes"]) == list(CLASSES)
    assert list(content["names"]) == [f"{name}/{n}.png" for name in CLASSES for n in range(9)]
    assert y.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert (content["Y"] == np.where(y[:, None] == np.arange(3), 1, -1)).all()
    assert content["split"].shape == (2, 27)
    for split in content["split"]:  # of 5 one is held out; 9 less 5 are tested, at most 3
        assert [np.bincount(split[y == label], minlength=4).tolist() for label in range(3)] == [[1, 4, 1, 3]] * 3
    (of,) = json.loads(str(content["made_of"]))
    assert (of["net"], of["layer"], of["Q"], of["combine"]) == ("others:D", "fc7", [37, 55, 73], "stack")


def test_the_figure_equals_that_of_plain_torch_and_scikit_learn(
    nets: Path, sets: Path, tmp_path: Path, command: Command
) -> None:
    data = ("-d", f"mine={sets / 'mine'}", "--scales", "37", *SETTINGS)
    (each,) = command.json("transfer", nets / "D", *data)["tested"]
    files = [sets / "mine" / name / f"{n}.png" for name in CLASSES for n in range(9)]
    plain = reference_fc7(state_of(nets / "D"), [np.asarray(Image.open(file)) for file in files])
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    out = tmp_path / "mine.npz"
    command.json("features", nets / "D", *data, "-o", out)
    content = dict(np.load(out))
    np.testing.assert_allclose(content["X"], plain, rtol=1e-4, atol=1e-6)
    expected = [figure_by_hand(plain, content["y"], split) for split in content["split"]]
    assert each["splits"] == pytest.approx(expected)
    assert each["figure"] == pytest.approx(np.mean(expected))
    assert each["spread"] == pytest.approx(np.std(expected, ddof=1))
    assert (each["measure"], each["scales"], each["train"], each["test"]) == ("recall", [[37]], 15, 9)


def test_ranks_and_interruptions_do_not_change_the_results(
    nets: Path, original: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"mine": str(sets / "mine")}
    reference = transfer_nets([nets / "D"], [*HERE, *FEW], sets=folder)
    assert reference is not None
    assert [(each.protocol.combine, each.protocol.nets[0].Q) for each in reference] == [
        ("stack", (37, 55, 73)),
        ("average", (37, 55, 73)),
    ]

    words = ("-d", f"mine={sets / 'mine'}", *SETTINGS)
    two = shutil.copytree(original / "D", tmp_path / "two" / "D")
    done = run_program("-m", "vggrepro", "transfer", two, *words, "--json", ranks=2)
    assert done.returncode == 0, done.stderr
    assert [each["figure"] for each in json.loads(done.stdout)["tested"]] == [each.result.mean for each in reference]

    stopped = shutil.copytree(original / "D", tmp_path / "stopped" / "D")
    beat, beats = Watch.beat, []

    def stopping(self: Watch, doing: str) -> bool:
        beats.append(doing)
        self.reason = "SIGTERM" if beats.count("features of mine at Q=55") == 2 else None
        return beat(self, doing)

    monkeypatch.setattr(Watch, "beat", stopping)
    with pytest.raises(Interrupted):
        transfer_nets([stopped], [*HERE, *FEW], sets=folder)
    monkeypatch.undo()
    assert list(stopped.glob("features/*Q37*.npz"))
    assert list(stopped.glob("features/*Q55*.parts/*.npz"))

    classify, features, shown = svm.classify, methods.features, []
    monkeypatch.setattr(
        "vggrepro.pipeline.features.features", lambda net, *given: shown.append(len(given[0])) or features(net, *given)
    )

    def stop_during_classification(*given: object) -> svm.Classified:
        monkeypatch.setattr(Watch, "stop_if_requested", _leaves)
        return classify(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("vggrepro.pipeline.transfer.classify", stop_during_classification)
    with pytest.raises(Interrupted):
        transfer_nets([stopped], [*HERE, *FEW], sets=folder)
    monkeypatch.undo()
    assert 27 < sum(shown) < 54, "of Q = 55 what was missing, and Q = 73"
    assert len(list(stopped.glob("transfers/*-0.npz"))) == 1
    assert not list(stopped.glob("transfers/*-1.npz"))

    calls = []
    monkeypatch.setattr("vggrepro.pipeline.transfer.classify", lambda *given: calls.append(1) or classify(*given))
    monkeypatch.setattr("vggrepro.pipeline.net.net_of", None)
    transfer_nets([stopped], [*HERE, *FEW], sets=folder)
    assert len(calls) == 3, "two splits of two tests, of which one was done"
    transfer_nets([stopped], [*HERE, *FEW], sets=folder)
    assert len(calls) == 3
    for other in (two, stopped):
        assert_same_arrays(nets / "D" / "features", other / "features")
        assert_same_arrays(nets / "D" / "transfers", other / "transfers")


def _leaves(self: Watch) -> None:
    raise Interrupted("SIGTERM")


def test_nets_stacked(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    """Includes a net without fully-connected layers, and configurations with different scales."""
    section = {"scales": [64], "combine": "average", "sets": {"gone": "nowhere"}}
    stored = nets / "conv" / "config.yaml"
    tree = yaml.safe_load(stored.read_text())
    tree["transfer"] |= section
    stored.write_text(yaml.safe_dump(tree))
    data, out = (
        ("-d", f"mine={sets / 'mine'}", "--scales", "37,40", "--combine", "average", *SETTINGS),
        tmp_path / "x.npz",
    )
    found = command.json("transfer", nets / "D", nets / "conv", *data)["tested"]
    assert [each["nets"] for each in found] == [["others:D"], ["others:conv"], ["others:D", "others:conv"]]
    assert found[2]["scales"] == [[37, 40], [37, 40]]
    summary = command.json("features", nets / "D", nets / "conv", *data, "-o", out)
    assert (summary["layers"], summary["dimensions"]) == (["fc7", "pool5"], 256 + 32)
    X = np.load(out)["X"]
    np.testing.assert_allclose(np.linalg.norm(X[:, :256], axis=1), 0.5**0.5, rtol=1e-5)
    split = np.load(out)["split"]
    assert found[2]["splits"] == pytest.approx([figure_by_hand(X, np.load(out)["y"], each) for each in split])
    first, _ = command.json("transfer", nets / "conv", nets / "D", "-d", f"mine={sets / 'mine'}", *SETTINGS)["tested"][
        :2
    ]
    assert first["scales"] == [[64]], "as the first's configuration says"
    (line, *_) = RunDirectory(nets / "D").records("evaluation")
    assert line["transfer_mine_average_Q_37_40_recall"] == found[0]["figure"]


def test_nets_of_different_crops_stacked(nets: Path, sets: Path, command: Command) -> None:
    """Scales of images are proportional to each net's crop."""
    larger = import_tiny_net(nets / "E", "E", crop=64)
    data = ("-d", f"mine={sets / 'mine'}", *SETTINGS)
    found = command.json("transfer", nets / "D", larger, *data, "--combine", "stack")["tested"]
    assert [each["scales"] for each in found] == [[[37, 55, 73]], [[73, 110, 146]], [[37, 55, 73], [73, 110, 146]]]


def test_features_that_are_not_finite_are_an_error_of_one_line(nets: Path, sets: Path, command: Command) -> None:
    file = nets / "D" / "checkpoints" / "final.pt"
    stored = checkpoint.load(file)
    for key in ("features.0.weight", "features.2.weight", "classifier.0.weight", "classifier.3.weight"):
        stored.weights[key] *= 1e12
    checkpoint.save(stored, file)
    status, _, err = command("transfer", nets / "D", "-d", f"mine={sets / 'mine'}", "--scales", "37", *SETTINGS)
    (*_, message) = err.splitlines()  # after the progress
    assert status == 2
    assert "at Q=37 are not all finite numbers; its weights are damaged" in message


def test_voc_2007(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    data, out = ("-d", f"voc2007={sets / 'VOCdevkit'}", *set_words(*HERE)), tmp_path / "voc.npz"
    found = command.json("transfer", nets / "D", *data)["tested"]
    assert [(len(each["scales"][0]), each["combine"], each["measure"]) for each in found] == [
        (5, "average", "mAP11"),
        (5, "stack", "mAP11"),
        (3, "average", "mAP11"),
    ]
    assert all(each["spread"] is None and (each["train"], each["test"]) == (10, 8) for each in found)
    command.json("features", nets / "D", *data, "-o", out)
    content = dict(np.load(out))
    assert content.keys() == {"X", "Y", "names", "classes", "split", "made_of"}
    assert content["split"].tolist() == [[1] * 6 + [2] * 4 + [3] * 8]
    assert content["Y"][12].tolist() == [0, -1]
    assert content["names"][0] == "000001"
    # an edited list is another test, though images and labels are the same
    devkit = shutil.copytree(sets / "VOCdevkit", tmp_path / "VOCdevkit")
    for file in devkit.glob("VOC2007/ImageSets/Main/*.txt"):
        other = {"train": "val", "val": "train"}.get(file.stem.rpartition("_")[2])
        if other:
            file.rename(file.with_name(file.name.replace(file.stem.rpartition("_")[2], f"{other}.new")))
    for file in devkit.glob("VOC2007/ImageSets/Main/*.new.txt"):
        file.rename(file.with_name(file.name.replace(".new", "")))
    before = len(list((nets / "D" / "transfers").glob("*-0.npz")))
    command.json("transfer", nets / "D", "-d", f"voc2007={devkit}", "--scales", "37,55,73,91,110", *set_words(*HERE))
    assert len(list((nets / "D" / "transfers").glob("*-0.npz"))) > before


def test_a_set_without_positives_is_an_error_of_one_line(
    nets: Path, sets: Path, tmp_path: Path, command: Command
) -> None:
    devkit = shutil.copytree(sets / "VOCdevkit", tmp_path / "VOCdevkit")
    for file in devkit.glob("VOC2007/ImageSets/Main/*_val.txt"):
        file.write_text(re.sub(r"  1$", " -1", file.read_text(), flags=re.MULTILINE))
    status, _, err = command("transfer", nets / "D", "-d", f"voc2007={devkit}", *set_words(*HERE))
    assert status == 2
    assert re.search(r"voc2007: none of the 4 validation samples of .* belongs to a class; give the", err)
    assert "Traceback" not in err


def test_actions_boxes_and_submission_files(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    data = ("-d", f"voc2012_action={sets / 'VOCdevkit'}", "--scales", "40", *set_words(*HERE))
    server, out = tmp_path / "server", tmp_path / "x.npz"
    image, boxes = command.json("transfer", nets / "D", *data, "--submission", server)["tested"]
    assert (image["boxes"], boxes["boxes"], image["test"]) == (False, True, 8)
    assert {file.name for file in server.iterdir()} == {f"comp10_action_test_{action}.txt" for action in ACTIONS}
    lines = (server / "comp10_action_test_jumping.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [[f"2010_{n:06d}", p] for n in (10, 11, 12) for p in "12"]
    assert all(len(line.split()) == 3 and np.isfinite(float(line.split()[2])) for line in lines)

    summary = command.json("features", nets / "D", *data, "--boxes", "-o", out)
    assert (summary["samples"], summary["dimensions"]) == (24, 512)
    X = np.load(out)["X"]
    assert (X[0, :256] == X[1, :256]).all(), "two persons of one image"
    assert not (X[0, 256:] == X[1, 256:]).all()
    (line,) = RunDirectory(nets / "D").records("evaluation")
    assert line["transfer_voc2012_action_average_Q_40_boxes_mAP"] == boxes["figure"]


def test_checkpoints_are_not_logged_as_final_nets(nets: Path, sets: Path, command: Command) -> None:
    stored = checkpoint.load(nets / "D" / "checkpoints" / "final.pt")
    stored.weights["classifier.3.bias"] += 1
    other = nets / "D" / "checkpoints" / "step.pt"
    checkpoint.save(stored, other)
    data = ("-d", f"mine={sets / 'mine'}", "--scales", "37", *SETTINGS)
    (early,) = command.json("transfer", other, *data)["tested"]
    command.json("transfer", nets / "D", *data, "--set", "evaluation.flip=false")
    assert not RunDirectory(nets / "D").records("evaluation")
    (final,) = command.json("transfer", nets / "D", *data)["tested"]
    (line,) = RunDirectory(nets / "D").records("evaluation")
    assert line["transfer_mine_stack_Q_37_recall"] == final["figure"]
    assert len(list(list_transferred(RunDirectory(nets / "D")))) == 3
    assert early["nets"] == final["nets"]


def test_an_image_damaged_after_indexing_is_an_error(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    mine = shutil.copytree(sets / "mine", tmp_path / "mine")
    data = ("-d", f"mine={mine}", "-o", tmp_path / "x.npz", *SETTINGS)
    command.json("features", nets / "D", *data, "--scales", "37")
    file = mine / "bee" / "4.png"
    stat = file.stat()
    file.write_bytes(b"\0" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "bee/4.png is bad since it was indexed" in command.mistake("features", nets / "D", *data, "--scales", "40")


def test_reports_of_runs_with_nothing_but_features(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    data = ("-d", f"mine={sets / 'mine'}", "--scales", "37", *SETTINGS)
    for name in ("D", "conv"):
        command.json("features", nets / name, *data, "-o", tmp_path / "x.npz")
        assert command("tables", "--runs", nets)[0] == 0
        command.json("transfer", nets / name, *data)
        assert command("tables", "--runs", nets)[0] == 0
        assert command("weights", "export", nets / name, "-o", tmp_path / f"{name}.safetensors")[0] == 0
    status, out, err = command("compare", nets / "D", nets / "conv")
    assert (status, err.count("\n")) == (2, 1) or status == 0, (out, err)


MISTAKES = [
    (("features", "D", "-d", "{mine}", "-o", "{x}"), "--data {mine}: expected NAME=PATH"),
    (("transfer", "D", "-d", "mine={mine}/none"), "{mine}/none does not exist"),
    (("transfer", "D", "-d", "a/b={mine}"), "a name consists of letters, digits"),
    (("transfer", "D", "-d", "a={mine}", "-d", "a=x"), "a is already {mine}"),
    (("transfer", "D"), "names no data set (transfer.sets); add --data NAME=PATH"),
    (("transfer", "D", "-d", "mine={mine}", "--scales", "31"), "Q = 31 is too small for D; use at least 32"),
    (("features", "conv", "-d", "mine={mine}", "--scales", "31", "-o", "{x}"), "use at least 32"),
    (("features", "D", "-d", "mine={mine}", "-o", "{x}", "--boxes"), "--boxes: mine has no boxes; omit the option"),
    (("features", "D", "-d", "mine={mine}", "-o", "{x}.csv"), "features are written as .npz; use that suffix"),
    (("features", "D", "-d", "mine={mine}", "-o", "{mine}/ant/0.png/x.npz"), "x.npz cannot be written ("),
    (("features", "D", "-d", "mine={mine}", "-o", "/proc/x.npz"), "--out /proc/x.npz cannot be written"),
    (("transfer", "D", "-d", "mine={mine}", "--set", "transfer.train_per_class=9"), "has 9 usable images, but 9 for"),
    (("transfer", "D", "-d", "mine={mine}", "--submission", "{x}.d"), "no test images without labels"),
    (("transfer", "D", "-d", "voc2007={mine}"), "{mine}"),
    (("transfer", "nothing", "-d", "mine={mine}"), "nothing"),
    (("evaluate", "conv"), "has no fully-connected layers"),
    (("weights", "export", "conv", "-o", "{x}.onnx"), "has no fully-connected layers"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_one_line(
    original: Path, sets: Path, tmp_path: Path, command: Command, words: tuple[str, ...], message: str
) -> None:
    places = {"mine": sets / "mine", "x": tmp_path / "x.npz"}
    first = 2 if words[0] == "weights" else 1
    given = [original / word if place == first else word.format(**places) for place, word in enumerate(words)]
    settings = SETTINGS if words[0] in ("features", "transfer") else []
    assert message.format(**places) in command.mistake(*given[:2], *settings, *given[2:])
    assert not list(original.glob("*/features/*.npz")), "said before anything is computed"


def test_nets_for_boxes_are_an_error(nets: Path, sets: Path, command: Command) -> None:
    stored = checkpoint.load(nets / "D" / "checkpoints" / "final.pt")
    stored.config["localisation"] = {}
    stored.config["run"]["parent"] = "D"
    checkpoint.save(stored, nets / "D" / "checkpoints" / "final.pt")
    message = command.mistake("transfer", nets / "D", "-d", f"mine={sets / 'mine'}")
    assert "predicts boxes; name a net that predicts classes" in message


def test_names_of_sets_and_emoji(nets: Path, sets: Path, tmp_path: Path, command: Command) -> None:
    place = tmp_path / "\N{CAT FACE} 'x\": [1"
    place.symlink_to(sets / "mine")
    found = command.json("transfer", nets / "D", "-d", f"mine={place}", "--scales", "37", *SETTINGS)
    assert len(found["tested"]) == 1
    with pytest.raises(ValueError, match="pattern"):
        Transfer(sets={".hidden": place})
    with pytest.raises(UserError, match=r"transfer\.sets"):
        transfer_nets([nets / "D"], ['transfer.sets={"a/b": x}'])
    assert arrays(nets / "D" / "transfers")


@pytest.mark.slow
def test_a_classifier_may_train_longer_than_the_timeout_of_ranks(nets: Path, sets: Path, tmp_path: Path) -> None:
    """Classification on Caltech-256 takes hours, while the other ranks wait."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "from vggrepro.cli import main\n"
        "from vggrepro.evaluation import svm\n"
        "classify = svm.classify\n"
        "svm.classify = lambda *given: time.sleep(14) or classify(*given)\n"
        "main.main()\n"
    )
    words = ("-d", f"mine={sets / 'mine'}", "--scales", "37", *set_words("train.rank_timeout_s=5"), *SETTINGS)
    done = run_program(script, "transfer", nets / "D", *words, "--json", ranks=2)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tested"]) == 1
