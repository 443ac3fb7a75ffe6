"""The benchmarks that want a GPU, each into benchmarks/results/<date>-<name>.json and .md; `make test-gpu` runs it.

python benchmarks/gpu.py [PICTURES]

PICTURES is a folder or an archive of photographs for the loader and for dense evaluation; without it, small digits that
are made on the spot, enlarged where the net needs it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COMMANDS = {
    "step-eager": ["step", "--set", "train.compile=false"],
    "step-compiled": ["step"],
}
DENSE = ["dense", "--set", "model.crop=224", "--set", "model.width=1.0", "--set", "data.S=[256, 512]"]


def main() -> None:
    """Runs all of them; a failure is reported at the end and does not keep the others from running."""
    photographs = [*sys.argv[1:2], "--S", "256,512", "--crop", "224"]
    pictures = photographs if sys.argv[1:] else ["builtin:digits", "--S", "73,146", "--crop", "64"]
    failed = []
    commands = COMMANDS | {"dense-gpu": [*DENSE, *_dense_pictures(sys.argv[1:2])], "loader-gpu": ["loader", *pictures]}
    for name, arguments in commands.items():
        command = [sys.executable, "-m", "vggrepro", "bench", *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(name)
            continue
        found = json.loads(done.stdout)
        stem = RESULTS / f"{datetime.date.today().isoformat()}-{name}"
        stem.with_suffix(".json").write_text(done.stdout, encoding="utf-8")
        said = [part.replace(sys.argv[1], "PICTURES") if sys.argv[1:] else part for part in command[3:-1]]
        stem.with_suffix(".md").write_text(to_markdown(found, ["vggrepro", *said]), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _dense_pictures(given: list[str]) -> list[str]:
    """Settings that make `bench dense` use these photographs, with as many classes as they have."""
    if not given:
        return []
    from vggrepro.data.index import open_index

    classes = open_index(given[0], None, Path("runs") / "index", lambda done, total: None).classes
    return ["--set", f"model.classes={len(classes)}", "--set", f"data.root={given[0]}"]


def to_markdown(found: dict, command: list[str]) -> str:
    """A result for people."""
    ceiling = f", ceiling {found['ceiling']:.4g}" if found.get("ceiling") else ""
    lines = [
        f"# bench {found['name']}",
        "",
        f"    {' '.join(command)}",
        "",
        f"ours {found['ours']:.4g}, usual {found['usual']:.4g} {found['unit']}, ratio {found['ratio']:.3g}{ceiling}",
        "",
    ]
    for key, item in found["details"].items():
        lines.append(f"- {key}: {_short(item)}")
    return "\n".join(lines) + "\n"


def _short(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name} {_short(number)}" for name, number in item.items())
    return f"{item:.4g}" if isinstance(item, float) else str(item)


if __name__ == "__main__":
    main()
