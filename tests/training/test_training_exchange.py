"""Factor exchange: the gradients of DDP, at a fraction of the bytes."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from vggrepro.distributed import Topology
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.training.exchange import Exchange
from vggrepro.training.throughput import Comm, payload_bytes

BATCH, CLASSES, CROP, WIDTH = 8, 10, 32, 0.0625


def small_net() -> VGG:
    torch.manual_seed(0)
    return VGG(architecture("A", classes=CLASSES, crop=CROP, width=WIDTH, dropout=0.0))


def _gradients(rank: int, world: int, port: int, comm: Comm, micro_batches: int, place: Path) -> None:
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    net = small_net()
    exchange = Exchange(net, Topology(rank, world, rank, world), comm)
    random = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, CROP, CROP, generator=random) * 60
    labels = torch.randint(CLASSES, (BATCH,), generator=random)
    share = BATCH // world
    for _ in range(2):  # the second step would show factors left over from the first
        net.zero_grad(set_to_none=True)
        before = exchange.payload_bytes
        parts = torch.arange(rank * share, (rank + 1) * share).chunk(micro_batches)
        for number, rows in enumerate(parts):
            with exchange.micro_batch(last=number == len(parts) - 1):
                scores = exchange.forward(images[rows])
                (nn.functional.cross_entropy(scores, labels[rows], reduction="sum") / share).backward()
        exchange.finish()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    torch.save({"gradients": gradients, "bytes": exchange.payload_bytes - before}, place / f"{comm}-{rank}.pt")
    distributed.destroy_process_group()


def exchanged(world: int, comm: Comm, place: Path, micro_batches: int = 1) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(
        _gradients, (world, port, comm, micro_batches, place), nprocs=world, start_method="forkserver"
    )
    return [torch.load(place / f"{comm}-{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize(("world", "micro_batches"), [(2, 1), (4, 1), (2, 3)])
def test_factor_exchange_gives_the_gradients_of_ddp_and_of_one_rank(
    tmp_path: Path, world: int, micro_batches: int
) -> None:
    plain = exchanged(world, "ddp", tmp_path, micro_batches)
    factor = exchanged(world, "factor", tmp_path, micro_batches)
    for rank in range(world):
        for name, gradient in plain[0]["gradients"].items():
            assert gradient.abs().max() > 0
            torch.testing.assert_close(factor[rank]["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, gradient in factor[0]["gradients"].items():
        for other in factor[1:]:
            assert torch.equal(other["gradients"][name], gradient), name  # or the ranks would drift apart
    assert plain[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, "ddp")
    assert factor[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, "factor")


def test_bf16_compression_is_close_and_halves_the_bytes(tmp_path: Path) -> None:
    plain, half = exchanged(2, "ddp", tmp_path), exchanged(2, "bf16", tmp_path)
    for name, gradient in plain[0]["gradients"].items():
        torch.testing.assert_close(half[0]["gradients"][name], gradient, rtol=2e-2, atol=gradient.abs().max() * 1e-2)
    assert 2 * half[0]["bytes"] == plain[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, "ddp")


def test_bytes_of_a_step_of_net_d_at_the_papers_batch() -> None:
    net = architecture("D")
    assert round(payload_bytes(net, 256, "ddp") / 1e6) == 553
    assert round(payload_bytes(net, 256, "bf16") / 1e6) == 277
    assert round(payload_bytes(net, 256, "factor") / 1e6) == 102
    assert round(payload_bytes(net, 256, "factor", bytes_per_factor=2) / 1e6) == 81


def test_one_rank_exchanges_nothing() -> None:
    net = small_net()
    exchange = Exchange(net, Topology(), "factor")
    assert exchange.forward is net
    nn.functional.cross_entropy(exchange.forward(torch.randn(2, 3, CROP, CROP)), torch.tensor([0, 1])).backward()
    exchange.finish()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert exchange.payload_bytes == 0
