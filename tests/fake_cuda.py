"""Fake CUDA device for machines without a GPU: tensors have a shape, a type and a device, but no values.

torch's fake tensors compute the metadata of each result. They refuse operands on two devices and everything that needs
a value on the host: `.item()`, `float()`, `nonzero`. This module replaces the parts that need a driver: autograd's
engine, which needs a context on the device; fused SGD, which has no fake kernel; pinned memory and streams. It records
every copy between host and device, and whether the host waits for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


@dataclass(frozen=True)
class Copy:
    """Copy between host and device."""

    to: str
    bytes: int
    waits: bool
    """Whether the host waits for it: unless the copy is non-blocking and the host's memory is pinned."""


@dataclass
class DeviceLog:
    """Operations that the fake device has received."""

    copies: list[Copy] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    """Copies of more than one element into another memory layout on the device: operation and shape."""
    types: dict[str, set[torch.dtype]] = field(default_factory=dict)
    """Floating-point types of the operands, by name of the operation."""
    strided: list[str] = field(default_factory=list)
    """Shapes of convolution inputs that are not channels-last."""
    synchronised: int = 0
    """Number of waits for a stream or for the device."""

    def clear(self) -> None:
        """Forgets all operations."""
        self.__init__()  # type: ignore[misc]


@contextmanager
def fake_cuda() -> Iterator[DeviceLog]:
    """Makes `CUDA` a device on which tensors can be created and computed, without values; yields its log."""
    log = DeviceLog()
    stream = mock.MagicMock(name="stream")
    stream.synchronize = lambda: _count_wait(log)
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    cudnn = torch.backends.cudnn
    chosen = cudnn.benchmark, cudnn.deterministic
    hooks: dict[tuple[Any, int], list[Callable[[Tensor], Any]]] = {}

    def register_hook(tensor: Tensor, hook: Callable[[Tensor], Any]) -> None:
        hooks.setdefault((tensor.grad_fn, tensor.output_nr), []).append(hook)

    def backward(loss: Tensor) -> None:
        _backward(loss, hooks)
        hooks.clear()

    with ExitStack() as entered:
        for name, stand_in in {
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch._C._select_conv_backend": lambda *_, **__: torch._C._ConvBackend.Cudnn,
            "torch.cuda.current_stream": lambda *_: stream,
            "torch.cuda.synchronize": lambda *_: _count_wait(log),
            "torch.Tensor.backward": backward,
            "torch.Tensor.register_hook": register_hook,
        }.items():
            entered.enter_context(mock.patch(name, stand_in))
        fake = entered.enter_context(FakeTensorMode(allow_fallback_kernels=False))
        watching = entered.enter_context(_DispatchRecorder(fake, log))
        entered.enter_context(mock.patch("torch.Tensor.pin_memory", _method(watching.pin)))
        try:
            yield log
        finally:
            for switch, allowed in zip(switches, before, strict=True):
                switch.allow_tf32 = allowed
            cudnn.benchmark, cudnn.deterministic = chosen


def on_fake_cuda(make: Callable[[], nn.Module], layout: torch.memory_format = torch.channels_last) -> Any:
    """Builds a module on the fake device in a memory layout, because `Module.to` cannot move fake tensors."""
    with torch.device("meta"):
        module = make()
    for part in module.modules():
        for name, tensor in part.named_parameters(recurse=False):
            weights = torch.empty(tensor.shape, device=CUDA)
            weights = weights.contiguous(memory_format=layout) if weights.dim() == 4 else weights
            setattr(part, name, nn.Parameter(weights))
    return module


def _method(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps a bound method in a function that a class accepts as its method."""

    def method(tensor: Tensor) -> Tensor:
        return function(tensor)

    return method


def _count_wait(log: DeviceLog) -> None:
    log.synchronised += 1


class _DispatchRecorder(TorchDispatchMode):
    """Records every operation before the fake tensors handle it."""

    def __init__(self, fake: FakeTensorMode, log: DeviceLog) -> None:
        super().__init__()
        self._fake, self._log = fake, log
        self._pinned: list[Tensor] = []

    def pin(self, tensor: Tensor) -> Tensor:
        """Replaces `Tensor.pin_memory`."""
        assert tensor.device.type == "cpu", "only host memory can be pinned"
        if self._is_pinned(tensor):
            return tensor
        with self:
            pinned = torch.empty_like(tensor)
        self._pinned.append(pinned)
        return pinned

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        pinned = options.pop("pin_memory", None)
        if function is aten._fused_sgd_.default:
            assert {tensor.device for tensor in tensors} == {CUDA}, "fused SGD with tensors on several devices"
            assert {tensor.dtype for tensor in tensors} == {torch.float32}
            return None
        self._record(function, arguments, options, tensors)
        result = function(*arguments, **options)
        if pinned:
            self._pinned.append(result)
        return result

    def _record(self, function: Any, arguments: Any, options: Any, tensors: list[Tensor]) -> None:
        log, name = self._log, function.overloadpacket.__name__
        if function is aten._to_copy.default:
            source, target = arguments[0], torch.device(options.get("device") or arguments[0].device)
            self._record_copy(source, target, None, options.get("non_blocking", False))
        elif function is aten.copy_.default:
            target, source, *rest = arguments
            waits = not (rest[0] if rest else options.get("non_blocking", False))
            self._record_copy(source, target.device, target, not waits)
        elif function in (aten.clone.default, aten.contiguous.default) and arguments[0].numel() > 1:
            log.layouts.append(f"{name} {tuple(arguments[0].shape)}")
        elif name == "convolution" and arguments[0].stride(1) != 1:
            log.strided.append(f"{tuple(arguments[0].shape)}")
        floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        log.types.setdefault(name, set()).update(floats)

    def _record_copy(self, source: Tensor, target: torch.device, into: Tensor | None, non_blocking: bool) -> None:
        if source.device.type == target.type:
            return
        on_host = into if target.type == "cpu" else source
        waits = not (non_blocking and on_host is not None and self._is_pinned(on_host))
        self._log.copies.append(Copy(target.type, source.nbytes, waits))

    def _is_pinned(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()._cdata
        return any(pinned.untyped_storage()._cdata == storage for pinned in self._pinned)


def _backward(loss: Tensor, hooks: dict[tuple[Any, int], list[Callable[[Tensor], Any]]]) -> None:
    """Runs autograd's graph: each node once all its gradients are there, in the recorded types and shapes."""
    order: list[Any] = []
    seen = {loss.grad_fn}
    path = [(loss.grad_fn, iter(loss.grad_fn.next_functions))]  # type: ignore[union-attr]
    while path:
        node, rest = path[-1]
        child = next((child for child, _ in rest if child is not None and child not in seen), None)
        if child is None:
            order.append(node)
            path.pop()
        else:
            seen.add(child)
            path.append((child, iter(child.next_functions)))
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        given = gradients.pop(node)
        for place, gradient in given.items():
            for hook in hooks.get((node, place), ()):
                assert hook(gradient) is None, "a hook changed the gradient"
        results = node(*(given.get(place) for place in range(len(node._input_metadata))))
        results = results if isinstance(results, tuple) else (results,)
        for (target, place), gradient in zip(node.next_functions, results, strict=False):
            if target is None or gradient is None:
                continue
            meta = target._input_metadata[place]
            part = gradient.sum_to_size(meta.shape).to(meta.dtype)
            sums = gradients.setdefault(target, {})
            sums[place] = sums[place] + part if place in sums else part
