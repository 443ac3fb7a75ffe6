"""Weight files of other programs: the authors' Caffe nets, MatConvNet, torchvision, timm, safetensors, ONNX.

The preprocessing that a file implies is converted to a common form: RGB, values 0-255, with the mean to subtract and
the standard deviation to divide by beside the weights. Nothing in a file is executed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing
from vggrepro.models import caffe, matconvnet
from vggrepro.models.onnx import to_onnx
from vggrepro.models.other_trainers import net_in
from vggrepro.models.table1 import architecture
from vggrepro.models.torch_file import read_torch
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
"""Input of a net: values 0-255, minus the mean, divided by the standard deviation."""

ILSVRC_CLASSES_SHA256 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""Hash of the 1000 sorted WordNet ids, joined by newlines: the class order of the authors' nets and torchvision's."""

_KNOWN = {  # by SHA-256; torchvision's by its first digits, which their names contain; MatConvNet's by MD5
    "a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197": "the authors' VGG_ILSVRC_16_layers.caffemodel",
    "31b4c627c40c6ee151325f079b7ac557fddbd1f79af932888796127a4f4f6954": "the authors' VGG_ILSVRC_19_layers.caffemodel",
    "bbd30ac9": "torchvision's vgg11",
    "c768596a": "torchvision's vgg13",
    "397923af": "torchvision's vgg16",
    "dcbb9e9d": "torchvision's vgg19",
    "88682ab5": "torchvision's IMAGENET1K_FEATURES, the convolutions of the authors' VGG_ILSVRC_16_layers",
    "6002323d": "torchvision's vgg11_bn",
    "abd245e5": "torchvision's vgg13_bn",
    "6c64b313": "torchvision's vgg16_bn",
    "c79401a0": "torchvision's vgg19_bn",
    "f72d927587ca4c97fbd165ec9cb9997f": "imagenet-vgg-verydeep-16.mat",
    "106118b7cf60435e6d8e04f6a6dc3657": "imagenet-vgg-verydeep-19.mat",
}
_MIN_BLOCKS = 3
"""Fewest blocks of a net that is recognised by its shapes; with two, the tensors of B to E are alike."""
_METADATA = "vggrepro"


@dataclass(frozen=True)
class Imported:
    """A net that was read from a file of another program."""

    model: dict[str, Any]
    """Arguments of `architecture`."""
    weights: dict[str, Tensor]
    """State dict of `VGG`, float32."""
    preprocessing: dict[str, Any]
    """Preprocessing in the form of PREPROCESSING."""
    source: str
    """Format, name of the file if its checksum is known, and the net's key in a checkpoint."""
    sha256: str
    """SHA-256 of the file, hex."""
    classes: list[str] | None
    """Names of the classes in order, if the file has them."""
    testing: dict[str, Any] | None = None
    """S, single_Q, multi_Q and flip of the net's configuration, if the file has them."""


def read(
    file: Path, *, net: str | None = None, preprocessing: Preprocessing | None = None, key: str | None = None
) -> Imported:
    """Reads a Caffe or MatConvNet model, or a state dict or checkpoint of torchvision, timm or another trainer.

    The content determines the format. Width, crop, classes, blocks and the column of Table 1 follow from the shapes. A
    file without FC layers, or with NaN in all of them, gives a net of convolutions only.

    Args:
        file: Weight file.
        net: Column of Table 1 that the file must contain. Default: any.
        preprocessing: Input of the net, if the file does not describe it (MatConvNet's and those of :func:`write` do).
            Default: `paper` for Caffe models, `torchvision` for the others.
        key: Key of the net in a checkpoint of several, as in the error and `Imported.source`.

    Raises:
        UserError: the file is missing, damaged, hostile, of an unsupported format or of another net, it has values
            that are not finite, or it has several nets and `key` names none of them.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(10)
            opened.seek(0)
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            digests = [sha256, sha256[:8]]
            if head.startswith(b"MATLAB"):
                opened.seek(0)
                digests = [hashlib.file_digest(opened, "md5").hexdigest()]
    except OSError as error:
        raise UserError(f"weights {file} cannot be read ({error.strerror}); give another file") from None
    known = next((_KNOWN[digest] for digest in digests if digest in _KNOWN), "")
    implied: Preprocessing = "paper" if "the authors'" in known else "torchvision"
    described: dict[str, Any] = {}
    may_hold_several = False
    try:
        if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
            tensors, source, may_hold_several = read_torch(file, placeholders=True), "state dict of torch", True
        elif head[8:9] == b"{":
            tensors, described = _read_safetensors(file)
            source, may_hold_several = "safetensors" + (" of this program" if described else ""), not described
        elif head.startswith((b"\x89HDF", b"MATLAB 7.3")):
            raise ValueError("HDF5, as of Keras and MATLAB 7.3, is not supported; convert it to .safetensors or .pth")
        elif head.startswith(b"MATLAB"):
            layers, mean = matconvnet.read_layers(file)
            tensors, source = _state_of_named(layers), "MatConvNet's net"
            described = {"preprocessing": PREPROCESSING["paper"] | ({"mean": mean} if mean else {})}
        else:
            layers, generation = caffe.read_layers(file)
            tensors, source, implied = _state_of_named(layers), f"Caffe model ({generation})", "paper"
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"weights {file} cannot be read ({reason_of(error, 160)}); give another file") from None

    details = ""
    if may_hold_several:
        tensors, details = net_in(tensors, file, key)
    elif key is not None:
        raise UserError(f"--key {key}: weights {file} hold a single net; leave --key out")
    if unprintable := [name for name in tensors if not name.isprintable()]:
        raise UserError(f"weights {file} cannot be read (a tensor is named {unprintable[0]!r}); give another file")
    fc = {name for name in tensors if name.startswith("classifier.")}
    if all(tensors[name].isnan().all() for name in fc):  # torchvision's form of files of convolutions only
        tensors = {name: tensor for name, tensor in tensors.items() if name not in fc}
    model, expected = _recognise(file, tensors, net, described.get("model"))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights {file} are damaged: {name} has values that are not finite; give another file")
    if (blocks := model.get("blocks")) and not described:  # the file may have lost the others
        details += f", of the first {blocks} blocks of {model['net']} alone"
    zero = torch.zeros(())  # for the batch counts, which old files lack
    return Imported(
        model=model,
        weights={name: tensors.get(name, zero).to(meta.dtype, copy=True) for name, meta in expected.items()},
        preprocessing=dict(described.get("preprocessing") or PREPROCESSING[preprocessing or implied]),
        source=source + (f", {known}" if known else "") + details,
        sha256=sha256,
        classes=described.get("classes"),
        testing=described.get("testing"),
    )


def write(
    file: Path,
    weights: Mapping[str, Tensor],
    *,
    model: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    classes: list[str] | None,
    testing: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> None:
    """Writes a net atomically as `.safetensors`, `.pth` or `.onnx`.

    A `.safetensors` file has everything that :func:`read` needs. A `.pth` file is a plain state dict, with
    torchvision's keys for A, B, D and E, and cannot describe its input. An `.onnx` file describes it in its metadata
    and cannot be read back.

    Args:
        file: File to write; its suffix selects the format.
        weights: State dict of `VGG`.
        model: Arguments of `architecture`.
        preprocessing: Preprocessing in the form of PREPROCESSING.
        classes: Names of the classes in order.
        testing: S, single_Q, multi_Q and flip of the net's tests.
        dense: Whether an `.onnx` file has the net for images of any size (Section 3.2) instead of crops.

    Raises:
        UserError: the suffix is unknown or has no dense form, the file cannot be written, or ONNX's packages are
            missing.
    """
    if file.suffix not in (".safetensors", ".pth", ".onnx"):
        raise UserError(f"--out {file} must end in .safetensors, .pth or .onnx; choose one of these suffixes")
    if dense and file.suffix != ".onnx":
        raise UserError(f"--dense --out {file} must end in .onnx; choose this suffix, or leave --dense out")
    described = {"model": dict(model), "preprocessing": dict(preprocessing), "classes": classes}
    described |= {"testing": dict(testing)} if testing else {}
    program = None
    if file.suffix == ".onnx":
        net = VGG(architecture(**model)).eval()
        net.load_state_dict(dict(weights))
        program = to_onnx(net, described, dense=dense)
    try:
        with replacing(file) as temporary:
            if program:
                program.save(temporary)
            elif file.suffix == ".pth":
                torch.save(dict(weights), temporary)
            else:
                plain = {key: tensor.contiguous() for key, tensor in weights.items()}
                temporary.touch()
                mode = temporary.stat().st_mode  # the library denies others access to its file
                save_file(plain, temporary, metadata={"format": "pt", _METADATA: json.dumps(described)})
                temporary.chmod(mode)
                _sort_metadata(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"weights {file} cannot be written ({reason_of(error)}); choose another place") from None


def _sort_metadata(file: Path) -> None:
    """Sorts the metadata of a safetensors file, whose random order would change its SHA-256."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the offsets of the tensors would move"
        opened.seek(8)
        opened.write(text.ljust(length))


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    described: dict[str, Any] = json.loads(metadata.get(_METADATA, "{}"))
    if described:  # may be hostile
        if missing := {"net", "classes", "crop", "width"} - described["model"].keys():
            raise ValueError(f"its description of the net lacks {min(missing)}")
        architecture(**described["model"])
        preprocessing, classes = described["preprocessing"], described["classes"]
        colours = [float(part) for key in ("mean", "std") for part in preprocessing[key]]
        if preprocessing["channels"] != "RGB" or preprocessing["range"] != [0, 255] or len(colours) != 6:
            raise ValueError(f"it describes its input as {preprocessing}")
        testing = described.get("testing")
        if testing is not None and set(testing) != {"S", "single_Q", "multi_Q", "flip"}:
            raise ValueError(f"it describes its testing as {testing}")
        if classes is not None and not (isinstance(classes, list) and len(classes) == described["model"]["classes"]):
            raise ValueError("it does not name all its classes")
    return tensors, described


def _recognise(
    file: Path, tensors: Mapping[str, Tensor], net: str | None, described: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the model of a state dict, and the model's state dict on the meta device.

    Raises UserError, which names the nearest net.
    """
    if described and net not in (None, described["net"]):
        raise UserError(
            f"weights {file} are of net {described['net']}, not {net}; leave --net out or give another file"
        )
    mismatches: list[tuple[int, int, str, str]] = []
    for model in [described] if described else _candidates(file, tensors, net):
        with torch.device("meta"):
            expected = VGG(architecture(**model)).state_dict()
        mismatch = _mismatch(tensors, expected)
        if mismatch is None:
            return model, expected
        shared = sum(name in tensors and tensors[name].shape == meta.shape for name, meta in expected.items())
        name = model["net"] + (f" of {model['blocks']} blocks" if model.get("blocks") else "")
        mismatches.append((shared, -len(expected.keys() ^ tensors.keys()), name, mismatch))
    *_, nearest, mismatch = max(mismatches, key=lambda found: found[:2])
    what = f"are not of net {net}" if net else f"match no net of Table 1; nearest is {nearest}"
    what = f"do not fit net {nearest}" if described else what
    raise UserError(f"weights {file} {what}: {mismatch}; give another file")


def _candidates(file: Path, tensors: Mapping[str, Tensor], net: str | None) -> Iterator[dict[str, Any]]:
    """Yields Table 1's columns, or only `net`, with the geometry of these shapes. Raises UserError for other shapes."""
    fc6, fc8, first = (tensors.get(f"{key}.weight") for key in ("classifier.0", "classifier.6", "features.0"))
    convolutions_only = not any(key.startswith("classifier.") for key in tensors)  # the convolutions
    complete = fc6 is not None and fc8 is not None and (fc6.ndim, fc8.ndim) == (2, 2)
    if first is None or first.ndim != 4 or not (convolutions_only or complete):
        raise UserError(
            f"weights {file} match no net of Table 1 (no conv1_1, fc6 and fc8 among {len(tensors)} tensors: "
            f"{', '.join(list(tensors)[:3])}, ...); give a VGG with all three fully-connected layers or none"
        )
    all_blocks = len(facts().architectures["A"])  # as in all columns
    nets = [net] if net else list(facts().architectures)
    for blocks, name in product(range(all_blocks, _MIN_BLOCKS - 1, -1), nets):
        model: dict[str, Any] = {
            "net": name,
            "batch_norm": any(key.endswith("running_mean") for key in tensors),
            "classes": value("classes") if fc8 is None else len(fc8),
            "width": len(first) / architecture(name).layers()[0].shape[0],
        } | ({} if blocks == all_blocks else {"blocks": blocks})
        last = architecture(**model, fully_connected=False)
        if fc6 is None:
            yield model | {"crop": architecture(name).fc6_kernel * last.stride, "fully_connected": False}
        else:
            side = math.isqrt(fc6.shape[1] // last.layers()[-1].shape[0])
            yield model | {"crop": max(1, side) * last.stride}


def _mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Describes the first tensor that is missing, unexpected or of another shape; batch counts may be missing."""
    for name, meta in expected.items():
        if name not in tensors:
            if name.endswith("num_batches_tracked"):
                continue
            return f"{name} is missing"
        if tensors[name].shape != meta.shape:
            return f"{name} is {tuple(tensors[name].shape)} instead of {tuple(meta.shape)}"
    unexpected = sorted(tensors.keys() - expected.keys())
    return f"{unexpected[0]} is unexpected" if unexpected else None


def _state_of_named(layers: caffe.Layers) -> dict[str, Tensor]:
    """Returns the state dict of the column of Table 1 with these layer names. Raises ValueError if none has them."""
    for net in facts().architectures:
        built = architecture(net)
        kernels = {layer.name: layer.kernel for layer in built.layers() if layer.parameters}
        # C and D have the same names but different kernels.
        if kernels.keys() == layers.keys() and all(
            kernel in (None, layers[name][0].shape[-1]) for name, kernel in kernels.items()
        ):
            return caffe.state_of(layers, built)
    raise ValueError(f"its layers match no net of Table 1: {', '.join(layers)}")
