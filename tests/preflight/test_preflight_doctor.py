"""Each thing that can be wrong is found, with a remedy, and nothing is left behind."""

import http.server
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from programs import Command, write_script
from tiny import CONFIGS

from vggrepro.config.recipes import Graph, load_graph
from vggrepro.data.images.scan import scan_folder
from vggrepro.errors import HOME_PREFIX
from vggrepro.preflight import images as image_checks
from vggrepro.preflight import site, software
from vggrepro.preflight.check import Check
from vggrepro.preflight.doctor import examine, render

DEMO = CONFIGS / "demo.yaml"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM of this machine must not decide how the tests end."""
    monkeypatch.setenv("PATH", "/usr/bin/nothing")


def checks_of(root: Path, *changes: str, config: Path | None = DEMO) -> dict[str, Check]:
    graph: Graph | None = load_graph(config, [*changes, f"run.root={root}"]) if config else None
    return {check.name: check for check in examine(graph, root)}


def test_a_sound_machine(tmp_path: Path) -> None:
    found = checks_of(tmp_path / "runs")
    assert {found[name].status for name in ("Python", "torch", "torchvision", "runs folder", "disk", "ports")} == {"ok"}
    assert found["images"].found == "builtin:digits, generated on demand"
    assert not (tmp_path / "runs").exists(), "nothing may be left behind"
    assert all(check.remedy for check in found.values() if check.status != "ok")
    assert {check.name for check in examine(None, tmp_path)} >= {"Python", "disk", "SLURM"}


def test_old_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1+cu128", "torchvision": None, "mlflow": None}
    for module in (software, site):
        monkeypatch.setattr(module, "installed", versions.get)
    found = checks_of(tmp_path)
    assert found["torch"].status == "fail"
    assert found["torch"].remedy == "vggrepro needs torch 2.10 or newer: run `make CUDA=13 install`"
    assert found["torchvision"].status == found["MLflow"].status == "fail"
    assert found["DALI"].status == "warn"
    assert checks_of(tmp_path, "tracking.mlflow=false")["MLflow"].status == "ok"


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """The doctor's findings on a machine with this driver, and a torch built for this CUDA that sees so many GPUs."""

    def examined(
        driver: str, cuda: str | None, gpus: int = 0, capability: tuple[int, int] = (9, 0)
    ) -> dict[str, Check]:
        smi = f'test "$1" = --query-gpu=driver_version || exit 1\necho {driver}\necho {driver}'
        write_script(tmp_path / "driver" / "nvidia-smi", smi)
        monkeypatch.setenv("PATH", str(tmp_path / "driver"))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        kernels = ["sm_75", "sm_90", "compute_90"] if cuda and cuda.startswith("13") else ["sm_70", "sm_90"]
        for name, answer in {
            "is_available": gpus > 0,
            "device_count": gpus,
            "get_device_name": "NVIDIA Something",
            "get_device_capability": capability,
            "get_arch_list": kernels,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
        return checks_of(tmp_path / "runs", config=None)

    return examined


@pytest.fixture
def pip_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lies in an environment, and no Makefile is above it."""
    installed = tmp_path / "site-packages" / "vggrepro" / "preflight" / "software.py"
    monkeypatch.setattr(software, "__file__", str(installed))


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("570.86.15", "13.2", "needs driver 580.65.06 or newer: run `make CUDA=12 install`"),
        ("525.60.13", "13.2", "run `make CUDA=12 install`"),
        ("525.60.11", "13.2", "install driver 525.60.13 or newer"),
        ("470.256.02", "12.8", "install driver 525.60.13 or newer"),
        ("580.65.06", None, "built for the CPU: run `make CUDA=13 install`"),
        ("550.54.15", None, "built for the CPU: run `make CUDA=12 install`"),
        ("550.54.15", "11.8", "built for CUDA 11.8: run `make CUDA=12 install`"),
    ],
)
def test_a_torch_that_the_driver_is_too_old_for(gpu_machine, driver: str, cuda: str | None, words: str) -> None:
    check = gpu_machine(driver, cuda)["CUDA"]
    assert check.status == "fail"
    assert f"driver {driver}, but torch" in check.found
    assert words in check.remedy


@pytest.mark.parametrize(("driver", "cuda"), [("580.65.06", "13.2"), ("580.65.06", "12.8"), ("535.54.03", "12.8")])
def test_a_driver_that_is_new_enough(gpu_machine, monkeypatch: pytest.MonkeyPatch, driver: str, cuda: str) -> None:
    found = gpu_machine(driver, cuda, gpus=2)
    assert (found["driver"].status, found["driver"].found) == ("ok", driver)
    assert (found["CUDA"].status, found["CUDA"].found) == ("ok", f"{cuda}, 2 x NVIDIA Something")
    assert "GPUs" not in found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = gpu_machine(driver, cuda)["CUDA"]
    assert (hidden.status, "install" in hidden.remedy) == ("fail", False)
    assert "CUDA_VISIBLE_DEVICES is ''" in hidden.remedy


@pytest.mark.parametrize(
    ("cuda", "capability", "remedy"),
    [
        ("13.2", (7, 0), "run `make CUDA=12 install`"),
        ("13.2", (6, 1), "choose newer GPUs with CUDA_VISIBLE_DEVICES"),
        ("12.8", (7, 0), None),
        ("13.2", (7, 5), None),
    ],
)
def test_gpus_that_torch_has_no_kernels_for(gpu_machine, cuda: str, capability: tuple, remedy: str | None) -> None:
    check = gpu_machine("580.65.06", cuda, gpus=1, capability=capability).get("GPUs")
    assert (check and check.remedy) == remedy
    assert check is None or check.status == "fail"


@pytest.mark.usefixtures("pip_installed")
def test_outside_a_clone_pip_or_uv_is_named(gpu_machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "installed", {"torch": "2.15.0", "torchvision": "0.29.2"}.get)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None)
    found = gpu_machine("570.86.15", "13.2")
    assert found["CUDA"].remedy.endswith("run `uv pip install 'vggrepro[cuda12]'`")
    assert "`uv pip install 'vggrepro[cuda12]'`" in found["DALI"].remedy
    monkeypatch.setattr(software, "installed", {"nvidia-dali-cuda130": "2.4.0"}.get)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: name)
    remedy = gpu_machine("570.86.15", "13.2")["CUDA"].remedy
    assert remedy.endswith("run `pip uninstall nvidia-dali-cuda130 && pip install 'vggrepro[cuda12]'`")


def test_both_kinds_of_dali_spoil_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.15.0", "torchvision": "0.29.2", "nvidia-dali-cuda120": "2.4.0"}
    monkeypatch.setattr(software, "installed", versions.get)
    assert checks_of(tmp_path)["DALI"] == Check("DALI", "ok", "2.4.0 (nvidia-dali-cuda120)")
    versions["nvidia-dali-cuda130"] = "2.4.0"
    check = checks_of(tmp_path)["DALI"]
    assert (check.status, "new environment" in check.remedy) == ("fail", True)


def test_dali_without_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "installed", {"nvidia-dali-cuda130": "2.4.0"}.get)
    monkeypatch.setattr(software, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    check = checks_of(tmp_path)["DALI"]
    assert (check.status, "python -OO" in check.found, "leave -OO" in check.remedy) == ("warn", True, True)


def test_a_home_that_stands_in_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "home" not in checks_of(tmp_path, config=None)
    monkeypatch.setenv("HOME", str(tmp_path / f"{HOME_PREFIX}abc"))
    check = checks_of(tmp_path, config=None)["home"]
    assert (check.status, "set HOME" in check.remedy) == ("warn", True)
    assert f"{HOME_PREFIX}abc is used until the command ends" in check.found


def test_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    write_script(programs / "sbatch", "exit 0")
    write_script(programs / "sinfo", "echo gpu; echo cpu")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert checks_of(tmp_path, config=None)["SLURM"] == Check("SLURM", "ok", "partitions cpu, gpu")
    write_script(programs / "sinfo", "exit 1")
    monkeypatch.setattr(site, "_SLURM_CONF", ())
    monkeypatch.delenv("SLURM_CONF", raising=False)
    alone = checks_of(tmp_path, config=None)["SLURM"]
    assert (alone.status, alone.remedy) == ("warn", "no cluster is configured on this machine")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert checks_of(tmp_path, config=None)["SLURM"].status == "fail"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = checks_of(tmp_path / "file" / "runs", config=None)["runs folder"]
    assert (check.status, "choose another run.root" in check.remedy) == ("fail", True)


def test_a_slow_disk_and_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_SLOW_MIB_PER_S", 10**9)
    monkeypatch.setattr(site.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1e6})())
    found = checks_of(tmp_path, config=CONFIGS / "vgg_D.yaml")
    assert found["runs folder"].status == "warn"
    assert found["disk"].status == "fail"
    assert "8.8 needed" in found["disk"].found  # two stages of 0.55 GB x (3 x 2 + 1) and 3 x 0.2 GB, A's less


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("data.root=nowhere", "fail", "nowhere does not exist"),
        ("data.root=null", "fail", "data.root is not set"),
        ("data.index=nowhere.idx", "fail", "nowhere.idx"),
    ],
)
def test_images_that_are_not_there(tmp_path: Path, change: str, status: str, words: str) -> None:
    found = checks_of(tmp_path, change)
    check = found.get("images") or found["index"]
    assert check.status == status
    assert words in check.found


def test_an_index_of_another_data_set(tmp_path: Path, images: Path, command: Command) -> None:
    assert command("index", images, "--out", tmp_path / "x.idx")[0] == 0
    found = checks_of(tmp_path, f"data.index={tmp_path / 'x.idx'}")["index"]
    assert (found.status, found.remedy) == ("fail", "set model.classes=3, or name another data.index")
    assert checks_of(tmp_path, f"data.index={tmp_path / 'x.idx'}", "model.classes=3")["index"].status == "ok"


def test_reading_images(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(images, tmp_path / "copy")
    scan_folder(copy).save(tmp_path / "x.idx")
    settings = (f"data.index={tmp_path / 'x.idx'}", "model.classes=3")
    assert checks_of(tmp_path, *settings)["reading"].status == "ok"
    monkeypatch.setattr(image_checks, "_SLOW_IMAGES_PER_S", 10**9)
    slow = checks_of(tmp_path, *settings)["reading"]
    assert (slow.status, "faster file system" in slow.remedy) == ("warn", True)
    monkeypatch.setattr(image_checks, "_PROBE_IMAGES", 24)  # all of them
    for file in copy.glob("train/n01/n01_3.JPEG"):
        file.write_bytes(file.read_bytes()[:100])
    bad = checks_of(tmp_path, *settings)["reading"]
    assert (bad.status, "n01_3.JPEG" in bad.found) == ("fail", True)


@pytest.fixture
def server() -> Iterator[str]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_mlflow_servers(tmp_path: Path, server: str) -> None:
    assert checks_of(tmp_path, f"tracking.uri={server}")["MLflow"].status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
    check = checks_of(tmp_path, f"tracking.uri={dead}")["MLflow"]
    assert check.status == "warn"
    assert "secret" not in check.found + check.remedy
    assert checks_of(tmp_path, "tracking.uri=./mlruns")["MLflow"].status == "fail"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    checks = command.json("doctor")["checks"]
    assert {check["status"] for check in checks} <= {"ok", "warn"}
    status, text, _ = command("doctor", "--config", DEMO, "--set", "data.root=nowhere")
    assert status == 1
    assert "fail  images" in text
    assert "-> correct data.root" in text


def test_remedies_stand_under_their_lines() -> None:
    assert render([Check("a", "ok", "1"), Check("bb", "fail", "2", "do it")]).splitlines() == [
        "ok    a   1",
        "fail  bb  2",
        "          -> do it",
    ]


def test_boxes_that_are_not_there(tmp_path: Path, images: Path) -> None:
    """Only a stage that predicts boxes asks for them."""
    digits = CONFIGS / "reduced" / "localisation_digits.yaml"
    assert checks_of(tmp_path, config=digits)["boxes"].found == "of builtin:digits, generated on demand"
    copy = shutil.copytree(images, tmp_path / "copy")
    found = checks_of(tmp_path, f"data.root={copy}", config=digits)["boxes"]
    assert (found.status, found.found) == ("fail", f"no annotations beside {copy}")
    (copy / "boxes.tsv").touch()
    assert checks_of(tmp_path, f"data.root={copy}", config=digits)["boxes"].status == "ok"
    found = checks_of(tmp_path, "data.boxes=nowhere.npz", config=digits)["boxes"]
    assert (found.status, found.remedy) == ("fail", "make it with `vggrepro boxes`")
    assert "boxes" not in checks_of(tmp_path, f"data.root={copy}")


def data_set_check(root: Path, name: str, path: Path, *changes: str) -> Check:
    return checks_of(root, f"transfer.sets.{name}={path}", *changes)[f"data set {name}"]


def test_folders_of_classes_that_features_are_tested_on(tmp_path: Path) -> None:
    """By their files' names: these are empty."""
    folder = tmp_path / "birds"
    for name, count in {"finch": 6, "robin": 4}.items():
        (folder / name).mkdir(parents=True)
        for image in range(count):
            (folder / name / f"{image}.jpg").touch()
    few = "transfer.train_per_class=3"
    sound = data_set_check(tmp_path, "birds", folder, few)
    assert (sound.status, sound.found) == ("ok", f"{folder}: 10 images, 2 classes")
    missing = data_set_check(tmp_path, "birds", tmp_path / "nowhere")
    assert (missing.status, missing.found) == ("fail", str(tmp_path / "nowhere"))
    assert "nowhere does not exist; give a folder of classes" in missing.remedy
    short = data_set_check(tmp_path, "birds", folder, "transfer.train_per_class=4")
    assert (short.status, short.remedy) == (
        "fail",
        f"class robin of {folder} has 4 usable images, but 4 for training and one for testing need 5; add images, or "
        f"lower transfer.train_per_class",
    )
    shutil.rmtree(folder / "robin")
    assert "has only one class, finch; give a folder" in data_set_check(tmp_path, "birds", folder, few).remedy
    assert not [name for name in checks_of(tmp_path) if name.startswith("data set")]


def test_voc_that_features_are_tested_on(tmp_path: Path) -> None:
    year = tmp_path / "VOCdevkit" / "VOC2012"
    (year / "JPEGImages").mkdir(parents=True)
    sets = {
        "Main": {"train": "2008_000001 1", "val": "2008_000002 -1"},
        "Action": {"train": "2008_000001 1 1\n2008_000001 2 -1", "val": "2008_000002 1 1"},
    }
    for kind, lines in sets.items():
        (year / "ImageSets" / kind).mkdir(parents=True)
        for part, text in lines.items():
            (year / "ImageSets" / kind / f"cat_{part}.txt").write_text(text)
    lacking = data_set_check(tmp_path, "voc2012", year.parent)
    assert lacking.status == "fail"
    assert "image 2008_000001 is not in JPEGImages (2 of 2 images are missing)" in lacking.remedy
    for number in (1, 2):
        (year / "JPEGImages" / f"2008_00000{number}.jpg").touch()
    assert data_set_check(tmp_path, "voc2012", year.parent).found == f"{year.parent}: 2 images, 1 classes"
    action = data_set_check(tmp_path, "voc2012_action", year.parent)
    assert (action.status, action.found) == ("ok", f"{year.parent}: 2 images, 3 persons, 1 classes")
    other = data_set_check(tmp_path, "voc2007", year.parent)
    assert (other.status, "holds VOC2012, not VOC2007" in other.remedy) == ("fail", True)


def test_a_data_set_of_many_stages_is_looked_at_once_and_not_for_parents(tmp_path: Path) -> None:
    graph = load_graph(
        CONFIGS / "transfer" / "reproduce.yaml",
        ["transfer.sets={caltech101: nowhere, caltech256: nowhere}", f"run.root={tmp_path}"],
    )
    names = [check.name for check in image_checks.data_sets(graph)]
    assert names == ["data set caltech101", "data set caltech256"]
