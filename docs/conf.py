"""Configuration of the documentation site, which Sphinx builds from the Markdown in place: `make docs`.

The source folder is the repository, so relative links between pages, results and recipes work here and on GitHub alike.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vggrepro
from vggrepro.cli import main as cli

project = "vggrepro"
author = "the vggrepro developers"
copyright = f"{author}; Apache-2.0"
version = release = vggrepro.__version__

root_doc = "docs/index"
include_patterns = ["docs/**.md", "*.md", "benchmarks/results/**.md"]
exclude_patterns = [".*", "site", "runs", "build", "dist", "tests", "vggrepro"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_heading_anchors = 4  # GitHub's anchors
highlight_language = "text"
default_role = "code"  # docstrings have single backticks
smartquotes = False  # -- is an option, not a dash

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = "furo"
html_title = f"vggrepro {release}"
html_show_sourcelink = False
html_domain_indices = False
html_static_path = ["site"]
html_extra_path = ["site/root"]  # the entrance, which leads to docs/index.html
html_css_files = ["site.css"]


COMMANDS = "docs/reference/options"
"""The page that lists every verb, from the command itself."""


def read_google_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Translates a docstring in Google style; a colon in an attribute's docstring does not mark a type."""
    kind = "object" if what in ("attribute", "data", "property") else what
    escaped = [line.replace("*", r"\*") for line in lines]  # sizes and patterns, never emphasis
    lines[:] = GoogleDocstring(escaped, Config(), app, kind, name, obj, options).lines()


def describe_verbs(app: Sphinx, page: str, source: list[str]) -> None:
    """Appends the help of every verb to its page."""
    if page == COMMANDS:
        source[0] += "".join(verbs(get_command(cli.app), "vggrepro"))


def verbs(command: Any, name: str) -> Iterator[str]:
    """Markdown for a command and those below it: its help, its usage, its options as a table."""
    context = command.context_class(command, info_name=name)
    if hasattr(command, "commands"):
        for verb, inner in command.commands.items():
            yield from verbs(inner, f"{name} {verb}")
        return
    yield f"\n## {name}\n\n{command.help}\n\n    {command.get_usage(context).removeprefix('Usage: ')}\n\n"
    yield "| argument or option | meaning |\n|---|---|\n"
    for parameter in command.get_params(context):
        names, meaning = (text.replace("|", "\\|") for text in parameter.get_help_record(context))
        yield f"| `{names}` | {meaning} |\n"


def setup(app: Sphinx) -> None:
    """Connects the translation of docstrings and the reference of the command."""
    app.connect("autodoc-process-docstring", read_google_docstring)
    app.connect("source-read", describe_verbs)
