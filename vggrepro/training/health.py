"""Nets that cannot learn, found early instead of after days."""

import math

import torch
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG
from vggrepro.ranks.collectives import sum_over_ranks

VANISHED, EXPLODED = 1e-5, 1e2
"""Root mean squares of the class scores at random initialisation between which a net can start.

With the paper's N(0, 0.01): A 5e-4, B 2e-5, D 1e-6, E 1e-7, which is its story (A and B learn, the deeper ones do not).
With its variance of 0.01 taken literally: 5e7 and more. Glorot and kaiming: 0.05 to 2.
"""
STALL_BAND = 0.02
_ADVICE = "start from a trained A (run.parent), or set model.init=glorot_uniform under another run.name"


@torch.inference_mode()
def activation_scales(net: VGG, images: Tensor) -> dict[str, float]:
    """Root mean square of each layer's output, by the paper's names, over all ranks' images and without dropout."""
    scales: dict[str, Tensor] = {}

    def hook(name: str, output: Tensor) -> None:
        scales[name] = output.float().square().mean()

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, layer in net.named_layers().items()
    ]
    training = net.training
    net.eval()(images)
    net.train(training)
    for handle in handles:
        handle.remove()
    world = sum_over_ranks(torch.ones((), device=images.device))
    means = sum_over_ranks(torch.stack(list(scales.values()))) / world
    return dict(zip(scales, means.sqrt().tolist(), strict=True))


def check_start(net: VGG, scales: dict[str, float]) -> None:
    """Refuses a random initialisation under which nothing can be learnt. Raises UserError with the reason."""
    last = list(scales)[-1]
    scores = scales[last]
    if VANISHED <= scores <= EXPLODED:
        return
    what = "vanish" if scores < VANISHED else "explode"
    trail = ", ".join(f"{name} {scale:.1e}" for name, scale in scales.items() if name in (*list(scales)[::4], last))
    raise UserError(
        f"activations of {net.architecture.name} {what} at initialisation (root mean square of {trail}; class scores "
        f"must lie between {VANISHED:g} and {EXPLODED:g}), so it cannot learn: {_ADVICE}, or run "
        f"`vggrepro train --force`"
    )


def check_learning(loss: float, classes: int, step: int, stall_after: int) -> None:
    """Stops a run whose loss is still that of guessing after `stall_after` steps (0: never). Raises UserError."""
    if stall_after and step >= stall_after and abs(loss - math.log(classes)) < STALL_BAND:
        raise UserError(
            f"loss is {loss:.4f} after {step} iterations, within {STALL_BAND} of guessing (ln {classes} = "
            f"{math.log(classes):.4f}): the net does not learn; {_ADVICE}, or set train.stall_after higher"
        )
