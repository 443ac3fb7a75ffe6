"""Rules of the house, as tests: who imports what, how light the commands are, what the lock says."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tiny import REPOSITORY

PACKAGE = REPOSITORY / "vggrepro"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the ground up; a module may import from its own room and from those before it.
FLOORS = (
    ("errors",),
    ("paper",),
    ("config", "progress", "lease"),
    ("ledger", "stages", "tracking", "distributed", "watch", "models"),
    ("checkpoint", "data"),
    ("evaluation",),
    ("training",),
    ("reporting", "plan", "doctor"),
    ("pipeline",),
    ("bench", "api"),
    ("cli",),
    ("__main__",),
)
OWNERS = {"mlflow": {"tracking.py"}, "nvidia": {"data/dali.py"}, "submitit": set()}


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def room_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", [f for f in MODULES if f.name != "__init__.py"], ids=name_of)
def test_imports_point_down(file: Path) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    own = room_of(name_of(file))
    assert own in floor, f"{own} has no place among the rooms"
    used = {name.split(".")[1] for name in imported(file) if name.startswith("vggrepro.")} - {"__version__"}
    allowed = {room for room in floor if floor[room] < floor[own]} | {own}
    same_floor = {room for room in floor if floor[room] == floor[own]}
    assert used <= allowed | same_floor, f"{sorted(used - allowed)} must not be imported here"


def test_no_circle_of_imports() -> None:
    modules = {"vggrepro." + name_of(file).removesuffix(".py").replace("/", "."): file for file in MODULES}
    graph = {module: imported(file) & modules.keys() for module, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_each_heavy_library_has_one_home(file: Path) -> None:
    roots = {name.split(".")[0] for name in imported(file)}
    for library, owners in OWNERS.items():
        assert library not in roots or name_of(file) in owners, f"{library} belongs into {owners or 'launch/'}"


def test_models_know_no_ranks_and_no_tracking() -> None:
    for file in (PACKAGE / "models").glob("*.py"):
        assert not {name for name in imported(file) if name.startswith(("vggrepro.distributed", "vggrepro.tracking"))}


@pytest.mark.parametrize("module", ["vggrepro.cli", "vggrepro.config", "vggrepro.ledger", "vggrepro.models.summary"])
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'mlflow', 'nvidia.dali', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tables_need_no_torch() -> None:
    code = "import sys, vggrepro.reporting.tables; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vggrepro", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "reproduce" in done.stdout
    assert not {"torch", "pydantic", "numpy", "yaml"} & {
        line.split("|")[-1].strip() for line in done.stderr.splitlines()
    }


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda12.lock"])
def test_the_lock_is_hashed_and_names_no_registry(name: str) -> None:
    lock = (REPOSITORY / name).read_text()
    assert "http" not in lock.replace("httpcore", "").replace("httpx", "").replace("httptools", "").replace(
        "aiohttp", ""
    )
    assert "--index-url" not in lock
    pinned = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pinned) > 50
    assert all(line.endswith("\\") for line in pinned), "every requirement has its hashes"
