"""Layer arithmetic, notation and its errors, summaries."""

import io
import json

import pytest
from rich.console import Console

from vggrepro.errors import UserError
from vggrepro.models.summary import render, summarise
from vggrepro.models.table1 import architecture
from vggrepro.paper import facts

NETS = ["A", "A-LRN", "B", "C", "D", "E"]


def test_multiply_adds_at_224() -> None:
    billions = [round(architecture(net).multiply_adds / 1e9, 3) for net in NETS]
    assert billions == [7.609, 7.609, 11.308, 11.771, 15.470, 19.632]


def test_layers_of_c() -> None:
    layers = {layer.name: layer for layer in architecture("C").layers()}
    assert list(layers) == [
        *["conv1_1", "conv1_2", "pool1", "conv2_1", "conv2_2", "pool2", "conv3_1", "conv3_2", "conv3_3", "pool3"],
        *["conv4_1", "conv4_2", "conv4_3", "pool4", "conv5_1", "conv5_2", "conv5_3", "pool5", "fc6", "fc7", "fc8"],
    ]
    assert (layers["conv3_3"].kernel, layers["conv3_3"].shape) == (1, (256, 56, 56))
    assert [layers[f"pool{b}"].shape for b in range(1, 6)] == [
        *[(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    ]
    assert layers["conv3_3"].parameters == 256 * 256 + 256
    assert layers["conv3_3"].multiply_adds == 256 * 256 * 56 * 56
    assert [layers[fc].parameters for fc in ("fc6", "fc7", "fc8")] == [102_764_544, 16_781_312, 4_097_000]


def test_lrn_and_batch_norm_have_rows() -> None:
    layers = architecture("A-LRN", batch_norm=True).layers()
    assert [(layer.name, layer.key) for layer in layers[:5]] == [
        ("conv1_1", "features.0"),
        ("bn1_1", "features.1"),
        ("lrn1_1", "features.3"),
        ("pool1", "features.4"),
        ("conv2_1", "features.5"),
    ]


def test_a_custom_net() -> None:
    net = architecture("mine", layers=[["conv3-64", "LRN"], ["conv5-128"]], crop=12, classes=10, width=0.25)
    layers = [(layer.kind, layer.kernel, layer.shape[0]) for layer in net.layers()[:5]]
    assert layers == [("conv", 3, 16), ("lrn", None, 16), ("pool", 2, 16), ("conv", 5, 32), ("pool", 2, 32)]
    assert (net.stride, net.fc6_kernel, net.fc_units, net.weight_layers) == (4, 3, 1024, 5)
    assert net.layers()[3].parameters == 5 * 5 * 16 * 32 + 32


@pytest.mark.parametrize("net", NETS)
def test_the_first_blocks_have_the_nets_layers_and_the_papers_last_map(net: str) -> None:
    """Three blocks at a quarter of the crop have the channels and kernels of Table 1, and fc6 of 7x7."""
    paper, small = architecture(net), architecture(net, blocks=3, crop=56)
    assert (small.stride, small.fc6_kernel, small.fc6_kernel == paper.fc6_kernel) == (8, 7, True)
    before = [(layer.name, layer.kernel, layer.shape[0]) for layer in small.layers() if layer.kind != "fc"]
    assert before == [(layer.name, layer.kernel, layer.shape[0]) for layer in paper.layers()][: len(before)]
    assert before[-1][0] == architecture(net, blocks=3, fully_connected=False).feature_layer == "pool3"
    for side in (224, 256, 288, 352, 384, 416, 512):
        assert small.places(side // 4, side // 4) == paper.places(side, side)


def test_all_five_blocks_are_the_default() -> None:
    assert architecture("D", blocks=5) == architecture("D")
    custom = architecture("x", layers=[["conv3-8"]] * 6, blocks=2, crop=8)
    assert (len(custom.blocks), custom.fc6_kernel) == (2, 2)


def test_width_rounds_and_leaves_at_least_a_unit() -> None:
    net = architecture("A", width=0.001)
    assert [layer.shape[0] for layer in net.layers() if layer.kind == "conv"] == [1] * 8
    assert net.fc_units == 4


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ("a-lrn", {}, "net 'a-lrn' is not in Table 1; did you mean A-LRN?"),
        ("resnet", {}, "choose from A, A-LRN, B, C, D, E"),
        ("x", {"layers": [["conv-64"]]}, "layer 'conv-64' cannot be read"),
        ("x", {"layers": [["conv4-64"]]}, "layer 'conv4-64' needs an odd kernel"),
        ("x", {"layers": [["conv3-0"]]}, "layer 'conv3-0' has no channels"),
        ("x", {"layers": [["LRN", "conv3-8"]]}, "must have a convolution directly before LRN"),
        ("x", {"layers": [["conv3-8", "LRN", "LRN"]]}, "must have a convolution directly before LRN"),
        ("x", {"layers": [[]]}, "must have at least one convolution per block"),
        ("x", {"layers": []}, "must have at least one block"),
        ("D", {"crop": 225}, "crop 225 .* positive multiple of 32, because .* use 224"),
        ("D", {"crop": 0}, "crop 0 .* use 32"),
        ("D", {"crop": -32}, "crop -32 .* use 32"),
        ("D", {"crop": 100, "blocks": 3}, "crop 100 .* positive multiple of 8, because 3 max-pools halve it; use 96"),
        ("D", {"blocks": 6}, "blocks 6 must be from 1 to 5, the blocks of net D"),
        ("D", {"blocks": 0}, "blocks 0 must be from 1 to 5"),
        ("x", {"layers": [["conv3-8"]], "blocks": 2}, "blocks 2 must be from 1 to 1"),
        ("D", {"classes": 0}, "classes 0"),
        ("D", {"width": 0.0}, "width 0.0"),
        ("D", {"width": float("nan")}, "width nan"),
        ("D", {"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\); the paper's is 0.5"),
    ],
)
def test_mistakes_are_named(net: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        architecture(net, **options)
    assert "\n" not in str(error.value)


def test_summary_is_json_with_the_printed_figures() -> None:
    entries = json.loads(json.dumps(summarise([architecture(net) for net in NETS])))
    assert [entry["net"] for entry in entries] == NETS
    assert {entry["net"]: entry["parameters"] for entry in entries} == facts().parameters
    assert {entry["net"]: entry["parameters_printed"] for entry in entries} == facts().parameters_printed_millions
    for entry in entries:
        assert entry["multiply_adds"] == sum(layer["multiply_adds"] for layer in entry["layers"])


def test_summary_prints_no_figure_of_the_paper_for_another_net() -> None:
    others = [architecture("A", width=0.5), architecture("A", batch_norm=True), architecture("A", layers=[["conv3-8"]])]
    others.append(architecture("A", blocks=3, crop=56))
    assert [entry["parameters_printed"] for entry in summarise(others)] == [None] * 4


def test_render() -> None:
    def text(*nets: str) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(render([architecture(net) for net in nets]))
        return console.file.getvalue()

    assert all(part in text("D") for part in ("138,357,544", "138 million parameters", "conv5_3"))
    both = text("A", "E")
    assert "132,863,336" in both
    assert "19.632" in both
