"""How ranks average their gradients (Section 3.3: "the gradient batches are averaged").

`ddp` all-reduces every gradient in float32, `bf16` in bfloat16. `factor` does so for the convolutions only. A
fully-connected layer's gradient is a product, G^T X of its output gradients G and its inputs X over the global batch,
and for 256 images the factors are far smaller than the product: 89 % of a net's weights are here. So the ranks gather
the factors and each forms the whole product: the same sum, up to rounding.

Ranks of one kind of processor form bitwise the same product. Ranks of several kinds may round it differently, and their
weights would drift apart, which an all-reduce cannot do: `train.comm: auto` does not choose `factor` there, and
`Trainer.require_one_net` looks at each validation.
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
    """The gradients of a net on several ranks; on a single one it does nothing.

    Args:
        net: in `factor` mode :meth:`finish` sets the gradients of its fully-connected layers, and autograd does not.
        topology: this rank's place among the others.
        comm: see the module; None on a single rank.
    """

    def __init__(self, net: VGG, topology: Topology, comm: Comm | None) -> None:
        self.payload_bytes = 0
        """Bytes this rank has handed to all-reduces and all-gathers so far."""
        self.settled = topology.world <= 2
        """Whether gradients are summed in the order that they will have from now on.

        DDP lays its buckets out anew after its first pass, and where a gradient lies decides which rank's part a ring
        begins with. Of more than two ranks that is another rounding, and a run that goes on after an interruption has
        a first pass in the middle.
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
        # Buckets are views of the gradients: one copy less.
        self.forward = DistributedDataParallel(net, bucket_cap_mb=_BUCKET_MIB, gradient_as_bucket_view=True)
        average = default_hooks.bf16_compress_hook if comm == "bf16" else default_hooks.allreduce_hook

        def counted(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
            self.payload_bytes += bucket.buffer().numel() * (2 if comm == "bf16" else bucket.buffer().itemsize)
            return average(None, bucket)  # type: ignore[arg-type]

        self.forward.register_comm_hook(None, counted)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the passes of one micro-batch: gradients are exchanged with the step's last one."""
        self._last = last
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def finish(self) -> None:
        """After the step's last backward pass: every gradient is the average over ranks."""
        for layer, (inputs, outputs), works in self._gathers:
            for work in works:
                work.wait()
            # each rank's gradient is of the mean over its own rows, so the sum is divided as DDP divides
            scaled = outputs / self._world
            layer.weight.grad = (scaled.t() @ inputs).to(layer.weight.dtype)
            layer.bias.grad = scaled.sum(dim=0, dtype=layer.bias.dtype)
        self._gathers.clear()

    def _after_forward(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:  # not in validation
            assert isinstance(layer, nn.Linear)
            given = inputs[0].detach()
            if torch.is_autocast_enabled(given.device.type):
                given = given.to(output.dtype)  # what the layer multiplied
            output.register_hook(lambda gradient: self._after_backward(layer, given, gradient))

    def _after_backward(self, layer: nn.Linear, given: Tensor, gradient: Tensor) -> None:
        parts = self._factors[layer]
        parts.append((given, gradient))
        if not self._last:
            return
        factors = [torch.cat(factor).contiguous() for factor in zip(*parts, strict=True)]
        parts.clear()
        gathered, works = [], []
        for factor in factors:  # while the backward pass goes on through the convolutions
            whole = factor.new_empty((factor.shape[0] * self._world, *factor.shape[1:]))
            work = distributed.all_gather_into_tensor(whole, factor, async_op=True)
            assert work is not None
            self.payload_bytes += whole.nbytes
            gathered.append(whole)
            works.append(work)
        self._gathers.append((layer, gathered, works))
