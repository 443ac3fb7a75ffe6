"""The model card of an exported net: what stands in it is what the run directory holds, and edits are not lost."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nets import tiny_vgg
from programs import Command
from reporting_runs import make_run, posteriors_with
from tiny import tiny_graph

from vggrepro.config.recipes import load_resolved
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, write
from vggrepro.pipeline.graph import reproduce
from vggrepro.pipeline.weights import export_weights, import_weights
from vggrepro.reporting.documents import card
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import without_folders
from vggrepro.storage.ledger import Departure
from vggrepro.storage.status import final_file


def header_of(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A, trained for a moment and tested."""
    graph = tiny_graph("vgg_A.yaml", images, tmp_path_factory.mktemp("runs"))
    reproduce(graph)
    (config,) = graph.stages.values()
    return RunDirectory(config.directory)


def test_a_card_describes_the_run_directory(trained: RunDirectory, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "A.safetensors"
    status, out, _ = command("weights", "export", trained.path, "--out", file)
    assert (status, out) == (0, f"wrote {file}\nwrote {tmp_path / 'A.md'}\n")
    text = (tmp_path / "A.md").read_text()

    known: dict[str, Any] = {}
    for record in trained.records("evaluation"):
        known |= record
    config = load_resolved(trained.path / "config.yaml")
    for name, Q in (("single_Q", config.single_Q), ("multi_Q", config.multi_Q)):
        row = next(line for line in text.splitlines() if line.startswith(f"| dense, Q = {', '.join(map(str, Q))} |"))
        assert f"| {known[f'dense_{name}_top1_error']:.2f} (" in row
        assert "| 12 |" in row
    assert f"| centre, Q = 37 | {known['centre_single_Q_top1_error']:.2f} (" in text
    departures = [str(Departure(**line)) for line in trained.read_json("ledger.json")]
    assert len(departures) > 3
    assert all(f"- {departure}\n" in text for departure in departures)
    data, made = trained.read_json("dataset.json"), trained.read_json("environment.json")
    assert f"`{data['fingerprint']}`" in text
    assert "24 train, 12 val; 3 classes" in text
    assert made["git_commit"] is None or f"`{made['git_commit']}`" in text
    assert trained.read_json("final.json")["weights"] in text
    assert hashlib.sha256(file.read_bytes()).hexdigest() in text
    assert f"{architecture('A', classes=3, crop=32, width=0.0625).parameters:,}" in text
    assert "torchvision and timm have no such net" in text
    for folder in (trained.path, data["source"], tmp_path):
        assert str(folder) not in text, "where it lay is nobody's business"

    header = header_of(text)
    assert header["pipeline_tag"] == "image-classification"
    assert "license" not in header, "not ours to give"
    assert "datasets" not in header, "a folder of ours is none of the Hub's"
    (model,) = header["model-index"]
    assert model["name"] == "A-256"
    accuracies = {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    expected = round(100 - known["dense_single_Q_top1_error"], 2)
    assert accuracies["top-1 accuracy, % (dense, Q = 37)"] == expected


def test_an_edited_card_is_not_overwritten_and_one_as_made_is(trained: RunDirectory, tmp_path: Path) -> None:
    file, made = tmp_path / "A.safetensors", tmp_path / "A.md"
    export_weights(trained.path, file)
    export_weights(trained.path, file)
    first = made.read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in first, "of the newer file"
    edited = first.replace("# license: yours", "license: apache-2.0  # yours")
    made.write_text(edited)
    file.unlink()
    with pytest.raises(UserError, match=re.escape(f"its model card {made} was written or edited by hand")):
        export_weights(trained.path, file)
    assert made.read_text() == edited
    assert not file.exists(), "no new weights beside an old card"
    made.write_text("notes of mine\n")
    with pytest.raises(UserError, match="move it away"):
        export_weights(trained.path, file)
    assert export_weights(trained.path, tmp_path / "A.pth") == [tmp_path / "A.pth"]


def test_unknown_facts_are_reported(trained: RunDirectory, tmp_path: Path) -> None:
    """A file of another program, never evaluated; and a checkpoint that was taken out of its run directory."""
    small = {"net": "D", "classes": 3, "crop": 32, "width": 0.0625}
    weights = tiny_vgg("D", classes=3).state_dict()
    described = {"model": small | {"batch_norm": False}, "preprocessing": PREPROCESSING["torchvision"], "classes": None}
    write(tmp_path / "theirs.safetensors", weights, **described)  # type: ignore[arg-type]
    import_weights(tmp_path / "theirs.safetensors", tmp_path / "imported" / "D")
    _, made = export_weights(tmp_path / "imported" / "D", tmp_path / "D.safetensors")
    text = made.read_text()
    assert "Not evaluated: no posteriors" in text
    assert "| training | not known here |" in text
    assert "imported from | safetensors of this program, SHA-256" in text
    assert "model-index" not in header_of(text)
    assert "123.675, 116.28, 103.53" in text

    stray = tmp_path / "elsewhere" / "checkpoints" / "A.pt"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(final_file(trained.path).read_bytes())
    _, made = export_weights(stray, tmp_path / "stray.safetensors")
    text = made.read_text()
    assert "Not evaluated" in text
    assert "there is no ledger.json beside this net" in text
    assert "there is no dataset.json beside this net" in text


def card_of(run: RunDirectory, file: Path) -> str:
    config = load_resolved(run.path / "config.yaml")
    provenance = {"classes": None, "parent": None, "versions": {}}
    checkpoint = Checkpoint(config.model_dump(mode="json"), 370_000, {}, PREPROCESSING["paper"], provenance)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return card.model_card(checkpoint, run.read_json("final.json")["weights"], run, file.name, sha256)


def fabricated(root: Path, file: Path, **changes: Any) -> str:
    """The card of a run of D with posteriors of known errors."""
    wrong = {("dense", 256): (540, 176), ("multicrop", 256): (500, 150), ("dense", 224): (600, 200)}
    stored = {key: posteriors_with(*counts) for key, counts in wrong.items()}
    file.write_bytes(b"")
    return card_of(make_run(root, "D", posteriors=stored, **changes), file)


def test_printed_figures_stand_beside_the_papers_protocols_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = fabricated(root, tmp_path / "D.safetensors")
    assert "| dense, Q = 256 | 27.00 (" in apart
    assert "The paper prints no figure for this net, geometry, data and protocol." in apart
    real = card.value
    other = {"classes": 10, "val_images": 2000}
    monkeypatch.setattr(card, "value", lambda name: other.get(name) or real(name))
    text = fabricated(root, tmp_path / "D.safetensors")
    rows = {line.split(" |")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert re.search(
        r"27\.00 \(25\.10 to 28\.99\) \| 27\.0 \| 8\.80 \(.*\) \| 8\.8 \| 2,000 \|", rows["dense, Q = 256"]
    )
    for protocol in ("multicrop, Q = 256", "both, Q = 256", "dense, Q = 224", "dense, Q = 224, 256"):
        assert rows[protocol].count("| - |") == 2, "Table 3 has no such row"


def test_a_way_to_load_it_is_shown_where_there_is_one(root: Path, tmp_path: Path) -> None:
    text = fabricated(root, tmp_path / "D.safetensors")
    assert "torchvision.models.vgg16(num_classes=10)" in text
    assert 'timm.create_model("vgg16", ' in text
    assert "no such net" not in text
    card = fabricated(root, tmp_path / "D.safetensors", name="own", layers=(("conv3-64",),))
    assert "torchvision and timm have no such net" in card


def test_ilsvrc_is_known_to_the_hub(root: Path, tmp_path: Path) -> None:
    assert "datasets" not in header_of(fabricated(root, tmp_path / "D.safetensors"))
    run = RunDirectory(root / "paper" / "D-256")
    run.write_json("dataset.json", run.read_json("dataset.json") | {"ilsvrc": []})
    header = header_of(card_of(run, tmp_path / "D.safetensors"))
    assert header["datasets"] == ["ILSVRC/imagenet-1k"]
    (model,) = header["model-index"]
    assert {result["dataset"]["type"] for result in model["results"]} == {"ILSVRC/imagenet-1k"}


def test_torn_posteriors_are_named(root: Path, tmp_path: Path) -> None:
    fabricated(root, tmp_path / "D.safetensors")
    (torn,) = (root / "paper" / "D-256" / "posteriors").glob("dense-Q224-*.npz")
    content = torn.read_bytes()
    for rest in (b"PK", content[:1000]):
        torn.write_bytes(rest)
        with pytest.raises(UserError, match=re.escape(f"posteriors {torn} cannot be read")):
            card_of(RunDirectory(root / "paper" / "D-256"), tmp_path / "D.safetensors")


def test_folders_of_the_machine_stay_there() -> None:
    command = "/home/me/.venv/bin/python -m vggrepro train --config configs/vgg_A.yaml --set data.root=/data/x/imagenet"
    assert without_folders(command) == ("python -m vggrepro train --config configs/vgg_A.yaml --set data.root=imagenet")
    address = "vggrepro train --set tracking.uri=http://host:5000/a"
    assert without_folders(address) == address


@pytest.mark.slow
def test_torchvision_loads_it_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a gigabyte: A at its true size."""
    import safetensors.torch
    import torchvision

    net = VGG(architecture("A", classes=7)).eval()
    model = {"net": "A", "classes": 7, "crop": 224, "width": 1.0, "batch_norm": False}
    described = {"model": model, "preprocessing": PREPROCESSING["paper"], "classes": None}
    write(tmp_path / "A.safetensors", net.state_dict(), **described)  # type: ignore[arg-type]
    import_weights(tmp_path / "A.safetensors", tmp_path / "imported" / "A")
    _, made = export_weights(tmp_path / "imported" / "A", tmp_path / "published.safetensors")
    (code,) = re.findall(r"With torchvision:\n\n```python\n(.*?)```", made.read_text(), re.DOTALL)
    names: dict[str, Any] = {"torchvision": torchvision, "safetensors": safetensors}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(names["net"].eval()(images), net(images))
