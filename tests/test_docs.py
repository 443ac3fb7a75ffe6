"""Commands in the documentation: all verbs and options exist, and every complete vggrepro command is run.

Commands that train stop before the work of each stage; one command of each kind (TRAINED_FULLY) trains to the end.
tests/launch runs `launch/submit.py`, sbatch, srun and slurm/devcluster, and tests/training runs torchrun. The verbs of
TESTED_ELSEWHERE need weight files, boxes, a browser or time; the tests named there run them.
"""

import io
import re
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from programs import Command
from tiny import REPOSITORY, TINY, TWO_STEPS, set_words, tiny_graph

from launch import submit
from vggrepro.cli import main as cli
from vggrepro.config.recipes import load_graph
from vggrepro.config.settings import Config
from vggrepro.models.table1 import architecture
from vggrepro.paper import ilsvrc_classes
from vggrepro.pipeline import graph, stage
from vggrepro.pipeline.graph import reproduce
from vggrepro.pipeline.session import Session

DOCS = REPOSITORY / "docs"
PAGES = {page.stem: page for page in (REPOSITORY / "README.md", REPOSITORY / "REPRODUCTION.md", *DOCS.glob("*.md"))}
TESTED_ELSEWHERE = {
    "publish": "tests/pipeline/test_pipeline_publish.py",
    "boxes": "tests/data/test_data_boxes.py",
    "weights": "tests/evaluation/test_evaluation_commands.py",
    "verify-paper": "tests/evaluation/test_evaluation_commands.py",
    "show": "tests/show",
    "bench": "tests/bench, tests/data/test_data_bench_loader.py, tests/training/test_training_bench.py",
}
# Replacements of the reader's images and runs, and scales that fit them.
READERS_PATHS = {
    r"/path/to/(images|folder|imagenet|tiny-imagenet)|/data/imagenet|(?<=data\.root=)\.\.\.": "IMAGES",
    r"/data/tables": "tables",
    r"\b(RUN|runs/vgg/D-384|runs/paper/D-jitter|runs/paper/B-5x5)(?![-\w])": "runs/demo/D",
    r"\bruns/(vgg/E-384|paper/E-jitter)(?![-\w])": "runs/demo/A",
    r"\bruns/paper/D-256-boxes\b": "runs/demo/D-boxes-64",
    r"\bruns/paper/D-384-boxes\b": "runs/demo/D-boxes",
    r"\bruns/(paper|vgg)\b": "runs/demo",
    r"\b256,384,512\b": "37,40",
}
TRAINED_FULLY = ("run.experiment=mine", "configs/vgg_A.yaml --set data.root=/path/to/images")
"""Parts of the commands that train to the end; later commands make tables of the first one's runs."""
RECIPE = "reduced/localisation_digits.yaml"
"""Recipe of the runs in the reader's working directory."""
PROGRAM = r"(?:vggrepro|torchrun [-\w. ]*-m vggrepro|python launch/submit\.py)\b"


def blocks(page: str) -> list[str]:
    """Commands in the page's code, each on one line, without comments and without the list of verbs."""
    text = re.sub(r"\n## Commands\n.*?\n## ", "\n## ", PAGES[page].read_text().replace("\\\n", " "), flags=re.DOTALL)
    fences = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    code = [block for language, block in fences.findall(text) if language in ("", "console")]
    code += re.findall(r"^ {4}.*", fences.sub("", text), re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in code for line in block.splitlines()]
    return [" ".join(line.split(" #")[0].split()) for line in lines if re.match(PROGRAM, line)]


def mentions(page: str) -> list[str]:
    """Commands in running text, often incomplete."""
    return re.findall(rf"`({PROGRAM}[^`]*)`", " ".join(PAGES[page].read_text().split()))


def verbs_of(program: Any, words: list[str]) -> tuple[Any, list[str]]:
    """Splits words into the command that they name and its arguments."""
    while hasattr(program, "commands") and words and words[0] in program.commands:
        program, words = program.commands[words[0]], words[1:]
    return program, words


def parse_command(command: str) -> tuple[Any, list[str]]:
    """Parses a line into the program's command and its arguments."""
    after = re.sub(rf"^{PROGRAM}\s*", "", command)
    app = submit.app if command.startswith("python") else cli.app
    return verbs_of(typer.main.get_command(app), shlex.split(after.replace("'", "")))


LINES = [(page, line) for page in sorted(PAGES) for line in dict.fromkeys([*blocks(page), *mentions(page)])]
RUN = [
    line for line in dict.fromkeys(line for page in sorted(PAGES) for line in blocks(page)) if "submit.py" not in line
]


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda text: text[:50])
def test_verbs_and_options_exist(page: str, line: str) -> None:
    command, words = parse_command(line)
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    options = {word.strip("[]").split("=")[0] for word in words if word.strip("[]").startswith("-")}
    assert options <= known, f"{page}.md: {line}"
    if hasattr(command, "commands"):
        named = {word for word in "".join(words[:1]).split("|") if word.isalpha()}  # as in `bench loader|step`
        assert named <= set(command.commands), f"{page}.md: {line}"


def test_the_page_of_commands_lists_all_verbs() -> None:
    section = PAGES["commands"].read_text().split("## Commands")[1].split("\n##")[0]
    listed = re.findall(r"^ {4}vggrepro ([a-z-]+)", section, re.MULTILINE)
    assert sorted(listed) == sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_all_commands_are_found() -> None:
    """A command in a form that `blocks` does not find would be untested."""
    for page, file in PAGES.items():
        for line in file.read_text().splitlines():
            if re.match(rf"(\$ | {{4}}){PROGRAM}", line) and "## Commands" not in line:
                start = " ".join(line.removeprefix("$ ").rstrip("\\ ").split(" #")[0].split())[:40]
                listed = r" {4}vggrepro [a-z-]+( [^-]|  | --(config|index) FILE)"
                in_list = page == "commands" and re.match(listed, line)
                assert in_list or any(command.startswith(start) for command in blocks(page)), f"{page}.md: {line}"
    assert len(RUN) > 35


@pytest.fixture(scope="module")
def boxed_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images with a box for each."""
    root = tmp_path_factory.mktemp("boxed") / "images"
    shutil.copytree(images, root)
    rows = [f"{file.relative_to(root)}\t5\t5\t30\t35" for file in sorted(root.rglob("*.JPEG"))]
    (root / "boxes.tsv").write_text("\n".join(["file\txmin\tymin\txmax\tymax", *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def workdir(boxed_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's working directory: recipes, small runs of the demo and of boxes, data sets."""
    folder = tmp_path_factory.mktemp("workdir")
    for name in ("configs", "benchmarks", "REPRODUCTION.md", "REPRODUCTION.json"):
        source = REPOSITORY / name
        (folder / name).symlink_to(source) if source.is_dir() else (folder / name).write_bytes(source.read_bytes())
    reproduce(tiny_graph(RECIPE, boxed_images, folder / "runs", *TWO_STEPS))
    part = folder / "part" / "val" / ilsvrc_classes()[0]  # some validation images of ImageNet
    part.mkdir(parents=True)
    photographs = [file for file in sorted((boxed_images / "val").rglob("*")) if file.is_file()]
    (part / photographs[0].name).symlink_to(photographs[0])
    tables = folder / "imagenet-1k" / "data"  # as a hub has it
    tables.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{"image": {"bytes": file.read_bytes(), "path": file.name}, "label": 0} for file in photographs]
        pq.write_table(pa.Table.from_pylist(rows), tables / f"{split}-00000-of-00001.parquet")
    for name in ("accordion", "airplanes"):  # Caltech's protocol needs 31 images of a class
        (folder / "101_ObjectCategories" / name).mkdir(parents=True)
        for number in range(33):
            photograph = photographs[number % len(photographs)]
            (folder / "101_ObjectCategories" / name / f"image_{number:04}.jpg").symlink_to(photograph)
    return folder


@pytest.fixture
def reached_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages reached; their images are opened, and training and testing are skipped."""
    reached: list[str] = []

    def train_stage(config: Config, parent: Config | None, session: Session, **options: object) -> None:
        assert len(session.index(config).split("train"))
        assert config.localisation is None or len(session.boxes(config).split("train").has)  # type: ignore[union-attr]
        reached.append(config.name)

    for module in (graph, stage):
        monkeypatch.setattr(module, "train_stage", train_stage)
    monkeypatch.setattr(graph, "evaluate_stage", lambda *_: None)
    return reached


@pytest.mark.parametrize("line", [pytest.param(line, id=line[:60]) for line in RUN])
def test_the_command_runs(
    line: str,
    workdir: Path,
    boxed_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(workdir)
    trains = bool(re.search(r"\b(reproduce|train) ", line))
    reached = (
        request.getfixturevalue("reached_stages")
        if trains and not any(words in line for words in TRAINED_FULLY)
        else None
    )
    for pattern, path in READERS_PATHS.items():
        line = re.sub(pattern, path.replace("IMAGES", str(boxed_images)), line)
    words = shlex.split(re.sub(rf"^{PROGRAM}\s*", "", line))
    if words[0] in TESTED_ELSEWHERE:
        pytest.skip(f"run by {TESTED_ELSEWHERE[words[0]]}")
    if re.search(r"voc20|caltech256|runs/authors", line):
        pytest.skip("run by tests/pipeline/test_pipeline_transfer.py")
    if words[0] in ("reproduce", "train"):
        settings = [*TINY, *TWO_STEPS]
        if "run.experiment" not in line and RECIPE not in line:  # later lines of the page read the runs of these
            settings.append("run.root=trained")
        if "data." not in line:
            settings.append(f"data.root={boxed_images}")
        words += set_words(*settings)
    if words[0] == "doctor":  # hides a SLURM of this machine
        monkeypatch.setenv("PATH", str(workdir))
    status, _, err = command(*words)
    assert status == 0, err
    if reached is not None:
        recipe = words[words.index("--config") + 1]
        seeds = 3 if "--seeds" in words else 1
        expected = list(load_graph(Path(recipe)).stages)
        assert len(reached) == seeds * len(expected if words[0] == "reproduce" else expected[-1:]), reached
        assert set(reached) >= set(expected if words[0] == "reproduce" else expected[-1:])


def test_the_snippet_that_reads_features_runs(workdir: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(workdir)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGES["transfer"].read_text(), re.DOTALL)
    words = ("features", "runs/demo/D", "--data", "caltech101=101_ObjectCategories", "--out", "features.npz")
    status, _, err = command(*words)
    assert status == 0, err
    with redirect_stdout(io.StringIO()) as printed:
        exec(snippet)
    assert 0 <= float(printed.getvalue()) <= 1


@pytest.mark.parametrize("page", PAGES)
def test_link_targets_exist(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", PAGES[page].read_text()):
        other = PAGES[page].parent / target if target else PAGES[page]
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", other.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


def test_recipes_in_the_documentation_are_valid(workdir: Path) -> None:
    text = (DOCS / "recipes.md").read_text() + (DOCS / "nets_and_data.md").read_text()
    recipe, reader, net = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    file = workdir / "recipe.yaml"
    file.write_text(recipe)
    assert list(load_graph(file).stages) == ["A-256", "D-256-bf16"]
    file.write_text(reader)
    stages = load_graph(file).stages
    assert {name: (stage.model.classes, stage.train.iterations) for name, stage in stages.items()} == {
        "A": (3, 4000),
        "D": (3, 4000),
    }
    file.write_text(net)
    (stage,) = load_graph(file).stages.values()
    assert architecture(stage.model.net, layers=stage.model.layers).weight_layers == 4 + 3


@pytest.mark.parametrize("page", ["start_student", "start_researcher", "start_reviewer"])
def test_a_first_page_is_a_screen_long(page: str) -> None:
    assert len(PAGES[page].read_text().splitlines()) <= 48


def test_the_image_in_the_readme_is_small() -> None:
    assert (DOCS / "img" / "demo_tables.png").stat().st_size < 200_000
