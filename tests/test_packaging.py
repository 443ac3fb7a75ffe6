"""Wheel and sdist, built and checked, and commands run from the wheel."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from programs import run_program
from tiny import REPOSITORY, TINY, set_words

import vggrepro
from vggrepro.preflight import software

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCKS = {"cuda13": REPOSITORY / "requirements.lock", "cuda12": REPOSITORY / "requirements-cuda12.lock"}
RECIPES = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "configs").rglob("*.yaml")}


def build(source: Path, out: Path, target: str) -> Path:
    run_program("-m", "hatchling", "build", "--target", target, "--directory", out, cwd=source, check=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as in an environment."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return set(opened.namelist())
    with tarfile.open(archive) as opened:
        return {name.split("/", 1)[1] for name in opened.getnames()}


def code_of_the_clone() -> set[str]:
    listed = (file for file in (REPOSITORY / "vggrepro").rglob("*") if file.is_file())
    return {str(file.relative_to(REPOSITORY)) for file in listed if "__pycache__" not in file.parts}


def test_the_wheel_holds_code_facts_and_recipes(wheel: Path) -> None:
    files = files_of(wheel)
    assert {"vggrepro/paper/facts.yaml", "vggrepro/reporting/tables.schema.json", "vggrepro/py.typed"} <= files
    assert "vggrepro/reporting/templates/report.html.j2" in files
    info = f"vggrepro-{vggrepro.__version__}.dist-info/"
    packaged = {name for name in files if not name.startswith(info)}
    assert packaged == code_of_the_clone() | {f"vggrepro/{name}" for name in RECIPES}


def test_the_sdist_builds_the_same_wheel_and_is_clean(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    files = files_of(sdist)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", *RECIPES} <= files
    assert not {name.split("/")[0] for name in files} & {".git", ".venv", ".ci", "runs", "shared", "dist"}
    assert sdist.stat().st_size < 5e6
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert files_of(build(source, tmp_path / "out", "wheel")) == files_of(wheel)


def run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the unpacked wheel in another folder."""
    return run_program("-m", "vggrepro", *arguments, cwd=cwd, PYTHONPATH=str(site), PYTHONSAFEPATH="1")


def test_the_command_runs_out_of_the_wheel(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "plan", "--config", "vgg_D")
    assert (done.returncode, "D-256  A-256" in done.stdout) == (0, True), done.stderr
    assert run(site, tmp_path, "plan", "--config", "reduced/imagenette_gpu").returncode == 0
    assert "138,357,544" in run(site, tmp_path, "summary", "D").stdout
    done = run(site, tmp_path, "train", "--config", "vgg_DD")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean vgg_D" in done.stderr
    assert not any(tmp_path.iterdir())


def test_training_runs_out_of_the_wheel(site: Path, images: Path, tmp_path: Path) -> None:
    words = set_words(*TINY, f"data.root={images}", "train.iterations=1")
    done = run(site, tmp_path, "train", "--config", "vgg_A", *words)
    assert done.returncode == 0, done.stderr
    stage = tmp_path / "runs" / "paper" / "A-256"
    assert (stage / "checkpoints" / "final.pt").exists()
    assert json.loads((stage / "environment.json").read_text())["git_commit"] is None


def test_the_shell_completes_verbs() -> None:
    code = "import sys; sys.argv = ['vggrepro']; import vggrepro.cli.main as c; c.main()"
    shell = {"COMP_WORDS": "vggrepro ver", "COMP_CWORD": "1"}
    for stage, expected in {"source_bash": "_VGGREPRO_COMPLETE=complete_bash", "complete_bash": "verify-paper"}.items():
        assert expected in run_program("-c", code, **shell, _VGGREPRO_COMPLETE=stage).stdout


def pinned(lock: Path) -> dict[str, set[Version]]:
    """Versions by package; several if they differ between versions of Python."""
    versions: dict[str, set[Version]] = {}
    for name, version in re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ ;]+)", lock.read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(Version(version))
    return versions


@pytest.mark.parametrize("kind", LOCKS)
def test_the_lock_holds_what_pyproject_asks_for(kind: str) -> None:
    """Fails after an edit of pyproject.toml without `make lock`."""
    found = pinned(LOCKS[kind])
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"], *extras["onnx"], *extras[kind]]:
        needed = Requirement(text)
        name = needed.name.lower().replace("_", "-")
        assert name in found, f"{text}: run `make lock`"
        assert all(version in needed.specifier for version in found[name]), f"{text}: run `make lock`"
    dali = {name for name in found if name.startswith("nvidia-dali")}
    assert dali == {f"nvidia-dali-{kind}0"}, "both kinds in one environment spoil each other"
    for other in {"cuda13": "-cu12", "cuda12": "-cu13"}[kind], "cu11":
        assert not [name for name in found if name.endswith(other)]


def test_the_supported_pythons_are_those_of_the_locks() -> None:
    supported = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python ::" in line}
    assert PROJECT["requires-python"] == f">={min(supported, key=Version)}"
    assert "--python-version 3.11 " in (REPOSITORY / "Makefile").read_text()
    page = (REPOSITORY / "docs" / "install.md").read_text()
    assert f"Python {min(supported, key=Version)} to {max(supported, key=Version)}" in page


def test_the_page_names_the_drivers_that_doctor_knows() -> None:
    rows = re.findall(r"^\| `CUDA=(\d+)`.*", page := (REPOSITORY / "docs" / "install.md").read_text(), re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(software._BUILDS)
    for cuda, build in software._BUILDS.items():
        row = re.search(rf"^\| `CUDA={cuda}`.*", page, re.MULTILINE)
        assert row
        capability = "{}.{}".format(*build.capability)
        assert f"| {build.driver} or newer | compute capability {capability} or newer" in row[0]
        assert f"`{LOCKS[f'cuda{cuda}'].name}`" in row[0]
        (torch,) = pinned(LOCKS[f"cuda{cuda}"])["torch"]
        assert f"| {torch.major}.{torch.minor}, CUDA {cuda}." in row[0]


def makefile(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `make --dry-run` in an environment that sets CUDA, as modules of clusters do."""
    command = ["make", "--dry-run", *arguments]
    environment = os.environ | {"CUDA": "/usr/local/cuda"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a clone that determine its environment."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for file in (REPOSITORY / "Makefile", REPOSITORY / "pyproject.toml", *LOCKS.values()):
        shutil.copy(file, folder)
    return folder


def test_make_installs_one_kind_of_cuda(clone: Path) -> None:
    assert "-r requirements.lock" in makefile(clone, "install").stdout
    first = makefile(clone, "CUDA=12", "install").stdout
    assert ("-r requirements-cuda12.lock" in first, "--clear" in first) == (True, False)
    assert "CUDA=11: vggrepro is installed for CUDA 12 or 13" in makefile(clone, "CUDA=11", "install").stderr


def test_make_keeps_the_kind_that_is_there_and_clears_it_for_another(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".cuda12").touch()
    interrupted = makefile(clone, "demo").stdout
    assert ("-r requirements-cuda12.lock" in interrupted, "-m venv" in interrupted) == (True, False)
    (clone / ".venv" / ".installed-cuda12").touch()
    assert "pip" not in makefile(clone, "demo").stdout
    other = makefile(clone, "CUDA=13", "demo").stdout
    assert ("-m venv --clear" in other, "-r requirements.lock" in other) == (True, True)


def test_the_readmes_image_is_made_of_the_demos_report(clone: Path) -> None:
    first = makefile(clone, "readme-image").stdout
    assert "reproduce --config configs/demo.yaml" in first
    (clone / "runs" / "demo").mkdir(parents=True)
    (clone / "runs" / "demo" / "tables.html").touch()
    again = makefile(clone, "readme-image").stdout
    assert "configs/demo.yaml" not in again
    assert "--screenshot=docs/img/demo_tables.png" in again
    assert f"file://{clone}/runs/demo/tables.html" in again


def test_tests_and_demo_keep_what_python_has_compiled(clone: Path) -> None:
    """Without .pyc files each process compiles torch again, which takes longer than most tests."""
    (clone / "Makefile").write_text((clone / "Makefile").read_text() + "\nsays:\n\t@env\n")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["make", "says"], cwd=clone, env=environment, capture_output=True, text=True, check=True)
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def recipe_of_image(text: str) -> dict[str, object]:
    """Sources of a Dockerfile or an Apptainer definition."""
    joined = text.replace("\\\n", " ")
    copied = re.findall(r"^COPY (.*) \S+$", joined, re.MULTILINE)
    if "%files" in text:
        copied = [
            line.split()[0]
            for line in text.split("%files")[1].split("%post", maxsplit=1)[0].splitlines()
            if line.strip()
        ]
    (base,) = re.findall(r"^(?:FROM|From:) (\S+)$", text, re.MULTILINE)
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends +(.*?)(?: *&&|$)", joined, re.MULTILINE)
    (default,) = re.findall(r"^(?:ARG| {4})(?: |)CUDA=(\d+)$", text, re.MULTILINE)
    (target,) = re.findall(r"make CUDA=(?:\$CUDA|\{\{ CUDA \}\}) (\S+)", text)
    path = re.search(r"PATH=(\S+?):\$PATH", text)
    assert path
    return {
        "files": {name for line in copied for name in line.split()} - {"vggrepro/__init__.py"},
        "base": base,
        "packages": sorted(packages.split()),
        "default": default,
        "target": target,
        "programs": path[1],
    }


def test_both_images_are_made_alike() -> None:
    docker, apptainer = (
        recipe_of_image((REPOSITORY / "containers" / name).read_text()) for name in ("Dockerfile", "vggrepro.def")
    )
    assert docker == apptainer
    assert docker["base"] == "debian:trixie-slim"  # whose Python is 3.13
    assert "Programming Language :: Python :: 3.13" in PROJECT["classifiers"]
    assert docker["programs"] == "/opt/vggrepro/.venv/bin"


def test_the_images_files_are_enough_to_install(tmp_path: Path, wheel: Path) -> None:
    image = recipe_of_image((REPOSITORY / "containers" / "Dockerfile").read_text())
    folder = tmp_path / "opt"
    folder.mkdir()
    for name in image["files"]:  # type: ignore[attr-defined]
        source = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    default = makefile(folder, str(image["target"])).stdout
    assert default == makefile(folder, f"CUDA={image['default']}", str(image["target"])).stdout
    for cuda in software._BUILDS:
        planned = makefile(folder, f"CUDA={cuda}", str(image["target"]))
        (lock,) = re.findall(r"-r (\S+)", planned.stdout)
        assert (planned.returncode, (folder / lock).is_file()) == (0, True)
    assert files_of(build(folder, tmp_path / "out", "wheel")) == files_of(wheel)


def test_the_citation_is_valid_and_of_this_version() -> None:
    tree = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= tree.keys(), "CFF requires these"
    assert (tree["cff-version"], tree["type"], tree["license"]) == ("1.2.0", "software", PROJECT["license"])
    assert tree["version"] == vggrepro.__version__
    (paper,) = tree["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert "arXiv 1409.1556" in PROJECT["description"]
    assert [identifier["value"] for identifier in paper["identifiers"]] == ["arXiv:1409.1556"]
    assert all({"name", "family-names"} & author.keys() for author in tree["authors"] + paper["authors"])


def test_the_page_on_installing_names_the_wheel_of_this_version() -> None:
    named = re.findall(r"vggrepro-([\d.]+)-py3-none-any\.whl", (REPOSITORY / "docs" / "install.md").read_text())
    assert set(named) == {vggrepro.__version__}


def test_the_changelog_knows_this_version() -> None:
    heads = re.findall(
        r"^## \[(.*?)\](?: - \d{4}-\d\d-\d\d)?$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert heads[0] == "Unreleased"
    assert heads[1:] == sorted(heads[1:], key=Version, reverse=True)
    assert vggrepro.__version__ in heads
