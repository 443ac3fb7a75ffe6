"""The arithmetic of nets on a device: float32, TF32 or bfloat16, and whose kernels convolve."""

import torch

from vggrepro.config.settings import Cudnn, Precision


def set_arithmetic(device: torch.device, precision: Precision, cudnn: Cudnn = "deterministic") -> None:
    """Sets what holds for the whole process on CUDA; to be called before the work begins. Nothing on a CPU.

    With `benchmark` cuDNN times its kernels at the first sight of a shape and keeps the fastest, which need not be the
    same in the next process; `deterministic` are always the same ones, of those that add in the same order each time.
    """
    if device.type == "cuda":
        # The switches of old: torch's newer `fp32_precision` must not be mixed with them, and its compiler reads these.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = cudnn == "benchmark"
        torch.backends.cudnn.deterministic = cudnn == "deterministic"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Around a forward pass: in bfloat16 where that is the precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
