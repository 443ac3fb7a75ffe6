"""Comparison of the arrays that runs store."""

import json
from pathlib import Path

import numpy as np


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of all stores in a folder, by file name and key."""
    found = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as content:
            found[file.name] = dict(content)
    return found


def assert_same_arrays(folder: Path, other: Path) -> None:
    """Asserts that two folders store the same arrays, bit for bit."""
    first, second = arrays(folder), arrays(other)
    assert first.keys() == second.keys()
    assert first
    for name, content in first.items():
        assert content.keys() == second[name].keys()
        for key, array in content.items():
            if key == "note":  # the images' path is not part of the result
                assert json.loads(str(array))["validated"] == json.loads(str(second[name][key]))["validated"]
                continue
            np.testing.assert_array_equal(second[name][key], array, err_msg=f"{name}: {key}")
