"""ONNX export by torch's exporter, which needs the packages onnx and onnxscript (the extra `onnx`)."""

import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vggrepro.errors import UserError
from vggrepro.models.dense import score_map
from vggrepro.models.table1 import require_class_scores
from vggrepro.models.vgg import VGG

_MAX_BYTES = 2**31  # of a protocol buffer


class _Dense(nn.Module):
    """The net on full images (Section 3.2): class scores, and the score map that they average."""

    def __init__(self, net: VGG) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores_NCHW = score_map(self.net, images)
        return scores_NCHW.mean(dim=(2, 3)), scores_NCHW


def to_onnx(net: VGG, described: Mapping[str, Any], *, dense: bool) -> torch.onnx.ONNXProgram:
    """Exports a net in eval mode as fp32 ONNX, with `described` as JSON and the `form` in the metadata.

    The input `images`, after subtraction of the mean and division by the standard deviation, has shape (batch, 3, crop,
    crop), in the dense form (batch, 3, height, width) with sides of at least crop. The outputs are logits: `scores`
    (batch, classes), in the dense form also the `score_map` (batch, classes, height // stride - fc6_kernel + 1,
    width // stride - fc6_kernel + 1) that they average. Raises UserError if packages or class scores are missing, or
    the net is too large for an ONNX file.
    """
    require_class_scores(net.architecture)
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise UserError(f"ONNX export needs {' and '.join(missing)}; install with: pip install {' '.join(missing)}")
    if (size := sum(4 * tensor.numel() for tensor in net.state_dict().values())) >= _MAX_BYTES:
        raise UserError(f"the net's {size} bytes are too many for an ONNX file; export it as .safetensors")
    crop, batch = net.architecture.crop, torch.export.Dim("batch")
    axes = {0: batch}
    if dense:
        axes |= {axis: torch.export.Dim(name, min=crop) for axis, name in ((2, "height"), (3, "width"))}
    # No axis has length 1 and height and width differ, or the exporter would specialise the net on it.
    images = torch.zeros(2, 3, *((crop + 1, crop + 2) if dense else (crop, crop)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its internals
        program = torch.onnx.export(
            _Dense(net).eval() if dense else net,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["scores", "score_map"] if dense else ["scores"],
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["form"] = "dense" if dense else "crop"
    program.model.metadata_props.update({key: json.dumps(item) for key, item in described.items()})
    return program
