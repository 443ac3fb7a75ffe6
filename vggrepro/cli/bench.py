"""Verbs that measure our code beside the usual way, interleaved in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vggrepro.cli.options import JsonOption, SetOption, integers, show

if TYPE_CHECKING:
    from vggrepro.config.settings import Config

NetOption = Annotated[str, typer.Option(help="A column of Table 1.")]
ImagesOption = Annotated[int, typer.Option("--images", "--pictures", min=1, help="Number of validation images.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Number of timed turns per implementation.")]


def dense(
    net: NetOption = "D",
    scales: Annotated[str | None, typer.Option(help="Q values in px; default: three, as in Section 4.2.")] = None,
    images: ImagesOption = 500,
    rounds: RoundsOption = 5,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure dense evaluation: images/s beside one image at a time and torchvision's centre crop.

    By default the geometry suits a CPU (crop 64, an eighth of the width), and the images are the built-in digits.
    """
    from vggrepro.bench.dense import run
    from vggrepro.config.parsing import override

    config = override(_small(net), changes, Path("bench dense"))
    _show(run(config, integers(scales) if scales else config.multi_Q, images, rounds), as_json)


def features(
    net: NetOption = "D",
    scales: Annotated[
        str | None, typer.Option(help="Q values in px; default: the three of Appendix B for Caltech.")
    ] = None,
    images: ImagesOption = 500,
    rounds: RoundsOption = 5,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure feature extraction: images/s beside one image at a time and one centre crop per image.

    By default the geometry suits a CPU (crop 64, an eighth of the width), and the images are the built-in digits.
    """
    from vggrepro.bench.features import run
    from vggrepro.config.parsing import override
    from vggrepro.evaluation.feature_spec import feature_specs

    config = override(_small(net), changes, Path("bench features"))
    Q = integers(scales) if scales else feature_specs("caltech101", config)[0].Q
    _show(run(config, Q, images, rounds), as_json)


def loader(
    source: Annotated[str, typer.Argument(help="Folder or archives with images, or builtin:digits.")],
    S: Annotated[str, typer.Option("--S", help="Lowest and highest shorter side, px.")] = "256,512",
    crop: Annotated[int, typer.Option(min=1, help="Side of the training crop, px.")] = 224,
    images: Annotated[int, typer.Option("--images", "--pictures", min=1, help="Number of training images.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    batches: Annotated[int, typer.Option(min=1, help="Timed batches per turn.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns per implementation.")] = 5,
    threads: Annotated[
        str, typer.Option(help="Numbers of decoding threads to measure, e.g. 1,2, in one process and in several.")
    ] = "",
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure loading of training images: images/s per core beside torchvision's ImageFolder in a DataLoader."""
    from vggrepro.bench.loader import run
    from vggrepro.config.parsing import override
    from vggrepro.config.settings import Config, Data, Model

    low, high = (integers(S, "--S") * 2)[:2]
    scale = low if low == high else (low, high)
    plain = Config(model=Model(net="D", crop=crop), data=Data(root=source, S=scale))
    config = override(plain, changes, Path("bench loader"))
    numbers = integers(threads, "--threads") if threads else ()
    _show(run(config, images, batch, batches, rounds, numbers), as_json)


def step(
    nets: Annotated[str, typer.Option(help="Columns of Table 1, comma-separated.")] = "A,D,E",
    batches: Annotated[
        str | None, typer.Option(help="Batch sizes; default: 32,64,128,256 on a GPU, 8,32 on a CPU.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per turn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns per implementation.")] = 7,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure the training step: images/s beside torchvision's reference recipe and a bare PyTorch step.

    By default the geometry is the paper's, in bf16 and compiled, on a GPU, and a small one in fp32 on a CPU.
    """
    import torch

    from vggrepro.bench.step import plain, run
    from vggrepro.config.parsing import override

    config = override(plain(), changes, Path("bench step"))
    usual = (32, 64, 128, 256) if torch.cuda.is_available() else (8, 32)
    sizes = integers(batches, "--batches") if batches else usual
    _show(run(config, tuple(nets.split(",")), sizes, steps, rounds), as_json)


def profile(
    net: NetOption = "D",
    steps: Annotated[int, typer.Option(min=1, help="Steps per measurement.")] = 10,
    top: Annotated[int, typer.Option(min=1, help="Number of kernels to list, the longest first.")] = 10,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Profile the training step: kernels, gaps between them, launches, time on the host.

    Defaults are those of `bench step`, with the paper's batch on a GPU.
    """
    from vggrepro.bench.profile import run
    from vggrepro.bench.step import plain
    from vggrepro.config.parsing import override

    _show(run(override(plain(net), changes, Path("bench profile")), steps, top), as_json)


def comm(
    net: NetOption = "D",
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per turn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns per exchange.")] = 5,
    backend: Annotated[
        Literal["nccl", "gloo"] | None, typer.Option(help="Default: nccl on GPUs. gloo allows several ranks per GPU.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure the exchange of gradients: bytes and steps/s of factor exchange beside DDP; run it under torchrun."""
    import torch

    from vggrepro.bench.comm import run
    from vggrepro.bench.step import small
    from vggrepro.config.parsing import override
    from vggrepro.config.settings import Config, Model

    plain = Config(model=Model(net=net)) if torch.cuda.is_available() else small(net)
    found = run(override(plain, changes, Path("bench comm")), steps, rounds, backend)
    if found is not None:  # the first rank
        _show(found, as_json)


def _small(net: str) -> Config:
    """Returns settings of a small geometry on the built-in images, for a CPU."""
    from vggrepro.config.settings import Config, Data, Model

    return Config(model=Model(net=net, classes=10, crop=64, width=0.125), data=Data(root="builtin:digits", S=(73, 146)))


def _show(found: dict[str, Any], as_json: bool) -> None:
    lines = [f"  {key:40} {item}" for key, item in found["details"].items()]
    if "ours" in found:  # a profile has no other way beside it
        ceiling = f", ceiling {found['ceiling']:.4g}" if found["ceiling"] else ""
        ratio = f"ratio {found['ratio']:.3g}{ceiling}"
        line = f"{found['name']}: ours {found['ours']:.4g}, usual {found['usual']:.4g} {found['unit']}, {ratio}"
        lines.insert(0, line)
    show(found, lines, as_json)
