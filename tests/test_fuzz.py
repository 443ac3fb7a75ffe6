"""3,000 random edits of settings, recipes and command lines end well or with an error in one line, never in a
traceback. Seeds are fixed. Work that would take time is stopped at its start.
"""

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from caffe_files import caffe_model
from nets import tiny_vgg
from PIL import Image
from tiny import REPOSITORY

from launch import slurm, submit
from vggrepro.bench import comm, dense, features, loader, step
from vggrepro.cli import main as cli
from vggrepro.config.parsing import flatten, override
from vggrepro.config.recipes import load_graph
from vggrepro.config.settings import Config, Model
from vggrepro.data.images import scan
from vggrepro.data.images.verify import Finding
from vggrepro.errors import Interrupted, UserError, run_app
from vggrepro.models.table1 import architecture_of
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.weights import import_weights
from vggrepro.preflight import site
from vggrepro.storage.ledger import ledger

WRONG = [
    *("", "0", "-1", "1", "3.5", "1e308", "-1e308", "1e400", ".nan", ".inf", "-.inf", "nan", "1" * 400, "9" * 5000),
    *("null", "~", "true", "no", "0x1f", "1_000", "2020-01-01", "12:30:45", "1:30"),
    *("x" * 5000, "é", "\ud800", "\ufeffa"),
    *("[256", "[[", "]", "{a: b", "{a: b}", "{}", "[]", "a: b: c", "a: b", "- a\n- b", "? a", "? [a]", "{[1]: 2}"),
    *("'", '"', "|", ">", "|1 [*", "&a", "*a", "&a [*a]", "@", "`", "%HOME%", "%YAML 1.1", "#", "---", "--- a\n--- b"),
    *("!!python/object:os.system x", "!x", "!!binary x", "!!timestamp 2020", "!!int x", "!!float x", "!!set {a}"),
    *("{<<: 1}", "{<<: *a}", "{a: 1, a: 2}", "=", "<<", "\0", "\x1b[2J", "\u2028", "a\nb", "a\tb", "\t", '"a\\0b"'),
    *("[1,2,3]", "[512,256]", "[256,256]", "[256,512]", "[.nan,1,2]", "[conv3-64]", "[[conv3-64]]", "[[conv0-64]]"),
    *("[[conv3-64], [LRN]]", "[[conv3-99999999999999]]", "[[]]", "A", "D", "bf16", "factor", "cuda", "builtin:x"),
    *("/dev/null", "..", ".", "~", "a/../b", "http://", "sqlite://", "file:", "x" * 300, "[" * 300),
]
"""Values that people and shells produce, and what YAML makes of some."""
CHARACTERS = "[]{}:,&*!|>'\"%@`#-? \t\n\0ax0.1e9_=/"
SHOWN_BY_CLICK = {0, 1, 2, 75}


def wrong(draw: random.Random) -> str:
    if draw.random() < 0.75:
        return draw.choice(WRONG)
    return "".join(draw.choice(CHARACTERS) for _ in range(draw.randrange(1, 9)))


def typed(draw: random.Random) -> str:
    """Draws a wrong value that can be an argument of a program: without null bytes and surrogates."""
    return wrong(draw).replace("\0", "").encode(errors="ignore").decode()


def assert_single_line(error: UserError) -> None:
    assert str(error).isprintable(), repr(str(error))
    assert len(str(error)) > 20, "a line states the problem and the remedy"


def test_random_settings() -> None:
    draw, plain = random.Random(0), Config(model=Model(net="A"))
    keys = sorted(flatten(plain.model_dump(mode="json")))
    refused = 0
    for _ in range(1800):
        key = draw.choice(keys)
        kind = draw.random()
        if kind < 0.1:
            key = key.rpartition(".")[0]
        elif kind < 0.2:
            key += "." + draw.choice(["x", "0", "", "mode", "a.b.c"])
        elif kind < 0.3:
            key = "".join(draw.choice(key + ".=[ \0\n") for _ in range(6))
        try:
            config = override(plain, [f"{key}={wrong(draw)}"], Path("recipe.yaml"))
            # what commands do with a configuration before they start work
            architecture_of(config)
            ledger(config, None)
            assert override(config, [], Path("again")).trajectory() == config.trajectory()
            assert config.directory.name
            assert config.to_yaml()
        except UserError as error:
            assert_single_line(error)
            refused += 1
    assert 900 < refused < 1750, "both ends are reached"


def edited(draw: random.Random, text: str) -> str:
    """Edits a recipe at random."""
    lines = text.splitlines()
    row, session = draw.randrange(len(lines)), draw.randrange(len(text))
    match draw.randrange(6):
        case 0:
            return text[:session] + wrong(draw)[:100] + text[session:]
        case 1:
            return text[:session] + text[session + draw.randrange(1, 6) :]
        case 2:
            lines.insert(row, draw.choice(lines))
        case 3:
            lines[row] = draw.choice(["  ", "", " ", "\t", "- "]) + lines[row].lstrip()
        case 4:
            key = draw.choice(["extends", "stages", "model", "data", "train", "run", "evaluation", "cluster"])
            lines = [line for line in lines if not line.startswith(f"{key}:")]
            lines.append(f"{key}: {draw.choice([*WRONG, *STRUCTURES])}")
        case 5:
            lines[row] = f"{lines[row].partition(':')[0]}: {draw.choice([*WRONG, *STRUCTURES])}"
    return "\n".join(lines)


STRUCTURES = [
    *("edited.yaml", "[edited.yaml]", "vgg_A.yaml", "[vgg_A.yaml, vgg_D.yaml]", "demo.yaml", "../configs", "{A: 5}"),
    *("{A: [1]}", "{A: {run: 5}}", "{A: null}", "{1: {model: {net: A}}}", "{A: {run: {parent: A}}}", "[[a]]", "[null]"),
    *("{A: {model: {net: A}}, B: {model: {net: B}, run: {parent: [A]}}}", "{parent: edited.yaml}", "[{a: b}]"),
]


def test_random_recipes(tmp_path: Path) -> None:
    draw = random.Random(1)
    folder = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", folder)
    recipes = [(folder / name).read_text() for name in ("vgg_B.yaml", "demo.yaml", "ablation_B-5x5.yaml")]
    file, refused = folder / "edited.yaml", 0
    for _ in range(400):
        text = edited(draw, draw.choice(recipes))
        file.write_bytes(text.encode(errors="surrogatepass"))
        try:
            load_graph(file)
        except UserError as error:
            assert_single_line(error)
            refused += 1
    assert 150 < refused < 380, "both ends are reached"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory with inputs of the commands: images, an index, boxes, weights, a run, recipes."""
    torch.set_num_threads(1)
    workspace = tmp_path_factory.mktemp("far") / "from" / "home"  # so that .. leads nowhere else
    (workspace / "images" / "val" / "n00000000").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(workspace / "images" / "val" / "n00000000" / "1.png")
    scan.scan_folder(workspace / "images").save(workspace / "val.idx")
    (workspace / "boxes.tsv").write_text("file\txmin\tymin\txmax\tymax\n1.png\t0\t0\t9\t9\n")
    net = tiny_vgg("D", classes=1)
    torch.save(net.state_dict(), workspace / "net.pth")
    (workspace / "net.caffemodel").write_bytes(caffe_model(net, "V1LayerParameter").SerializeToString())
    import_weights(workspace / "net.pth", workspace / "runs" / "own" / "D")
    (workspace / "configs").symlink_to(REPOSITORY / "configs")
    return workspace


@pytest.fixture
def work_stops_at_start(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    """Stops all work at its start."""

    def stop(*_: Any, **__: Any) -> Any:
        raise Interrupted("this is where work begins")

    monkeypatch.chdir(workspace)
    monkeypatch.setattr(Session, "index", stop)
    monkeypatch.setattr(
        scan, "_findings", lambda members, *_: scan.Findings([Finding(40, 40, "JPEG", "ok")] * len(members))
    )
    for bench in (comm, dense, features, loader, step):
        monkeypatch.setattr(bench, "run", stop)
    monkeypatch.setattr(site, "_PROBE_MIB", 1)
    monkeypatch.setattr(slurm, "is_reachable", lambda: False)
    monkeypatch.setattr("os.execvp", stop)
    monkeypatch.setenv("PATH", str(workspace))  # no sbatch, no nvidia-smi


LINES = [
    "summary D --batch-norm --json",
    "index images --out x.idx --verify header --classes ilsvrc2012 --md5",
    "boxes val.idx boxes.tsv --out x.npz --report --json",
    "train --config configs/vgg_A.yaml --set data.root=images --resume auto --stop-after 5",
    "reproduce --config configs/demo.yaml --seeds 0,1 --set data.root=images --stop-after 1.5",
    "evaluate runs/own/D --method both --scales 40,48 --set data.index=val.idx --json",
    "verify-paper --index val.idx --weights-16 net.caffemodel --runs verify --set run.device=cpu",
    "weights import net.pth --out runs/own/again --net D --input paper --json",
    "weights export runs/own/D --out D.safetensors",
    "tables --runs runs --experiment own --json",
    "compare runs/own/D own:D --runs runs --out compare.html",
    "plan --config vgg_D --nodes 4 --gpu H100 --measured D=4600 --mfu 0.4 --decode-rate 600 --read 9 --price 2",
    "doctor --config configs/demo.yaml --set tracking.mlflow=false --json",
    "bench dense --net D --scales 64,96 --images 5 --rounds 1 --set model.width=0.125",
    "bench features --net D --scales 64,96 --images 5 --rounds 1 --set model.width=0.125",
    "bench loader images --S 64,96 --crop 32 --images 5 --batch 4 --batches 1 --rounds 1",
    "bench step --nets A,D --batches 8,32 --steps 1 --rounds 1",
    "bench comm --net A --steps 1 --rounds 1",
    "submit.py --config configs/vgg_D.yaml --nodes 4 --time 1-12:00:00 --mem 0 --sbatch nice=5 --setup true --dry-run",
    "submit.py --config configs/demo.yaml --cluster configs/cluster/devcluster.yaml --seeds 0,1 --local",
    "submit.py status --config configs/vgg_D.yaml --set run.root=elsewhere --json",
    "submit.py cancel --config configs/vgg_D.yaml --seeds 0,1",
    "submit.py logs --config configs/vgg_D.yaml --stage A-256 --lines 5 --follow",
]


def edited_line(draw: random.Random, words: list[str]) -> Iterator[str]:
    """Yields the words of a command line, some of them dropped, repeated, replaced or extended."""
    for word in words:
        match draw.randrange(12):
            case 0:
                pass
            case 1:
                yield from (word, word)
            case 2:
                yield typed(draw)
            case 3:
                key, equals, _ = word.partition("=")
                yield key + equals + typed(draw) if equals else word
            case 4:
                yield from (word, draw.choice(["--set", "--json", "--nothing", "-x", "--", "-"]))
            case _:
                yield word


def outcome(command: Callable[..., Any], name: str) -> int:
    """Returns the exit status of a command; any other exception fails the test."""
    try:
        run_app(name, command)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_random_command_lines(work_stops_at_start: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    draw = random.Random(2)
    programs = {"submit.py": typer.main.get_command(submit.app), "vggrepro": typer.main.get_command(cli.app)}
    ends = []
    for number in range(800):
        words = LINES[number % len(LINES)].split()
        name = words.pop(0) if words[0] == "submit.py" else "vggrepro"
        if number >= len(LINES):  # each line once without edits
            verbs = 2 if words[0] in ("weights", "bench") else 1
            words = words[:verbs] + list(edited_line(draw, words[verbs:]))
        monkeypatch.setattr(sys, "argv", [name, *words])
        status = outcome(programs[name], name)
        stderr = capsys.readouterr().err
        assert status in SHOWN_BY_CLICK, words
        assert "Traceback" not in stderr, (words, stderr)
        if status == 2:
            assert (stderr[: len(name) + 1], stderr.count("\n")) == (f"{name}:", 1), (words, stderr)
        ends.append(status)
    assert ends[: len(LINES)].count(2) <= 4, "the unedited lines are valid"
    assert {0, 2, 75} <= set(ends)
