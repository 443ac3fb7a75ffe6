"""Rules of the code base: imports between rooms, light commands, sizes of files, the lock."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from budget import over_budget, slowest_files
from programs import modules_imported_by, run_program
from tiny import REPOSITORY

PACKAGE = REPOSITORY / "vggrepro"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAUNCH = sorted((REPOSITORY / "launch").glob("*.py"))

# The rooms from the ground up; a module may import from its room and from rooms on lower floors.
FLOORS = (
    ("errors", "files"),
    ("paper",),
    ("config", "progress"),
    ("models", "ranks"),
    ("storage",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("reporting", "preflight"),
    ("pipeline",),
    ("bench", "api", "show"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SUB_FLOORS = {
    "data": (
        ("views",),
        ("decode", "sampler"),
        ("images",),
        ("loading", "boxes"),
        ("transfer",),
        ("dataset", "report"),
    ),
    "reporting": (("stored",), ("claims",), ("tables",), ("documents",)),
}
"""Rooms within a room, from the lowest to the highest."""
_MLFLOW = ("logged_model", "mirror", "mlflow_run", "system_metrics")
OWNERS = {
    "mlflow": {f"storage/{name}.py" for name in _MLFLOW},
    "nvidia": {"data/loading/dali.py"},
    "submitit": set(),
    "streamlit": {"show/page.py", "show/server.py"},
    "altair": {"show/charts.py"},
    "timm": {"pipeline/crosscheck.py"},
    "huggingface_hub": {"storage/hub.py"},
}
MOST_LINES = 350


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def room_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Dotted names of all imports of a file, including those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", [f for f in MODULES if f.name != "__init__.py"], ids=name_of)
def test_imports_point_down(file: Path) -> None:
    room = room_of(name_of(file))
    assert room in FLOOR, f"{room} has no place among the rooms"
    used = {name.split(".")[1] for name in imported(file) if name.startswith("vggrepro.")} - {"__version__"}
    below = {lower for lower in FLOOR if FLOOR[lower] < FLOOR[room]}
    assert used <= below | {room}, f"{sorted(used - below - {room})} must not be imported here"


@pytest.mark.parametrize("room", SUB_FLOORS)
def test_imports_within_a_room_point_down(room: str) -> None:
    floor = {name: number for number, names in enumerate(SUB_FLOORS[room]) for name in names}
    files = [file for file in (PACKAGE / room).rglob("*.py") if file.name != "__init__.py"]
    assert {room_of(name_of(file).partition("/")[2]) for file in files} == floor.keys()
    for file in files:
        inner = room_of(name_of(file).partition("/")[2])
        names = (name.split(".") for name in imported(file))
        used = {parts[2] for parts in names if parts[:2] == ["vggrepro", room] and len(parts) > 2}
        assert all(other == inner or floor[other] < floor[inner] for other in used), f"{file}: {sorted(used)}"


@pytest.mark.parametrize("file", [*MODULES, *LAUNCH], ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_no_file_is_too_long_to_read_at_once(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MOST_LINES, "one job a file: see docs/architecture.md"


def test_the_corridor_stays_short() -> None:
    top = {room_of(name_of(file)) for file in PACKAGE.glob("*.py")}
    assert top == {"__init__", "__main__", "api", "errors", "files", "progress"}, (
        "modules of a room belong into its folder"
    )


def test_the_page_on_architecture_is_true() -> None:
    """Its walk-throughs name existing files, each once, and its rooms are in the order of the floors."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    ways = re.findall(r"^    a .*?:(.*?)(?=^    a |^$)", page, re.DOTALL | re.MULTILINE)
    assert len(ways) == 3
    for way in ways:
        steps = way.replace(">", " ").split()
        assert len(set(steps)) == len(steps)
        for step in steps:
            assert ((REPOSITORY if step.startswith("launch/") else PACKAGE) / f"{step}.py").is_file(), step
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    named = [name.rstrip("/").removesuffix(".py") for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert set(named) == FLOOR.keys() - {"__main__"}
    heights = [FLOOR[name] for name in named if name not in ("errors", "files", "progress")]
    assert heights == sorted(heights, reverse=True)


def test_no_import_cycles() -> None:
    modules = {"vggrepro." + name_of(file).removesuffix(".py").replace("/", "."): file for file in MODULES}
    graph = {module: imported(file) & modules.keys() for module, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_each_heavy_library_has_one_home(file: Path) -> None:
    roots = {name.split(".")[0] for name in imported(file)}
    for library, owners in OWNERS.items():
        assert library not in roots or name_of(file) in owners, f"{library} belongs into {owners or 'launch/'}"


def test_models_import_neither_ranks_nor_tracking() -> None:
    for file in (PACKAGE / "models").glob("*.py"):
        assert not {name for name in imported(file) if name.startswith(("vggrepro.ranks", "vggrepro.storage"))}


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "config.recipes",
        "storage.ledger",
        "storage.mirror",
        "ranks.topology",
        "preflight.plan",
        "pipeline.done",
    ],
)
def test_light_modules_stay_light(module: str) -> None:
    assert not {"torch", "mlflow", "nvidia.dali", "pandas"} & modules_imported_by(f"import vggrepro.{module}")


def test_tables_need_no_torch_and_jinja2_only_to_be_written() -> None:
    assert not {"torch", "jinja2"} & modules_imported_by("import vggrepro.reporting.documents.render")


def test_help_imports_nothing_heavy() -> None:
    done = run_program("-X", "importtime", "-m", "vggrepro", "--help", check=True)
    assert "reproduce" in done.stdout
    assert not {"torch", "pydantic", "numpy", "yaml", "jinja2"} & {
        line.split("|")[-1].strip() for line in done.stderr.splitlines()
    }


def test_a_test_file_over_its_budget_is_reported() -> None:
    seconds = {f"tests/test_{number}.py": 10.0 for number in range(9)} | {"tests/test_long.py": 10.0}
    assert not over_budget(seconds)
    assert not [line for line in slowest_files(seconds) if "ERROR" in line]
    seconds["tests/test_long.py"] = 40.0
    assert over_budget(seconds) == ["tests/test_long.py"]
    shown, named = slowest_files(seconds, 1)
    assert shown.split() == ["40.0", "s", "30.8%", "tests/test_long.py"]
    assert named.startswith("ERROR tests/test_long.py takes 31% of the suite, more than the 14% of a file")


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
