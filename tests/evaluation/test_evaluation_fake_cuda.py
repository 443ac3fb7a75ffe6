"""The test methods on a simulated CUDA device."""

import pytest
import torch
from fake_cuda import CUDA, fake_cuda, on_fake_cuda

from vggrepro.config.settings import Evaluation
from vggrepro.evaluation.methods import METHODS
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG

CROP, CLASSES = 32, 7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [2, 64], ids=["in strips", "whole"])
def test_a_method_computes_on_the_device_without_waiting(method: str, precision: str, batch: int) -> None:
    n, height, width = 3, 70, 99
    with fake_cuda() as log, torch.no_grad():  # inference mode hides what operations are made of
        set_arithmetic(CUDA, precision)  # type: ignore[arg-type]
        assert not torch.backends.cudnn.benchmark, "every batch has a shape of its own"
        net = on_fake_cuda(lambda: VGG(architecture("D", classes=CLASSES, crop=CROP, width=0.0625))).eval()
        images = torch.empty((n, height, width, 3), device=CUDA).permute(0, 3, 1, 2)
        log.clear()
        with autocast(CUDA, precision):  # type: ignore[arg-type]
            posteriors = METHODS[method](net, images, Evaluation(flip=True, batch=batch))
        assert posteriors.shape == (n, CLASSES)
        assert posteriors.device == CUDA
        assert posteriors.dtype == torch.float32
        assert log.copies == []
        assert log.synchronised == 0
        assert log.strided == [], "a convolution of maps that are not channels-last"
        assert log.types["convolution"] == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert log.types["_softmax"] == {torch.float32}
