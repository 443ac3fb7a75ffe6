"""The commands: weights import and export, evaluate by every method, verify-paper, and one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import caffe_model
from evaluation_nets import SETTINGS, tiny_net
from nets import tiny_vgg
from programs import Command
from tiny import set_words

from vggrepro.models.weights import PREPROCESSING, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    made = {net: folder / f"{net}.caffemodel" for net in ("D", "E")}
    for net, file in made.items():
        file.write_bytes(caffe_model(tiny_net(net=net), "V1LayerParameter").SerializeToString())
    return made


def test_import_evaluate_export(index_file: Path, files: dict[str, Path], tmp_path: Path, command: Command) -> None:
    found = command.json("weights", "import", files["D"], "--out", tmp_path / "authors" / "D")
    assert (found["net"], found["classes"], found["crop"]) == ("D", 3, 32)
    assert found["parameters"] == sum(tensor.numel() for tensor in tiny_net(net="D").parameters())
    assert found["preprocessing"]["mean"] == [123.68, 116.779, 103.939]

    here = set_words(*SETTINGS, f"data.index={index_file}", f"run.root={tmp_path}")
    both = command.json("evaluate", tmp_path / "authors" / "D", "--method", "both", "--scales", "40,36", *here)
    assert {key: both[key] for key in ("method", "scales", "n")} == {"method": "both", "scales": [40, 36], "n": 12}
    low, high = both["interval_top1"]
    assert low < both["top1_error"] < high
    stored = {
        file.name.split("-")[0] + file.name.split("-")[1] for file in (tmp_path / "authors/D/posteriors").iterdir()
    }
    assert stored == {"denseQ36", "denseQ40", "multicropQ36", "multicropQ40"}

    run_directory = tmp_path / "authors" / "D"
    report = command.json("tables", "--runs", run_directory)
    (imported,) = report["groups"][0]["runs"]
    (first, *others) = imported["departures"]
    assert (first["setting"], first["why"]) == ("weights", "imported: how it was trained is not known here")
    assert {"model.crop", "model.width", "model.classes"} <= {departure["setting"] for departure in others}
    (line,) = (run_directory / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["both_Q_40_36_top1_error"] == both["top1_error"]
    rows = report["rows"]
    assert not [row for row in rows if row["measured_top1"] is not None], "36 and 40 px are not the paper's Q"
    assert json.loads((run_directory / "dataset.json").read_text())["splits"]["val"] == 12
    for suffix in ("safetensors", "pth"):
        out = tmp_path / f"D.{suffix}"
        assert command("weights", "export", run_directory, "--out", out)[0] == 0
        again = tmp_path / "again" / suffix
        copied = command.json("weights", "import", out, "--input", "paper", "--out", again)
        assert copied["weights"] == found["weights"], "the same net, whatever file it lies in"


def test_export_of_onnx(files: dict[str, Path], tmp_path: Path, command: Command) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out, file = tmp_path / "authors" / "D", tmp_path / "D.onnx"
    command.json("weights", "import", files["D"], "--out", out)
    exported = command("weights", "export", out, "--dense", "--out", file)
    assert exported == (0, f"wrote {file}\n", ""), "the exporter is quiet"
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["preprocessing"])["mean"] == [123.68, 116.779, 103.939]
    assert json.loads(metadata["model"])["net"] == "D"
    (scores, *_) = session.run(None, {"images": np.zeros((2, 3, 40, 99), np.float32)})
    assert scores.shape == (2, 3)


def test_several_nets_are_fused_and_compared(
    index_file: Path, files: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    runs = []
    for net, file in files.items():
        runs.append(tmp_path / "authors" / net)
        command.json("weights", "import", file, "--out", runs[-1])
    here = set_words(*SETTINGS, f"data.index={index_file}", f"run.root={tmp_path}")
    found = command.json("evaluate", *runs, "--scales", "40", *here)
    assert found["flip"]
    assert not command.json("evaluate", *runs, "--scales", "40", "--method", "centre", *here)["flip"]
    assert [report["net"] for report in found["nets"]] == list(map(str, runs))
    for report in found["nets"]:
        assert report["top1_minus_fused"] == pytest.approx(report["top1_error"] - found["top1_error"])
        assert 0 <= report["p_value"] <= 1


def test_images_of_imported_nets_are_found_from_any_folder(
    images: Path, files: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / "authors" / net for net in files]
    for file, run in zip(files.values(), runs, strict=True):
        command.json("weights", "import", file, "--out", run)
    monkeypatch.chdir(images.parent)
    here = set_words(*SETTINGS, f"data.root={images.name}", f"run.root={tmp_path}")
    command.json("evaluate", *runs, "--scales", "40", *here)
    monkeypatch.chdir(tmp_path)
    assert "Classes and images have no names here" not in " ".join(command.json("compare", *runs)["notes"])


def test_verify_paper(
    index_file: Path, files: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ["--weights-16", files["D"], "--weights-19", files["E"]]
    here = ["--index", index_file, "--runs", tmp_path / "verify", *set_words(*SETTINGS, f"run.root={tmp_path}")]
    found = command.json("verify-paper", *weights, *here)
    assert found["n"] == 12
    assert found["weights"] == dict.fromkeys("DE", "Caffe model (V1LayerParameter)")
    assert [(row["table"], row["net"], row["method"]) for row in found["rows"]][-1] == (6, "D + E", "both")
    assert len(found["rows"]) == 13
    assert {reading["reading"] for reading in found["readings"]} == {"dense", "dense-ceil", "dense-softmax-first"}
    assert sum(1 for _ in (tmp_path / "verify" / "E" / "posteriors").glob("*.npz")) == 3 * 5

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("vggrepro.evaluation.run_split.SplitPass.store", never)
    again = command.json("verify-paper", *weights, *here)
    assert again == found


def test_mistakes_are_one_line_errors(
    index_file: Path, files: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "authors" / "D"
    command.json("weights", "import", files["D"], "--out", out)
    assert "already has a net" in command.mistake("weights", "import", files["D"], "--out", out)
    other = command.mistake("weights", "import", files["D"], "--net", "E", "--out", tmp_path / "x" / "E")
    assert "are not of net E" in other
    torn = tmp_path / "torn.caffemodel"
    torn.write_bytes(files["D"].read_bytes()[:5000])
    assert "is truncated" in command.mistake("weights", "import", torn, "--out", tmp_path / "x" / "T")
    assert not (tmp_path / "x").exists()
    suffix = command.mistake("weights", "export", out, "--out", tmp_path / "D.h5")
    assert "must end in .safetensors, .pth or .onnx" in suffix
    form = command.mistake("weights", "export", out, "--dense", "--out", tmp_path / "D.pth")
    assert "must end in .onnx" in form
    experiment = command.mistake("evaluate", out.parent)
    assert f"{out.parent} is not a run directory (it has no config.yaml); its runs are {out}" in experiment
    (tmp_path / "empty").mkdir()
    assert "name one, e.g. runs/demo/D" in command.mistake("evaluate", tmp_path / "empty")
    assert "needs --weights-16 or --weights-19" in command.mistake("verify-paper", "--index", index_file)
    swapped = command.mistake("verify-paper", "--index", index_file, "--weights-19", files["D"])
    assert "are not of net E" in swapped
    none = command.mistake("verify-paper", "--index", tmp_path / "none", "--weights-16", files["D"])
    assert "does not exist" in none
    evaluate = ["evaluate", out, *set_words(*SETTINGS, f"run.root={tmp_path}")]
    assert "--scales many" in command.mistake(*evaluate, "--scales", "many")
    too_small = command.mistake(*evaluate, "--scales", "16", "--set", f"data.index={index_file}")
    assert "smaller than model.crop=32" in too_small


def test_another_number_or_order_of_classes_is_refused(index_file: Path, tmp_path: Path, command: Command) -> None:
    file, out = tmp_path / "seven.pth", tmp_path / "others" / "seven"
    torch.save(tiny_vgg(classes=7).state_dict(), file)
    command.json("weights", "import", file, "--out", out)
    here = set_words(*SETTINGS, f"data.index={index_file}", f"run.root={tmp_path}")
    assert "model.classes=7" in command.mistake("evaluate", out, *here)

    named, out = tmp_path / "named.safetensors", tmp_path / "others" / "named"
    geometry = {"net": "D", "classes": 3, "crop": 32, "width": 0.0625}
    preprocessing = PREPROCESSING["paper"]
    write(
        named,
        tiny_net(net="D").state_dict(),
        model=geometry,
        preprocessing=preprocessing,
        classes=["n02", "n01", "n03"],
    )
    command.json("weights", "import", named, "--out", out)
    assert "has other classes than" in command.mistake("evaluate", out, *here)
