"""Every command of the documentation runs, on a small scale."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, TINY

from vggrepro import cli, pipeline
from vggrepro.config import load_graph

DOCS = REPOSITORY / "docs"
PAGES = ("tables", "compare", "nets_and_data", "recipes", "troubleshooting")
SMALL = ("train.schedule.kind=plateau", "train.schedule.drops_at=[]", "train.iterations=2")


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ vggrepro ") for line in lines), lines
    return [line.removeprefix("$ vggrepro ") for line in lines]


@pytest.fixture(scope="module")
def desk(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes and the demo's runs, small, as a reader would have them after `make demo`."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    settings = [*TINY, *SMALL, f"data.root={pictures}", f"run.root={folder / 'runs'}"]
    pipeline.reproduce(load_graph(REPOSITORY / "configs" / "demo.yaml", settings))
    return folder


@pytest.mark.parametrize("command", [pytest.param(text, id=text[:60]) for page in PAGES for text in commands(page)])
def test_the_command_runs(command: str, desk: Path, pictures: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(desk)
    words = shlex.split(command.replace("/path/to/pictures", str(pictures)))
    if words[0] in ("reproduce", "train"):
        words += [word for setting in (*TINY, *SMALL) for word in ("--set", setting)]
    if words[0] == "doctor":  # a SLURM of this machine must not decide how the test ends
        monkeypatch.setenv("PATH", str(desk))
    monkeypatch.setattr(sys, "argv", ["vggrepro", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code, capsys.readouterr().err


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_recipes_in_the_documentation_are_valid(desk: Path) -> None:
    from vggrepro.models.table1 import architecture

    text = (DOCS / "recipes.md").read_text() + (DOCS / "nets_and_data.md").read_text()
    recipe, net = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    file = desk / "recipe.yaml"
    file.write_text(recipe.replace("vgg_A.yaml", "configs/vgg_A.yaml"))
    assert list(load_graph(file).stages) == ["A-256", "D-256-bf16"]
    file.write_text(net)
    (stage,) = load_graph(file).stages.values()
    assert architecture(stage.model.net, layers=stage.model.layers).weight_layers == 4 + 3
