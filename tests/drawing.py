"""Stub for drawing figures, which takes longer than training the nets of most tests."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from vggrepro.reporting.documents import figures


def _white_square() -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), 255).save(out, "PNG")
    return out.getvalue()


def _mock_axes(rows: int, columns: int, width: float, height: float) -> tuple[None, Any]:
    axes = np.empty((rows, columns), object)
    axes.fill(MagicMock())
    return None, axes


_PNG = _white_square()
BLANK: Mapping[str, Callable[..., Any]] = {"_figure": _mock_axes, "_png": lambda _: _PNG}
"""Functions that replace drawing: a figure's data are computed, and its picture is a white square."""
REAL: Mapping[str, Callable[..., Any]] = {name: getattr(figures, name) for name in BLANK}

BLANK_SITE = f"""
import sys
from importlib.machinery import PathFinder


class BlankFigures(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "vggrepro.reporting.documents.figures":
            return None
        spec = super().find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            sys.path.append({str(Path(__file__).parent)!r})
            from drawing import BLANK

            sys.path.pop()
            vars(module).update(BLANK)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, BlankFigures)
"""
"""Replaces drawing in every Python process that finds it as sitecustomize.py: it takes a third of a small run."""


@contextmanager
def figures_drawn_by(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Draws figures with these functions inside the context."""
    with pytest.MonkeyPatch.context() as patched:
        for name, function in functions.items():
            patched.setattr(figures, name, function)
        yield
