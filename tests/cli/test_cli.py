from pathlib import Path

import pytest
from programs import Command
from tiny import CONFIGS, set_words

from vggrepro.paper import facts


@pytest.mark.parametrize("batch_norm", [False, True])
def test_summary_gives_the_papers_counts(command: Command, batch_norm: bool) -> None:
    found = command.json("summary", *(["--batch-norm"] if batch_norm else []))
    counts = {net["net"]: net["parameters"] for net in found["nets"]}
    assert counts == (facts().parameters_batch_norm if batch_norm else facts().parameters)


def test_summary_of_one_net_is_a_table(command: Command) -> None:
    status, out, _ = command("summary", "D")
    assert (status, "conv5_3" in out, "138,357,544" in out) == (0, True, True)


def test_summary_of_the_nets_of_a_recipe(command: Command) -> None:
    found = command.json("summary", "--blocks", 3, "--crop", 56, "--width", 0.25)["nets"]
    assert [(net["net"], net["blocks"], net["weight_layers"]) for net in found] == [
        *[("A", 3, 7), ("A-LRN", 3, 7), ("B", 3, 9), ("C", 3, 10), ("D", 3, 10), ("E", 3, 11)]
    ]
    recipe = ["--config", CONFIGS / "reproduce.yaml"]
    assert command.json("summary", *recipe) == command.json("summary"), "each net once, whatever its stages"
    (D,) = command.json("summary", "D", "--config", CONFIGS / "reduced" / "localisation.yaml")["nets"]
    assert (D["net"], D["blocks"], D["field_of_view"]) == ("D", 3, 92)
    assert "F: no stage of" in command.mistake("summary", "F", *recipe)
    assert "--batch-norm with --config" in command.mistake("summary", "--batch-norm", *recipe)
    assert "--crop with --config" in command.mistake("summary", "--crop", 56, *recipe)


def test_index_reports_and_writes(command: Command, images: Path, tmp_path: Path) -> None:
    found = command.json("index", images, "--out", tmp_path / "x.idx")
    assert (found["images"], found["usable"], found["classes"]) == (36, 36, 3)
    assert found["splits"] == {"train": 24, "val": 12}
    assert (tmp_path / "x.idx").exists()


def test_train_then_evaluate(command: Command, settings: list[str], tmp_path: Path) -> None:
    status, out, err = command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*settings))
    assert (status, out) == (0, ""), err
    run = tmp_path / "runs" / "paper" / "A-256"
    report = command.json("evaluate", run, "--method", "dense", "--scales", "32,40")
    assert (report["n"], report["method"], report["scales"]) == (12, "dense", [32, 40])
    assert 0 <= report["interval_top1"][0] <= report["top1_error"] <= report["interval_top1"][1] <= 100
    assert command.json("evaluate", run / "checkpoints" / "final.pt", "--scales", "32,40") == report


def test_resume_never_refuses_checkpoints(command: Command, settings: list[str]) -> None:
    assert command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*settings))[0] == 0
    status, _, err = command("train", "-c", CONFIGS / "vgg_A.yaml", "--resume", "never", *set_words(*settings))
    assert status == 2
    assert "--resume never, but" in err


def test_an_index_file_takes_the_place_of_the_folder(
    command: Command, settings: list[str], images: Path, tmp_path
) -> None:
    command("index", images, "-o", tmp_path / "x.idx")
    changes = [*settings, "data.root=null", f"data.index={tmp_path / 'x.idx'}"]
    assert command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*changes))[0] == 0


def without_class(images: Path, root: Path) -> Path:
    for file in images.glob("*/*/*.JPEG"):
        copy = root / file.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for file in (root / "train" / "n02").iterdir():
        file.unlink()
    return root


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["train.bach=8"], "unknown key train.bach; did you mean batch?"),
        (["data.root=nowhere"], "data.root=nowhere does not exist; give a folder with train/ and val/"),
        (["data.root={hollow}"], "n02 holds no images"),
        (["data.root=null"], "data.root is not set"),
        (["data.root=builtin:dogs"], "data.root=builtin:dogs is not built in; known: builtin:digits"),
        (["data.S=20"], "data.S=20 is smaller than model.crop=32: set it to 32 or more"),
        (["model.classes=7"], "model.classes=7, but {images} has 3; set model.classes=3"),
        (["model.net=F"], "F"),
        (["model.crop=33", "data.S=40"], "33"),
        (["run.device=cuda"], "run.device=cuda: no CUDA device is visible"),
        (["tracking.uri=./mlruns"], "is a folder, which MLflow no longer supports"),
    ],
)
def test_each_mistake_is_one_line_and_status_2(
    command: Command, settings: list[str], images: Path, tmp_path: Path, changes: list[str], expected: str
) -> None:
    if "cuda" in changes[0]:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    places = {"hollow": without_class(images, tmp_path / "hollow"), "images": images}
    filled = [change.format(**places) for change in changes]
    status, out, err = command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*settings, *filled))
    assert status == 2
    assert out == ""
    message = [line for line in err.splitlines() if line.startswith("vggrepro: ")]
    assert len(message) == 1
    assert expected.format(**places) in message[0]
    assert "Traceback" not in err


def test_a_world_that_does_not_divide_the_batch(
    command: Command, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(number))
    status, _, err = command("train", "-c", CONFIGS / "vgg_A.yaml", *set_words(*settings))
    assert status == 2
    assert "train.batch=8 cannot be split evenly over 3 ranks; start one of 1, 2, 4, 8 ranks" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["summary", "F"], "F"),
        (["evaluate", "nowhere.pt"], "checkpoint nowhere.pt does not exist"),
        (["evaluate", "x", "--scales", "a,b"], "--scales a,b: expected integers"),
        (["reproduce", "-c", "nowhere.yaml"], "nowhere.yaml does not exist; name a YAML file, or one of configs/"),
        (["train", "-c", str(CONFIGS)], "cannot be read (Is a directory); name another file"),
        (["reproduce", "-c", str(CONFIGS / "demo.yaml"), "--seeds", "1,x"], "--seeds 1,x: expected whole numbers"),
        (["train", "-c", str(CONFIGS / "demo.yaml")], "has a graph of stages (A, D); run it with `vggrepro reproduce`"),
    ],
)
def test_mistakes_on_the_command_line(command: Command, arguments: list[str], expected: str) -> None:
    status, _, err = command(*arguments)
    assert status == 2
    assert expected in err
    assert len([line for line in err.splitlines() if line.startswith("vggrepro: ")]) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "'trian'"),
        (["bench", "nothing"], "'nothing'; see `vggrepro bench --help`"),
        (["train"], "'--config' / '-c'; see `vggrepro train --help`"),
        (["train", "--config"], "'--config' requires an argument"),
        (["train", "--confg", "x.yaml"], "--confg"),
        (["train", "-c", "x.yaml", "--stop-after", "soon"], "'soon'"),
        (["train", "-c", "x.yaml", "--stop-after", "-1"], "-1"),
        (["evaluate"], "; see `vggrepro evaluate --help`"),
        (["evaluate", "x", "--method", "dens"], "'dens' is not one of 'centre', 'dense', 'multicrop', 'both'"),
        (["summary", "A", "B"], "(B)"),
    ],
)
def test_words_that_cannot_be_read_are_one_line(command: Command, arguments: list[str], expected: str) -> None:
    line = command.mistake(*arguments)
    assert line.startswith("vggrepro: ")
    assert expected in line


@pytest.mark.parametrize("arguments", [[], ["weights"]])
def test_a_command_without_its_verb_prints_its_verbs(command: Command, arguments: list[str]) -> None:
    status, out, err = command(*arguments)
    assert status == 2
    assert ("import" if arguments else "doctor") in out + err
    assert "vggrepro: " not in err


def test_a_folder_without_runs_is_reported_as_empty(command: Command, tmp_path: Path) -> None:
    status, _, err = command("tables", "--runs", tmp_path, "--out", tmp_path / "tables.csv")
    assert (status, err.splitlines()) == (
        0,
        [f"no runs in {tmp_path}: nothing is measured", f"written to {tmp_path / 'tables.csv'}"],
    )
