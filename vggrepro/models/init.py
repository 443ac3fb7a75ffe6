"""Random initialisation of nets (Section 3.1)."""

import hashlib
import math
import warnings
from typing import get_args

import torch
from torch import Tensor, nn

from vggrepro.config.settings import Scheme
from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG
from vggrepro.paper import value


@torch.no_grad()
def init_weights(net: VGG, scheme: Scheme, seed: int) -> None:
    """Initialises all parameters and buffers of ``net``; biases become 0, batch norm the identity.

    Schemes:
        paper: N(0, std 0.01). The printed "variance" of 0.01 must be an error, as the next scheme shows.
        paper_literal_variance: N(0, std 0.1), a demonstration: the scores of A reach about 1e8.
        glorot_uniform: Glorot's, which makes the warm start unnecessary by the paper's post-submission remark.
        kaiming: torchvision's: N(0, 2 / fan_out) for convolutions, N(0, std 0.01) for fully-connected layers.

    The draws of a layer depend only on ``seed``, its name and its shape, so the same layer starts alike in every net
    and on every device. Torch's global generator is not used.

    Raises:
        UserError: the scheme is unknown.
    """
    if scheme not in get_args(Scheme):
        raise UserError(f"init scheme {scheme!r} is unknown; choose from {', '.join(get_args(Scheme))}")
    if scheme == "paper_literal_variance":
        warnings.warn("init scheme paper_literal_variance overflows the loss; it is a demonstration", stacklevel=2)
    for name, module in net.named_layers().items():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            continue
        assert isinstance(module, nn.Conv2d | nn.Linear)
        assert module.bias is not None
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        module.weight.copy_(_draw(module, scheme, generator))
        nn.init.zeros_(module.bias)


def _draw(module: nn.Conv2d | nn.Linear, scheme: Scheme, generator: torch.Generator) -> Tensor:
    weight = torch.empty(module.weight.shape)
    if scheme == "glorot_uniform":
        return nn.init.xavier_uniform_(weight, generator=generator)
    if scheme == "kaiming" and isinstance(module, nn.Conv2d):
        return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
    std = math.sqrt(value("init_variance_printed")) if scheme == "paper_literal_variance" else value("init_std")
    return nn.init.normal_(weight, 0, std, generator=generator)
