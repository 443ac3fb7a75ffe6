"""Publication of nets: files, programs that load them, protection of existing content, and errors of one line."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import TOKEN, Hub, Repository, connect_client, hub_server
from huggingface_hub import snapshot_download
from nets import tiny_vgg
from PIL import Image
from programs import Command, fork_program
from tiny import REPOSITORY, tiny_graph

import vggrepro
from vggrepro.config.settings import Config, Data, Model, Run
from vggrepro.models.table1 import TORCHVISION_NAMES, architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, write
from vggrepro.pipeline import publish as publishing
from vggrepro.pipeline.graph import reproduce
from vggrepro.pipeline.weights import import_weights
from vggrepro.reporting.documents.card import function_of
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.storage import checkpoint
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.status import final_file

FILES = {"LICENSE", "README.md", "config.json", "evidence.jsonl", "ledger.json", "model.safetensors", "ranks.npz"}


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A, trained for a moment and tested, by a command line that names folders."""
    root = tmp_path_factory.mktemp("secretfolder")
    reproduce(tiny_graph("vgg_A.yaml", images, root / "runs"))
    (run,) = (root / "runs").glob("*/A-256")
    environment = json.loads((run / "environment.json").read_text())
    environment["command"] = f"{root}/bin/python -m vggrepro reproduce --set data.root={images}"
    (run / "environment.json").write_text(json.dumps(environment))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "paper" / "A-256"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        connect_client(hub, tmp_path / "cache", monkeypatch)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def photographs(images: Path) -> list[Image.Image]:
    return [Image.open(file) for file in sorted((images / "val").rglob("*.JPEG"))]


def another_net(run: Path) -> None:
    """Same run with other weights."""
    stored = checkpoint.load(final_file(run))
    stored.weights["features.0.bias"] += 1
    checkpoint.save(stored, final_file(run))
    shutil.rmtree(run / "posteriors")
    (run / "final.json").unlink()


def test_a_folder_is_complete_and_has_no_local_paths(
    finished: Path, images: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    status, printed, err = command("publish", finished, "--to", out)
    assert (status, err) == (0, "")
    assert contents(out).keys() == FILES
    assert set(re.findall(r"^ *[\d.]+ MB  (\S+)$", printed, re.MULTILINE)) == FILES
    assert "timm has no such net: config.json names none" in printed.splitlines()[-1]
    assert (out / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    for name, content in contents(out).items():
        for place in ("secretfolder", str(tmp_path), str(images.parent), str(Path.home())):
            assert place.encode() not in content, name
    card = (out / "README.md").read_text()
    assert 'vggrepro.load("FOLDER")' in card
    assert f"`python -m vggrepro reproduce --set data.root={images.name}`" in card
    assert "`LICENSE` is the license of vggrepro, the program, and not of these weights." in card
    ours, loaded = vggrepro.load(finished), vggrepro.load(out)
    assert (loaded.weights, loaded.classes, loaded.Q, loaded.mean) == (ours.weights, ours.classes, ours.Q, ours.mean)
    difference = np.abs(loaded.predict(photographs(images)) - ours.predict(photographs(images))).max()
    assert difference == 0
    before = contents(out)
    command("publish", finished, "--to", out)
    assert contents(out) == before, "of the same net the same bytes"


def test_rows_from_a_published_net_equal_those_of_its_run(finished: Path, tmp_path: Path, command: Command) -> None:
    command("publish", finished, "--to", tmp_path / "out")
    there, here = (build_report(find_runs([place])) for place in (tmp_path / "out", finished))
    assert [row for row in here.rows if row.top1.measured is not None]
    for published, original in zip(there.rows, here.rows, strict=True):
        assert (published.top1, published.top5, published.n) == (original.top1, original.top5, original.n)
    assert str(there.groups[0].runs[0].departures) == str(here.groups[0].runs[0].departures)
    status, text, _ = command("tables", "--runs", tmp_path / "out")
    assert (status, "| A | 37 | 37 | dense |" in text) == (0, True)


def test_a_published_net_can_be_imported_and_evaluated(finished: Path, tmp_path: Path, command: Command) -> None:
    command("publish", finished, "--to", tmp_path / "out")
    found = command.json("weights", "import", tmp_path / "out", "--out", tmp_path / "again" / "A")
    assert found["weights"] == json.loads((finished / "final.json").read_text())["weights"]


def test_a_dry_run_lists_the_files_without_writing(run: Path, tmp_path: Path, hub: Hub, command: Command) -> None:
    before = contents(tmp_path)
    made = {}
    for to in (str(tmp_path / "out"), "hf:me/net"):
        made[to] = command.json("publish", run, "--to", to, "--dry-run")
        assert made[to]["place"] == to
        assert made[to]["files"].keys() == FILES
    assert (hub.requests, contents(tmp_path)) == ([], before)
    command("publish", run, "--to", tmp_path / "out")
    for name, size in made[str(tmp_path / "out")]["files"].items():
        difference = (tmp_path / "out" / name).stat().st_size - size
        assert difference == 0 or (name == "model.safetensors" and 0 < difference < 10_000), "its header"


def test_other_nets_results_and_edited_cards_are_not_overwritten(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    command("publish", run, "--to", out)
    card = (out / "README.md").read_text()
    edited = card.replace("# license: yours", "license: apache-2.0  # yours")
    (out / "README.md").write_text(edited)
    status, printed, _ = command("publish", run, "--to", out)
    assert (status, "its README.md was edited by hand and is unchanged" in printed) == (0, True)
    assert (out / "README.md").read_text() == edited
    shutil.move(run / "posteriors", tmp_path / "posteriors")
    before = contents(out)
    line = command.mistake("publish", run, "--to", out)
    assert f"--to {out} has results of this net, which {run} lacks and which would be lost" in line
    shutil.move(tmp_path / "posteriors", run / "posteriors")
    another_net(run)
    line = command.mistake("publish", run, "--to", out)
    weights = json.loads(before["config.json"])["vggrepro"]["weights"]
    assert f"--to {out} has another net (weights {weights[:12]}; this one has " in line
    assert contents(out) == before
    status, printed, _ = command("publish", run, "--to", out, "--replace")
    assert (status, f"no results are published: {run} is not tested" in printed) == (0, True)
    assert contents(out).keys() == FILES - {"evidence.jsonl", "ranks.npz"}
    assert "Not evaluated" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["vggrepro"]["weights"] != weights


def test_folders_with_other_files_are_an_error(run: Path, tmp_path: Path, command: Command) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for replace in ((), ("--replace",)):
        line = command.mistake("publish", run, "--to", full, *replace)
        assert f"--to {full} has other files (notes.txt); choose a new folder" in line
    line = command.mistake("publish", run, "--to", full / "notes.txt")
    assert f"--to {full / 'notes.txt'} is a file" in line
    assert contents(full) == {"notes.txt": b"mine"}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.safetensors").write_bytes(b"theirs")
    assert "has another net (without a config.json of vggrepro;" in command.mistake("publish", run, "--to", theirs)
    assert contents(theirs) == {"model.safetensors": b"theirs"}


def test_a_folder_is_written_atomically(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "place" / "out"
    command("publish", run, "--to", out)
    before = contents(out.parent)
    another_net(run)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "sha256_of", full)  # after the weights, before the card
        line = command.mistake("publish", run, "--to", out, "--replace")
        assert f"--to {out} cannot be written: No space left on device; choose another folder" in line
        patched.setattr(publishing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100_000))
        line = command.mistake("publish", run, "--to", out, "--replace")
        assert re.search(rf"{out.parent} has 0 MB of free space, and the files need \d+ MB; free some", line)
    assert contents(out.parent) == before


def test_nets_that_cannot_be_published(run: Path, tmp_path: Path, images: Path, command: Command) -> None:
    to = ("--to", tmp_path / "out")
    boxes = checkpoint.load(final_file(run))
    line = command.mistake("publish", final_file(run), *to)
    assert "final.pt is a file; name the run directory of a finished stage" in line
    assert f"--private with the folder {tmp_path / 'out'}" in command.mistake("publish", run, *to, "--private")
    assert "write hf:owner/name" in command.mistake("publish", run, "--to", "hf:net")
    (run / "final.json").write_text(json.dumps({"weights": "0" * 64, "step": 6}))
    assert "final.json belongs to another net than" in command.mistake("publish", run, *to)
    config = boxes.config | {"localisation": {"regression": "SCR"}, "run": boxes.config["run"] | {"parent": "A"}}
    checkpoint.save(Checkpoint(**vars(boxes) | {"config": config}), final_file(run))
    assert f"{run} predicts boxes, not classes; name the net it was trained from" in command.mistake(
        "publish", run, *to
    )
    final_file(run).unlink()
    assert f"{run} is not finished (no final.pt)" in command.mistake("publish", run, *to)
    assert not (tmp_path / "out").exists()


def test_an_untested_import_is_published_without_results(tmp_path: Path, command: Command) -> None:
    small = {"net": "C", "classes": 3, "crop": 32, "width": 0.0625, "batch_norm": False}
    weights = tiny_vgg("C", classes=3).state_dict()
    described = {"model": small, "preprocessing": PREPROCESSING["torchvision"], "classes": None}
    write(tmp_path / "theirs.safetensors", weights, **described)  # type: ignore[arg-type]
    import_weights(tmp_path / "theirs.safetensors", tmp_path / "imported" / "C")
    status, printed, err = command("publish", tmp_path / "imported" / "C", "--to", tmp_path / "out")
    assert (status, "is not tested; run `vggrepro evaluate" in printed) == (0, True), err
    assert contents(tmp_path / "out").keys() == FILES - {"evidence.jsonl", "ranks.npz"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "architecture" not in config, "timm has no C"
    assert "label_names" not in config
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert config["pretrained_cfg"]["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_a_net_is_published_to_the_hub_and_loaded_back(
    run: Path, images: Path, tmp_path: Path, hub: Hub, command: Command
) -> None:
    status, printed, err = command("publish", run, "--to", "hf:me/net", "--private")
    assert (status, err) == (0, "")
    assert f"published in {hub.address}/me/net" in printed
    repository = hub.repositories["me/net"]
    assert (len(repository.commits), repository.private) == (1, True)
    assert repository.files.keys() == FILES | {".gitattributes"}
    card = repository.files["README.md"].decode()
    for words in ('vggrepro.load("hf:me/net")', "hf download me/net --local-dir FOLDER", "import hf:me/net --out"):
        assert words in card
    ours, loaded = vggrepro.load(run), vggrepro.load("hf:me/net")
    assert np.abs(loaded.predict(photographs(images)) - ours.predict(photographs(images))).max() == 0
    assert "hf:me/net" in loaded.source
    found = command.json("weights", "import", "hf:me/net", "--out", tmp_path / "again" / "A")
    assert found["weights"] == ours.weights
    folder = Path(snapshot_download("me/net", local_dir=tmp_path / "snapshot"))
    assert vggrepro.load(folder).weights == ours.weights
    assert build_report(find_runs([folder])).groups[0].runs[0].name == "paper:A-256"
    hub.stored.clear()
    assert command("publish", run, "--to", "hf:me/net")[0] == 0
    assert (hub.stored, len(repository.commits)) == ([], 1), "the same net is not sent again"


def test_the_content_of_a_repository_is_not_overwritten(run: Path, hub: Hub, command: Command) -> None:
    hub.repositories["me/net"] = Repository(files={"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b""})
    repository = hub.repositories["me/net"]
    status, printed, _ = command("publish", run, "--to", "hf:me/net")
    assert (status, "its README.md was edited by hand" in printed) == (0, True)
    assert repository.files["README.md"].startswith(b"---\nlicense: mit"), "as the site has made it"
    before = dict(repository.files)
    another_net(run)
    assert "--to hf:me/net has another net (weights " in command.mistake("publish", run, "--to", "hf:me/net")
    assert repository.files == before
    assert command("publish", run, "--to", "hf:me/net", "--replace")[0] == 0
    assert repository.files.keys() == FILES - {"evidence.jsonl", "ranks.npz"} | {".gitattributes"}
    assert len(repository.commits) == 2
    hub.repositories["me/theirs"] = Repository(files={"model.safetensors": b"theirs"})
    line = command.mistake("publish", run, "--to", "hf:me/theirs")
    assert "--to hf:me/theirs has another net (without a config.json of vggrepro;" in line


def test_the_command_reads_the_environment(run: Path, tmp_path: Path, hub: Hub) -> None:
    """Uses HF_ENDPOINT and HF_TOKEN in a separate process; a wrong token and an interrupted upload are one line."""
    words = ("-m", "vggrepro", "publish", run, "--to", "hf:me/net")
    place = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = fork_program(*words, HF_TOKEN="hf_wrong", **place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "vggrepro: hf:me/net: the token is missing or invalid" in done.stderr
    done = fork_program(*words, HF_TOKEN=TOKEN, **place)
    assert (done.returncode, done.stderr) == (0, "")
    assert hub.repositories["me/net"].files.keys() >= FILES


def full_size(net: str, *, batch_norm: bool = False, S: int | tuple[int, int] = 256, **model: Any) -> Checkpoint:
    """Makes a checkpoint of a full-size net, without its weights."""
    config = Config(model=Model(net=net, batch_norm=batch_norm, **{"classes": 7} | model), data=Data(S=S), run=Run())
    names = [f"class {number}" for number in range(7)]
    return Checkpoint(config.model_dump(mode="json"), 0, {}, PREPROCESSING["paper"], {"classes": names})


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("net", TORCHVISION_NAMES)
def test_timm_has_every_tensor_of_the_nets_in_the_configuration(net: str, batch_norm: bool) -> None:
    timm = pytest.importorskip("timm")
    config = publishing._config(full_size(net, batch_norm=batch_norm), "0" * 64)
    with torch.device("meta"):
        theirs = timm.create_model(config["architecture"], num_classes=7).state_dict()
        ours = VGG(architecture(net, classes=7, batch_norm=batch_norm)).state_dict()
    made = timm.models.vgg._filter_fn(ours)
    assert {name: tensor.shape for name, tensor in made.items()} == {name: each.shape for name, each in theirs.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"net": "C"},
        {"net": "A-LRN"},
        {"net": "D", "width": 0.5},
        {"net": "D", "crop": 192},
        {"net": "D", "blocks": 4, "crop": 112},
        {"net": "D", "fully_connected": False},
        {"net": "D", "layers": (("conv3-64",), ("conv3-64",), ("conv3-64",), ("conv3-64",), ("conv3-64",))},
    ],
)
def test_nets_that_timm_lacks_have_no_name(options: dict[str, Any]) -> None:
    assert function_of(Model(**options)) is None
    assert "architecture" not in publishing._config(full_size(**options), "0" * 64)


@pytest.mark.parametrize("S", [256, 384, (256, 512), 300, 299, 257])
def test_timms_transform_matches_the_papers_centre_crop(S: Any, tmp_path: Path, images: Path) -> None:
    """Compares timm's transform from the config with our rescaled, cropped and normalised image, within 1e-4."""
    timm = pytest.importorskip("timm")
    stored = full_size("A", S=S)
    (tmp_path / "config.json").write_text(json.dumps(publishing._config(stored, "0" * 64)))
    found, name, arguments = timm.models._hub.load_model_config_from_path(tmp_path)
    assert (name, arguments, found["num_classes"]) == ("vgg11", {}, 7)
    assert list(found["label_names"]) == [f"class {number}" for number in range(7)]
    settings = timm.data.resolve_data_config(pretrained_cfg=found)
    Q = stored.stage.single_Q[0]
    assert math.floor(224 / settings["crop_pct"]) == Q
    photograph = photographs(images)[0].resize((500, 300))
    theirs = timm.data.create_transform(**settings)(photograph)
    pixels = np.asarray(photograph.resize((int(Q * 500 / 300), Q), Image.Resampling.BILINEAR), np.float32)
    top, left = round((Q - 224) / 2), round((pixels.shape[1] - 224) / 2)
    ours = torch.from_numpy(pixels[top : top + 224, left : left + 224] - np.float32(stored.preprocessing["mean"]))
    assert theirs.shape == (3, 224, 224)
    assert float((theirs - ours.permute(2, 0, 1)).abs().max()) < 1e-4 * 255


def test_the_license_is_found_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing.importlib.metadata, "files", lambda _: None)
    assert publishing._license() == (REPOSITORY / "LICENSE").read_bytes()


@pytest.mark.slow
def test_timm_and_torchvision_load_a_full_size_net(
    tmp_path: Path, hub: Hub, images: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the logits of A, half a gigabyte, from a folder and the Hub."""
    import safetensors.torch
    import timm
    import torchvision

    net = tiny_vgg("A", classes=7, crop=224, width=1.0)
    model = {"net": "A", "classes": 7, "crop": 224, "width": 1.0, "batch_norm": False}
    described = {"model": model, "preprocessing": PREPROCESSING["paper"], "classes": list("abcdefg")}
    write(tmp_path / "A.safetensors", net.state_dict(), **described)  # type: ignore[arg-type]
    import_weights(tmp_path / "A.safetensors", tmp_path / "imported" / "A")
    out = tmp_path / "out"
    for to in (out, "hf:me/net"):
        status, printed, err = command("publish", tmp_path / "imported" / "A", "--to", to)
        assert (status, "timm has no such net" in printed) == (0, False), err
    crop, full = torch.randn(1, 3, 224, 224) * 60, torch.randn(1, 3, 256, 320) * 60
    dense = vggrepro.class_scores(net, full).detach()
    largest = {}
    with torch.inference_mode():
        for name in (f"local-dir:{out}", "hf-hub:me/net"):
            theirs = timm.create_model(name, pretrained=True).eval()
            settings = timm.data.resolve_model_data_config(theirs)
            assert (tuple(settings["input_size"]), settings["interpolation"]) == ((3, 224, 224), "bilinear")
            assert list(theirs.pretrained_cfg["label_names"]) == list("abcdefg")
            largest[name] = float((theirs(crop) - net(crop)).abs().max() / net(crop).abs().max())
            largest[f"{name} dense"] = float((theirs(full) - dense).abs().max() / dense.abs().max())
        (code,) = re.findall(r"With torchvision.*?```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        names: dict[str, Any] = {"torchvision": torchvision, "safetensors": safetensors}
        exec(code.replace("FOLDER", str(out)), names)
        largest["torchvision"] = float((names["net"](crop) - net(crop)).abs().max() / net(crop).abs().max())
    print(largest)
    assert max(largest.values()) < 1e-5, largest
