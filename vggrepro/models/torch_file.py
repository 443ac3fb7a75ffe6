"""What `torch.save` has written, read without executing anything."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


class _Placeholders(type):
    """Makes torch fill a placeholder as it fills dicts, which many trainers' settings derive from."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class _Placeholder(metaclass=_Placeholders):
    """Stands for what a file names: takes whatever it is made of, forgets it, and does nothing."""

    def __new__(cls, *_: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, item: object) -> None: ...


def read_torch(file: Path, *, placeholders: bool = False) -> Any:
    """The content of a file of tensors and plain values, on the CPU.

    Args:
        file: what was written, zipped or in the older form.
        placeholders: take a zipped file, too, that holds more. For each class or function that it names beside tensors
            there is one of ours, of the same name, which imports and does nothing.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is torn, or holds something else, which would have to be executed.
        Exception: damaged bytes provoke whatever they happen to say.
    """
    zipped = zipfile.is_zipfile(file)  # all but files of before 2020; torch.load itself does not look at the checksums
    if zipped:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
    with warnings.catch_warnings(action="ignore"):  # about unusual pickles; an error says it in one line
        try:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(file) if placeholders and zipped else []
            with torch.serialization.safe_globals([(_Placeholders(name, (_Placeholder,), {}), name) for name in named]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # whose text recommends to execute what is in the file
            raise ValueError(
                "it is cut off, or holds more than tensors and plain values, and that is not executed"
            ) from None
