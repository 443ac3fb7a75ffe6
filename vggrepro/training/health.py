"""Early checks for nets that cannot learn."""

import math

import torch
from torch import Tensor

from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG
from vggrepro.ranks.collectives import sum_over_ranks

VANISHED, EXPLODED = 1e-5, 1e2
"""Limits of the root mean square of the class scores at random initialisation, between which a net can learn.

With the paper's N(0, 0.01): A 5e-4, B 2e-5, D 1e-6, E 1e-7, in agreement with the paper (only A and B learn). With a
literal variance of 0.01: 5e7 and more. Glorot and kaiming: 0.05 to 2.
"""
STALL_BAND = 0.02
_ADVICE = "start from a trained A (run.parent), or set model.init=glorot_uniform under another run.name"


@torch.inference_mode()
def activation_scales(net: VGG, images: Tensor) -> dict[str, float]:
    """Computes the root mean square of each layer's output, by layer name, over all ranks' images without dropout."""
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
    """Raises UserError with the reason if a net cannot learn from its random initialisation."""
    last = list(scales)[-1]
    scores = scales[last]
    if VANISHED <= scores <= EXPLODED:
        return
    verb = "vanish" if scores < VANISHED else "explode"
    trail = ", ".join(f"{name} {scale:.1e}" for name, scale in scales.items() if name in (*list(scales)[::4], last))
    raise UserError(
        f"activations of {net.architecture.name} {verb} at initialisation (root mean square of {trail}; class scores "
        f"must be in [{VANISHED:g}, {EXPLODED:g}]), so it cannot learn: {_ADVICE}, or run `vggrepro train --force`"
    )


def check_learning(loss: float, classes: int, step: int, stall_after: int) -> None:
    """Raises UserError if the loss is still that of guessing after `stall_after` steps (0: never)."""
    if stall_after and step >= stall_after and abs(loss - math.log(classes)) < STALL_BAND:
        raise UserError(
            f"loss is {loss:.4f} after {step} iterations, within {STALL_BAND} of guessing (ln {classes} = "
            f"{math.log(classes):.4f}): the net does not learn; {_ADVICE}, or set train.stall_after higher"
        )
