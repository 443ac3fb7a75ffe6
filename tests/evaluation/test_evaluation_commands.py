"""The commands: weights import and export, evaluate by every method, verify-paper; mistakes end in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_files import caffe_model
from PIL import Image

from vggrepro.cli import main as cli
from vggrepro.data.scan import scan_folder
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG

SETTINGS = (
    "run.device=cpu",
    "data.backend=torchvision",
    "data.workers=1",
    "evaluation.batch=2048",
    "tracking.mlflow=false",
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three classes."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(9):
        split = "train" if number < 3 else "val"
        file = root / split / f"n{number % 3}" / f"{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((64 + 8 * (number % 2), 56), Image.Resampling.BICUBIC).save(file, quality=92)
    scan_folder(root).save(root / "index.arrow")
    return root / "index.arrow"


def small(net: str, seed: int = 0) -> VGG:
    built = VGG(architecture(net, classes=3, crop=32, width=0.0625)).eval()
    init_weights(built, "kaiming", seed)
    with torch.no_grad():
        built.named_layers()["fc8"].weight.mul_(100)
    return built


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    made = {net: folder / f"{net}.caffemodel" for net in ("D", "E")}
    for net, file in made.items():
        file.write_bytes(caffe_model(small(net), "V1LayerParameter").SerializeToString())
    return made


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """What a command prints as JSON."""
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", ["vggrepro", *map(str, arguments), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> str:
    """The one line that a mistake ends in."""
    monkeypatch.setattr(sys, "argv", ["vggrepro", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def settings(*more: str) -> list[str]:
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


def test_import_evaluate_export(
    index: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    found = run(capsys, monkeypatch, "weights", "import", files["D"], "--out", tmp_path / "authors" / "D")
    assert (found["net"], found["classes"], found["crop"]) == ("D", 3, 32)
    assert found["parameters"] == sum(tensor.numel() for tensor in small("D").parameters())
    assert found["preprocessing"]["mean"] == [123.68, 116.779, 103.939]

    here = settings(f"data.index={index}", f"run.root={tmp_path}")
    both = run(
        capsys, monkeypatch, "evaluate", tmp_path / "authors" / "D", "--method", "both", "--scales", "40,36", *here
    )
    assert {key: both[key] for key in ("method", "scales", "n")} == {"method": "both", "scales": [40, 36], "n": 6}
    low, high = both["interval_top1"]
    assert low < both["top1_error"] < high
    stored = {
        file.name.split("-")[0] + file.name.split("-")[1] for file in (tmp_path / "authors/D/posteriors").iterdir()
    }
    assert stored == {"denseQ36", "denseQ40", "multicropQ36", "multicropQ40"}

    run_directory = tmp_path / "authors" / "D"
    report = run(capsys, monkeypatch, "tables", "--runs", run_directory)
    (imported,) = report["groups"][0]["runs"]
    (first, *others) = imported["departures"]
    assert (first["setting"], first["why"]) == ("weights", "imported: how it was trained is not known here")
    assert {"model.crop", "model.width", "model.classes"} <= {one["setting"] for one in others}
    (line,) = (run_directory / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["both_Q_40_36_top1_error"] == both["top1_error"]
    rows = report["rows"]
    assert not [row for row in rows if row["measured_top1"] is not None], "36 and 40 px are not the paper's Q"
    assert json.loads((run_directory / "dataset.json").read_text())["splits"]["val"] == 6
    for suffix in ("safetensors", "pth"):
        out = tmp_path / f"D.{suffix}"
        monkeypatch.setattr(sys, "argv", ["vggrepro", "weights", "export", str(run_directory), "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        capsys.readouterr()
        again = tmp_path / "again" / suffix
        copied = run(capsys, monkeypatch, "weights", "import", out, "--input", "paper", "--out", again)
        assert copied["weights"] == found["weights"], "the same net, whatever file it lies in"


def test_export_of_onnx(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out, file = tmp_path / "authors" / "D", tmp_path / "D.onnx"
    run(capfd, monkeypatch, "weights", "import", files["D"], "--out", out)
    monkeypatch.setattr(sys, "argv", ["vggrepro", "weights", "export", str(out), "--dense", "--out", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capfd.readouterr() == (f"wrote {file}\n", ""), "the exporter is quiet"
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["preprocessing"])["mean"] == [123.68, 116.779, 103.939]
    assert json.loads(said["model"])["net"] == "D"
    (scores, *_) = session.run(None, {"images": np.zeros((2, 3, 40, 99), np.float32)})
    assert scores.shape == (2, 3)


def test_several_nets_are_fused_and_compared(
    index: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    runs = []
    for net, file in files.items():
        runs.append(tmp_path / "authors" / net)
        run(capsys, monkeypatch, "weights", "import", file, "--out", runs[-1])
    here = settings(f"data.index={index}", f"run.root={tmp_path}")
    found = run(capsys, monkeypatch, "evaluate", *runs, "--scales", "40", *here)
    assert [one["net"] for one in found["nets"]] == [str(one) for one in runs]
    for one in found["nets"]:
        assert one["top1_minus_fused"] == pytest.approx(one["top1_error"] - found["top1_error"])
        assert 0 <= one["p_value"] <= 1


def test_verify_paper(
    index: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    weights = ["--weights-16", files["D"], "--weights-19", files["E"]]
    here = ["--index", index, "--runs", tmp_path / "verify", *settings(f"run.root={tmp_path}")]
    found = run(capsys, monkeypatch, "verify-paper", *weights, *here)
    assert found["n"] == 6
    assert found["weights"] == dict.fromkeys("DE", "Caffe model (V1LayerParameter)")
    assert [(row["table"], row["net"], row["method"]) for row in found["rows"]][-1] == (6, "D + E", "both")
    assert len(found["rows"]) == 13
    assert {one["reading"] for one in found["readings"]} == {"dense", "dense-ceil", "dense-softmax-first"}
    assert sum(1 for _ in (tmp_path / "verify" / "E" / "posteriors").glob("*.npz")) == 3 * 5

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("vggrepro.evaluation.stage.score", never)
    again = run(capsys, monkeypatch, "verify-paper", *weights, *here)
    assert again == found


def test_mistakes_are_one_line(
    index: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "authors" / "D"
    run(capsys, monkeypatch, "weights", "import", files["D"], "--out", out)
    assert "holds a net already" in refused(capsys, monkeypatch, "weights", "import", files["D"], "--out", out)
    other = refused(capsys, monkeypatch, "weights", "import", files["D"], "--net", "E", "--out", tmp_path / "x" / "E")
    assert "are not of net E" in other
    torn = tmp_path / "torn.caffemodel"
    torn.write_bytes(files["D"].read_bytes()[:5000])
    assert "ends too early" in refused(capsys, monkeypatch, "weights", "import", torn, "--out", tmp_path / "x" / "T")
    assert not (tmp_path / "x").exists()
    suffix = refused(capsys, monkeypatch, "weights", "export", out, "--out", tmp_path / "D.h5")
    assert "written as .safetensors, .pth or .onnx" in suffix
    form = refused(capsys, monkeypatch, "weights", "export", out, "--dense", "--out", tmp_path / "D.pth")
    assert "only .onnx has a dense form" in form
    experiment = refused(capsys, monkeypatch, "evaluate", out.parent)
    assert f"{out.parent} is no run directory (it has no config.yaml); its runs are {out}" in experiment
    (tmp_path / "empty").mkdir()
    assert "name one, e.g. runs/demo/D" in refused(capsys, monkeypatch, "evaluate", tmp_path / "empty")
    assert "needs --weights-16 or --weights-19" in refused(capsys, monkeypatch, "verify-paper", "--index", index)
    swapped = refused(capsys, monkeypatch, "verify-paper", "--index", index, "--weights-19", files["D"])
    assert "are not of net E" in swapped
    none = refused(capsys, monkeypatch, "verify-paper", "--index", tmp_path / "none", "--weights-16", files["D"])
    assert "does not exist" in none
    evaluate = ["evaluate", out, *settings(f"run.root={tmp_path}")]
    assert "--scales many" in refused(capsys, monkeypatch, *evaluate, "--scales", "many")
    too_small = refused(capsys, monkeypatch, *evaluate, "--scales", "16", "--set", f"data.index={index}")
    assert "smaller than model.crop=32" in too_small


def test_another_number_or_order_of_classes_is_refused(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    file, out = tmp_path / "seven.pth", tmp_path / "others" / "seven"
    torch.save(VGG(architecture("A", classes=7, crop=32, width=0.0625)).state_dict(), file)
    run(capsys, monkeypatch, "weights", "import", file, "--out", out)
    here = settings(f"data.index={index}", f"run.root={tmp_path}")
    assert "model.classes=7" in refused(capsys, monkeypatch, "evaluate", out, *here)

    from vggrepro.models.weights import PREPROCESSING, write

    named, out = tmp_path / "named.safetensors", tmp_path / "others" / "named"
    geometry = {"net": "D", "classes": 3, "crop": 32, "width": 0.0625}
    preprocessing = PREPROCESSING["paper"]
    write(named, small("D").state_dict(), model=geometry, preprocessing=preprocessing, classes=["n1", "n0", "n2"])
    run(capsys, monkeypatch, "weights", "import", named, "--out", out)
    assert "has other classes than" in refused(capsys, monkeypatch, "evaluate", out, *here)
