"""Resampling on a fake CUDA device."""

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda

from vggrepro.config.settings import Data
from vggrepro.data.decode import Region
from vggrepro.data.loading.resample import resample_on_device
from vggrepro.data.sampler import TrainingSampler
from vggrepro.models.precision import set_arithmetic

CROP = 64


@pytest.mark.parametrize(("precision", "exact"), [("fp32", torch.float32), ("tf32", torch.float64)])
def test_resampling_is_asynchronous_and_exact_in_any_precision(precision: str, exact: torch.dtype) -> None:
    """TF32 has 11 bits, but a sum of weighted grey levels needs 24."""
    sizes = np.array([[90, 120], [150, 100], [80, 80], [300, 200]])
    views = TrainingSampler(sizes, Data(S=(70, 100)), CROP, 0).views(0, 4)
    boxes = views.decode_box()
    with fake_cuda() as log:
        set_arithmetic(CUDA, precision)  # type: ignore[arg-type]
        regions = [
            Region(torch.empty((bottom - top, right - left, 3), dtype=torch.uint8, device=CUDA), top, left)
            for top, left, bottom, right in boxes.tolist()
        ]
        out = torch.empty((4, CROP, CROP, 3), dtype=torch.uint8, device=CUDA)
        log.clear()
        resample_on_device(regions, boxes, views.source_window(), views.flip, out)
        assert log.types["bmm"] == {exact}
        assert log.copies
        assert not any(copy.waits for copy in log.copies)
        assert max(copy.bytes for copy in log.copies) < 1000, "only windows, sizes and rows are copied"
        assert log.synchronised == 0
