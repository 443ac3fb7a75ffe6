"""Weight files of other programs: the authors' Caffe nets, torchvision's state dicts, safetensors.

Whatever a file implies of order, range, mean and standard deviation of the pixels is brought into one form: RGB, grey
levels 0-255, with the mean to subtract and the standard deviation to divide by beside the weights. Nothing in a file is
executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.table1 import Architecture, architecture
from vggrepro.models.vgg import VGG
from vggrepro.paper import facts, value

Preprocessing = Literal["paper", "torchvision"]
PREPROCESSING: Mapping[Preprocessing, dict[str, Any]] = MappingProxyType(
    {
        "paper": {"channels": "RGB", "range": [0, 255], "mean": list(value("mean_rgb")), "std": [1.0, 1.0, 1.0]},
        "torchvision": {
            "channels": "RGB",
            "range": [0, 255],
            "mean": [255 * part for part in (0.485, 0.456, 0.406)],
            "std": [255 * part for part in (0.229, 0.224, 0.225)],
        },
    }
)
"""What a net's input is: grey levels, from which the mean is subtracted, divided by the standard deviation."""

ILSVRC_CLASSES_SHA256 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""Of the 1000 sorted WordNet ids, joined by newlines: the order of classes in the authors' nets and torchvision's."""

_TORCHVISION = {  # the first digits of a file's SHA-256, which its name repeats
    "bbd30ac9": "vgg11",
    "c768596a": "vgg13",
    "397923af": "vgg16",
    "dcbb9e9d": "vgg19",
    "6002323d": "vgg11_bn",
    "abd245e5": "vgg13_bn",
    "6c64b313": "vgg16_bn",
    "c79401a0": "vgg19_bn",
}
_METADATA = "vggrepro"


@dataclass(frozen=True)
class Imported:
    """A net from a file of another program."""

    model: dict[str, Any]
    """Arguments of `architecture`."""
    weights: dict[str, Tensor]
    """State dict of `VGG`, float32."""
    preprocessing: dict[str, Any]
    """As in PREPROCESSING."""
    source: str
    """What the file was recognised as."""
    sha256: str
    """Of the file, hex."""
    classes: list[str] | None
    """Names of the classes in order, where the file says them."""


def read(file: Path, *, net: str | None = None, preprocessing: Preprocessing | None = None) -> Imported:
    """Reads a Caffe model, a torchvision state dict or a safetensors file, recognised by its content.

    Width, crop and classes follow from the shapes, and so does the column of Table 1 unless `net` names it.

    Args:
        file: the weights.
        net: the column of Table 1 that the file must be of.
        preprocessing: what the net's input was, in place of what the format implies: `paper` for Caffe models,
            `torchvision` for the others, unless they were written here and say so themselves.

    Raises:
        UserError: the file is missing, torn, hostile, of no format that is read here or of another net, or it holds
            numbers that are not finite.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
            opened.seek(0)
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights {file} cannot be read ({error.strerror}); give another file") from None
    described: dict[str, Any] = {}
    try:
        if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
            tensors = _read_torch(file)
            known = _TORCHVISION.get(sha256[:8])
            source = f"torchvision's {known} ({sha256[:8]})" if known else "state dict of torch"
        elif head[8:] == b"{":
            tensors, described = _read_safetensors(file)
            source = "safetensors" + (" of this program" if described else "")
        elif head.startswith((b"\x89HDF", b"MATLAB")):
            raise ValueError("HDF5 and MATLAB files are not read here; give the Caffe or the torchvision file")
        else:
            tensors, source = _read_caffe(file)
            preprocessing = preprocessing or "paper"
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"weights {file} cannot be read ({reason}); give another file") from None

    model = described.get("model") or _recognise(file, tensors, net)
    if net is not None and model["net"] != net:
        raise UserError(f"weights {file} are of net {model['net']}, not {net}; leave --net out or give another file")
    expected = _shapes(architecture(**model))
    if misfit := _misfit(tensors, expected):
        raise UserError(f"weights {file} do not fit net {model['net']}: {misfit}; give another file")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights {file} are damaged: {key} holds numbers that are not finite; give another file")
    return Imported(
        model=model,
        weights={key: _of_type(tensors[key] if key in tensors else torch.zeros(()), key) for key in expected},
        preprocessing=dict(described.get("preprocessing") or PREPROCESSING[preprocessing or "torchvision"]),
        source=source,
        sha256=sha256,
        classes=described.get("classes"),
    )


def write(
    file: Path,
    weights: Mapping[str, Tensor],
    *,
    model: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    classes: list[str] | None,
) -> None:
    """Writes a net as `.safetensors`, which carries all that :func:`read` needs, or as `.pth`, all or nothing.

    A `.pth` is a plain state dict, with torchvision's keys for A, B, D and E; it cannot say what its input is.

    Raises:
        UserError: another suffix, or a file that cannot be written.
    """
    if file.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out {file}: nets are written as .safetensors or .pth; choose one of these suffixes")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.suffix == ".pth":
            torch.save(dict(weights), temporary)
        else:
            from safetensors.torch import save_file

            described = {"model": dict(model), "preprocessing": dict(preprocessing), "classes": classes}
            plain = {key: tensor.contiguous() for key, tensor in weights.items()}
            save_file(plain, temporary, metadata={"format": "pt", _METADATA: json.dumps(described)})
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"weights {file} cannot be written ({error}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def caffe_state(layers: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], built: Architecture) -> dict[str, Tensor]:
    """The state dict of a net, or of those of its layers that are given, from Caffe's layers by name.

    Args:
        layers: (weight, bias) of conv1_1, ..., fc8. A convolution's weight is (out, in, k, k), conv1_1's input BGR; a
            fully-connected layer's is (out, in), with fc6's inputs in the order channel, row, column, as in torch.
            Leading axes of length 1, which old files have, are dropped.
        built: the net.
    """
    state = {}
    for layer in built.layers():
        if layer.name not in layers:
            continue
        weight, bias = layers[layer.name]
        axes = 4 if layer.kind == "conv" else 2
        while weight.ndim > axes and weight.shape[0] == 1:
            weight = weight[0]
        if layer.name == "conv1_1":
            weight = weight[:, ::-1]
        state[f"{layer.key}.weight"] = torch.from_numpy(np.array(weight, np.float32))
        state[f"{layer.key}.bias"] = torch.from_numpy(np.array(bias, np.float32).reshape(-1))
    return state


def _read_torch(file: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual pickles; an error says it in one line
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and "format" in content:
        raise ValueError("it is a checkpoint; `vggrepro evaluate` takes it as it is")
    if not isinstance(content, dict) or not content or not all(isinstance(item, Tensor) for item in content.values()):
        raise ValueError("it is not a state dict")
    return {str(key): item for key, item in content.items()}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return tensors, json.loads(metadata.get(_METADATA, "{}"))


def _recognise(file: Path, tensors: Mapping[str, Tensor], net: str | None) -> dict[str, Any]:
    """The net whose state dict this is. Raises UserError when it is none, naming what keeps it from the nearest."""
    fc6, fc8, first = (tensors.get(f"{key}.weight") for key in ("classifier.0", "classifier.6", "features.0"))
    if fc6 is None or fc8 is None or first is None or (fc6.ndim, fc8.ndim, first.ndim) != (2, 2, 4):
        raise UserError(
            f"weights {file} are of no net of Table 1 (no conv1_1, fc6 and fc8 among {len(tensors)} tensors: "
            f"{', '.join(list(tensors)[:3])}, ...); give a VGG with its three fully-connected layers"
        )
    batch_norm = any(key.endswith("running_mean") for key in tensors)
    nearest: tuple[int, str, str] | None = None
    for name in [net] if net else facts().architectures:
        widest = architecture(name)
        model: dict[str, Any] = {
            "net": name,
            "batch_norm": batch_norm,
            "classes": len(fc8),
            "width": len(first) / widest.layers()[0].shape[0],
        }
        channels = [layer.shape[0] for layer in architecture(**model).layers() if layer.kind == "conv"][-1]
        side = math.isqrt(fc6.shape[1] // channels)
        model["crop"] = max(1, side) * widest.stride
        expected = _shapes(architecture(**model))
        misfit = _misfit(tensors, expected)
        if misfit is None:
            return model
        shared = sum(key in tensors and tuple(tensors[key].shape) == shape for key, shape in expected.items())
        if nearest is None or shared > nearest[0]:
            nearest = shared, name, misfit
    assert nearest is not None
    kind = f"are not of net {net}" if net else f"are of no net of Table 1; nearest is {nearest[1]}"
    raise UserError(f"weights {file} {kind}: {nearest[2]}; give another file")


def _shapes(built: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in VGG(built).state_dict().items()}


def _misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first tensor that is missing, too many or of another shape. Old files lack batch norm's batch counts."""
    for key, shape in expected.items():
        if key not in tensors:
            if key.endswith("num_batches_tracked"):
                continue
            return f"{key} is missing"
        if tuple(tensors[key].shape) != shape:
            return f"{key} is {tuple(tensors[key].shape)} instead of {shape}"
    more = sorted(tensors.keys() - expected.keys())
    return f"it has no {more[0]}" if more else None


def _of_type(tensor: Tensor, key: str) -> Tensor:
    return tensor.to(torch.int64 if key.endswith("num_batches_tracked") else torch.float32).clone()


# Caffe's files are protocol buffers. Of caffe.proto, these field numbers matter here:
_NET_LAYERS_V1, _NET_LAYERS = 2, 100  # NetParameter.layers (V1LayerParameter) and .layer (LayerParameter)
_V1 = {"name": 4, "blobs": 6, "V0": 1}
_V2 = {"name": 1, "blobs": 7}
_BLOB_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE = 5, 7, 8
_SHAPE_DIM = 1
_MOST_DIMENSIONS = 8


def _read_caffe(file: Path) -> tuple[dict[str, Tensor], str]:
    """State dict of the net in a Caffe model, by whichever column of Table 1 has layers of its names."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise ValueError("it is empty")
        content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    layers: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    generations = set()
    for number, layer in _fields(content):
        if number not in (_NET_LAYERS_V1, _NET_LAYERS):
            continue
        generation, fields = ("V1LayerParameter", _V1) if number == _NET_LAYERS_V1 else ("LayerParameter", _V2)
        name, blobs = "", []
        for inner, item in _fields(_message(layer)):
            if inner == fields.get("V0"):
                raise ValueError("it is of Caffe's oldest form; bring it up to date with Caffe's upgrade tool")
            if inner == fields["name"]:
                name = bytes(_message(item)).decode()
            elif inner == fields["blobs"]:
                blobs.append(_blob(_message(item)))
        if blobs:
            if len(blobs) != 2 or name in layers:
                raise ValueError(f"layer {name!r} has {len(blobs)} blobs, or stands twice")
            layers[name] = blobs[0], blobs[1]
            generations.add(generation)
    if not layers:
        raise ValueError("no layer with weights in it: not a Caffe model, nor any other format that is read here")
    names = set(layers)
    for net in facts().architectures:
        built = architecture(net)
        if {layer.name for layer in built.layers() if layer.parameters} == names:
            state = caffe_state(layers, built)
            # C and D have the same names; their kernels differ.
            kernels = [layer.kernel for layer in built.layers() if layer.kind == "conv"]
            if kernels == [tensor.shape[-1] for tensor in state.values() if tensor.ndim == 4]:
                return state, f"Caffe model ({', '.join(sorted(generations))})"
    raise ValueError(f"a Caffe model, but of no net of Table 1: its layers are {', '.join(layers)}")


def _blob(message: memoryview) -> NDArray[Any]:
    shape: list[int] | None = None
    old = dict.fromkeys(_BLOB_OLD_SHAPE, 0)
    chunks: dict[int, list[memoryview]] = {_BLOB_DATA: [], _BLOB_DOUBLE: []}
    for number, item in _fields(message):
        if number in chunks:
            chunks[number].append(_message(item))
        elif number in old and isinstance(item, int):
            old[number] = item
        elif number == _BLOB_SHAPE:
            shape = [dim for inner, part in _fields(_message(item)) if inner == _SHAPE_DIM for dim in _integers(part)]
    shape = list(old.values()) if shape is None else shape
    kind, parts = ("<f8", chunks[_BLOB_DOUBLE]) if chunks[_BLOB_DOUBLE] else ("<f4", chunks[_BLOB_DATA])
    data = np.frombuffer(b"".join(parts), kind)
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {shape[:_MOST_DIMENSIONS]} holds {len(data)} numbers")
    return data.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: whole numbers as such, everything else as its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            whole, at = _varint(message, at)
            yield number, whole
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("not a Caffe model, nor any other format that is read here")
        if at + length > len(message):
            raise ValueError("it ends too early, or is of no format that is read here")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    whole = 0
    for place, byte in enumerate(message[at : at + 10]):
        whole |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return whole, at + place + 1
    raise ValueError("it ends too early, or is of no format that is read here")


def _integers(part: int | memoryview) -> Iterable[int]:
    """Of a repeated field, packed or not."""
    if isinstance(part, int):
        yield part
        return
    at = 0
    while at < len(part):
        whole, at = _varint(part, at)
        yield whole


def _message(item: int | memoryview) -> memoryview:
    if isinstance(item, int):
        raise ValueError("not a Caffe model, nor any other format that is read here")
    return item
