"""Averaging of gradients over ranks (Section 3.3: "the gradient batches are averaged").

`ddp` all-reduces every gradient in float32, `bf16` in bfloat16. `factor` all-reduces only the convolutions' gradients.
The gradient of a fully-connected layer is the product G^T X of its output gradients G and inputs X over the global
batch. For 256 images the factors are far smaller than the product, and 89 % of a net's weights are in these layers. So
the ranks gather the factors, and each rank computes the full product: the same sum, up to rounding.

Ranks with the same kind of processor compute bitwise the same product. Ranks with different kinds may round it
differently, so that their weights would diverge, unlike with an all-reduce. Therefore `train.comm: auto` does not
choose `factor` for them, and `Trainer.require_equal_nets` compares the weights at each validation.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from vggrepro.models.vgg import VGG
from vggrepro.ranks.topology import Topology
from vggrepro.training.throughput import Comm

_BUCKET_MIB = 25  # torch's default; the conv gradients of D fill two


class Exchange:
    """Exchange of a net's gradients between ranks; a single rank exchanges nothing (`comm` is None).

    In `factor` mode, :meth:`finish` instead of autograd sets the gradients of the fully-connected layers.
    """

    def __init__(self, net: VGG, topology: Topology, comm: Comm | None) -> None:
        self.payload_bytes = 0
        """Bytes in this rank's all-reduces and all-gathers so far."""
        self.settled = topology.world <= 2
        """Whether the order in which gradients are summed is final.

        DDP rearranges its buckets after the first pass, and a gradient's position decides at which rank a ring starts.
        With more than two ranks this changes the rounding, and a resumed run has its first pass in the middle.
        """
        self.forward: nn.Module = net
        self._world = topology.world
        self._last = True
        self._factors: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {}
        self._gathers: list[tuple[nn.Linear, list[Tensor], list[distributed.Work]]] = []
        if topology.world == 1:
            return
        for layer in net.classifier if comm == "factor" else ():
            if isinstance(layer, nn.Linear):
                self._factors[layer] = []
                layer.requires_grad_(False)
                layer.register_forward_hook(self._after_forward)
        # Gradients are views of the buckets, which saves a copy.
        self.forward = DistributedDataParallel(net, bucket_cap_mb=_BUCKET_MIB, gradient_as_bucket_view=True)
        average = default_hooks.bf16_compress_hook if comm == "bf16" else default_hooks.allreduce_hook

        def counted(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
            self.payload_bytes += bucket.buffer().numel() * (2 if comm == "bf16" else bucket.buffer().itemsize)
            return average(None, bucket)  # type: ignore[arg-type]

        self.forward.register_comm_hook(None, counted)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Wraps the passes of a micro-batch; the last micro-batch of a step exchanges the gradients."""
        self._last = last
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def finish(self) -> None:
        """Completes the averages over ranks; call it after the step's last backward pass."""
        for layer, (inputs, outputs), works in self._gathers:
            for work in works:
                work.wait()
            # Each rank's loss is the mean over its local rows, so the sum is divided by the ranks as in DDP.
            scaled = outputs / self._world
            layer.weight.grad = (scaled.t() @ inputs).to(layer.weight.dtype)
            layer.bias.grad = scaled.sum(dim=0, dtype=layer.bias.dtype)
        self._gathers.clear()

    def _after_forward(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:  # not in validation
            assert isinstance(layer, nn.Linear)
            features = inputs[0].detach()
            if torch.is_autocast_enabled(features.device.type):
                features = features.to(output.dtype)  # as autocast does for the layer
            output.register_hook(lambda gradient: self._after_backward(layer, features, gradient))

    def _after_backward(self, layer: nn.Linear, features: Tensor, gradient: Tensor) -> None:
        parts = self._factors[layer]
        parts.append((features, gradient))
        if not self._last:
            return
        factors = [torch.cat(factor).contiguous() for factor in zip(*parts, strict=True)]
        parts.clear()
        gathered, works = [], []
        for factor in factors:  # overlaps with the backward pass through the convolutions
            full = factor.new_empty((factor.shape[0] * self._world, *factor.shape[1:]))
            work = distributed.all_gather_into_tensor(full, factor, async_op=True)
            assert work is not None
            self.payload_bytes += full.nbytes
            gathered.append(full)
            works.append(work)
        self._gathers.append((layer, gathered, works))
