"""Description of the machine in benchmarks."""

import time

import torch

from vggrepro.bench.machine import clock


def test_on_a_cpu_others_turns_are_not_counted() -> None:
    device = torch.device("cpu")
    begin = clock(device)
    time.sleep(0.3)
    assert clock(device) - begin < 0.1
