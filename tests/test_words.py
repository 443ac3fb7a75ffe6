"""The rules of CONTRIBUTING.md on words that a program can count: identifiers, openings of docstrings, class names."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator

from tiny import REPOSITORY

FOLDERS = ("vggrepro", "launch", "tests", "benchmarks", "docs")
FILES = sorted(file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py"))
PRODUCT = [file for file in FILES if file.relative_to(REPOSITORY).parts[0] in ("vggrepro", "launch")]

VAGUE = {"told", "said", "says", "asked", "kept", "held", "whole", "own", "one", "sought", "met"}
"""They stand where the noun should."""
OPENINGS = {
    *("of", "what", "as", "which", "where", "how", "why", "who", "that", "those", "these", "for", "from", "to", "in"),
    *("by", "with", "without", "under", "like", "until", "after", "when", "while", "its", "around", "one"),
}
"""First words of a docstring that is a fragment: neither a verb nor a noun phrase that stands alone."""


def words_of(name: str) -> set[str]:
    """The lower-case words of a name in snake_case or CamelCase."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module defines, with their lines: functions, classes, parameters, variables, attributes.

    Names of tests are sentences, in which these words have their place.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("test_"):
                yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def docstrings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Docstrings of modules, classes and functions, with the lines of their owners; those of tests are sentences."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and not getattr(node, "name", "").startswith("test_"):
                yield text, getattr(node, "lineno", 1)


def vague_identifiers(source: str) -> list[str]:
    """Identifiers with a vague word, each as `line: name`."""
    return [f"{line}: {name}" for name, line in identifiers(ast.parse(source)) if VAGUE & words_of(name)]


def fragments(source: str) -> list[str]:
    """Docstrings that open with a fragment or a bracket, each as `line: first line`."""
    return [
        f"{line}: {text.splitlines()[0]}"
        for text, line in docstrings(ast.parse(source))
        if text.split()[0].lower().rstrip(",:;") in OPENINGS or not re.match(r"[\w`*:\"'+-]", text)
    ]


def in_files(rule: Callable[[str], list[str]]) -> list[str]:
    """Applies a rule to all files; returns findings as `file:line: text`."""
    return [f"{file.relative_to(REPOSITORY)}:{found}" for file in FILES for found in rule(file.read_text())]


def test_identifiers_name_their_nouns() -> None:
    assert in_files(vague_identifiers) == []


def test_docstrings_open_with_a_verb_or_a_noun_phrase() -> None:
    assert in_files(fragments) == []


def test_no_two_classes_share_a_name() -> None:
    """A domain word has a single class; a private class counts under its name without the underscore."""
    names = Counter(
        node.name.lstrip("_")
        for file in PRODUCT
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in names.items() if times > 1] == []


def test_the_rules_see_what_they_forbid() -> None:
    source = 'def f(asked):\n    """Of the net."""\n    for one in asked: self.whole_net = keptRun = 1\n'
    assert sorted(vague_identifiers(source)) == ["1: asked", "3: keptRun", "3: one", "3: whole_net"]
    assert fragments(source) == ["1: Of the net."]
    assert fragments('def f():\n    """(n,) ranks."""\n') == ["1: (n,) ranks."]
    assert fragments('def f():\n    """Ranks, shape (n,)."""\n') == []
    assert vague_identifiers("known = milestone = 1") == [], "parts of words are no words"
