"""What `torch.save` has written, read without executing anything."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_torch(file: Path) -> Any:
    """The content of a file of tensors and plain values, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is torn, or holds something else, which would have to be executed.
        Exception: damaged bytes provoke whatever they happen to say.
    """
    if zipfile.is_zipfile(file):  # all but files of before 2020; torch.load itself does not look at the checksums
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
    with warnings.catch_warnings(action="ignore"):  # about unusual pickles; an error says it in one line
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # whose text recommends to execute what is in the file
            raise ValueError(
                "it is cut off, or holds more than tensors and plain values, and that is not executed"
            ) from None
