"""Caffe models: the authors' own files, and any other of Table 1's nets with the same names of layers."""

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.models.table1 import Architecture

Layers = dict[str, tuple[NDArray[Any], NDArray[Any]]]
"""(weight, bias) of conv1_1, ..., fc8.

A convolution's weight is (out, in, k, k), conv1_1's input BGR. A fully-connected layer's is (out, in), fc6's inputs in
the order channel, row, column, as in torch. Leading axes of length 1, which old files have, are dropped.
"""

# Caffe's files are protocol buffers. Of caffe.proto, these field numbers matter here:
_NET_LAYERS_V1, _NET_LAYERS = 2, 100  # NetParameter.layers (V1LayerParameter) and .layer (LayerParameter)
_V1 = {"name": 4, "blobs": 6, "V0": 1}
_V2 = {"name": 1, "blobs": 7}
_BLOB_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE = 5, 7, 8
_SHAPE_DIM = 1
_MOST_DIMENSIONS = 8


def read_layers(file: Path) -> tuple[Layers, str]:
    """The layers of a Caffe model that have weights, and the generation of its messages.

    Raises:
        ValueError: the file is torn, or no Caffe model.
    """
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise ValueError("it is empty")
        content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    layers: Layers = {}
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
    return layers, ", ".join(sorted(generations))


def state_of(layers: Layers, built: Architecture) -> dict[str, Tensor]:
    """The state dict of a net, or of those of its layers that are given, from Caffe's layers by name.

    Args:
        layers: as in `Layers`.
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
