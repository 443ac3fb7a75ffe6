"""Reader of `torch.save` files that executes nothing."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


class _Placeholders(type):
    """Makes torch fill placeholders like dicts, which the settings of many trainers derive from."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class _Placeholder(metaclass=_Placeholders):
    """Replaces a class or function that a file names: accepts any state, discards it and does nothing."""

    def __new__(cls, *_: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, item: object) -> None: ...


def read_torch(file: Path, *, placeholders: bool = False) -> Any:
    """Reads a file of tensors and plain values, in the zip format or the older one, to the CPU.

    With `placeholders`, a zip file may have other contents: each class or function that it names is replaced by a
    placeholder of that name, which imports and does nothing. Raises ValueError for contents that would have to be
    executed, and exceptions of any kind for damaged bytes.
    """
    zipped = zipfile.is_zipfile(file)  # all files since 2020
    if zipped:  # torch.load does not verify the checksums
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
    with warnings.catch_warnings(action="ignore"):  # about unusual pickles; errors are one line
        try:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(file) if placeholders and zipped else []
            with torch.serialization.safe_globals([(_Placeholders(name, (_Placeholder,), {}), name) for name in named]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its text recommends executing the file
            raise ValueError(
                "it is truncated, or has contents other than tensors and plain values, which are not executed"
            ) from None
