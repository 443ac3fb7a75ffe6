"""Arithmetic of nets on a device: float32, TF32 or bfloat16, and the choice of cuDNN's kernels."""

import torch

from vggrepro.config.settings import Cudnn, Precision


def set_arithmetic(device: torch.device, precision: Precision, cudnn: Cudnn = "deterministic") -> None:
    """Sets process-wide switches on CUDA before the first computation; does nothing on a CPU.

    With `benchmark`, cuDNN times its kernels for each new shape and uses the fastest, which may differ in the next
    process. With `deterministic`, it always uses the same kernels, which add in the same order each time.
    """
    if device.type == "cuda":
        # Torch's newer `fp32_precision` must not be mixed with these older switches, which its compiler reads.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = cudnn == "benchmark"
        torch.backends.cudnn.deterministic = cudnn == "deterministic"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns the context of a forward pass: bfloat16 if that is the precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
