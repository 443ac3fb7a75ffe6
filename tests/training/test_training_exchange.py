"""Factor exchange has the gradients of DDP with a fraction of the bytes."""

import os
from pathlib import Path

import pytest
import torch
from forks import set_up_fork
from programs import fork_program, free_port, rank_variables
from tiny import CONFIGS, TINY, set_words
from torch import distributed, multiprocessing, nn

from vggrepro.config.settings import Config, Model
from vggrepro.models.table1 import architecture
from vggrepro.models.vgg import VGG
from vggrepro.ranks.topology import Topology
from vggrepro.training import exchange as step_exchange
from vggrepro.training import step
from vggrepro.training.exchange import Exchange
from vggrepro.training.throughput import Comm, comm_of, payload_bytes, sent_bytes

BATCH, CLASSES, CROP, WIDTH = 8, 10, 32, 0.0625


def small_net() -> VGG:
    torch.manual_seed(0)
    return VGG(architecture("A", classes=CLASSES, crop=CROP, width=WIDTH, dropout=0.0))


def _gradients(
    rank: int, world: int, port: int, comm: Comm, micro_batches: int, place: Path, compiled: bool = False
) -> None:
    set_up_fork()
    os.environ.update(rank_variables(rank, world, port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    net = small_net()
    if compiled:  # buckets so small that torch cuts the compiled graph at them
        step_exchange._BUCKET_MIB = 0.05  # type: ignore[assignment]
        distributed._DEFAULT_FIRST_BUCKET_BYTES = 2**14  # type: ignore[attr-defined]
    exchange = Exchange(net, Topology(rank, world, rank, world), comm)
    if compiled:
        net.compile_features()
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


def exchanged(world: int, comm: Comm, place: Path, micro_batches: int = 1, *, compiled: bool = False) -> list[dict]:
    arguments = (world, free_port(), comm, micro_batches, place, compiled)
    multiprocessing.start_processes(_gradients, arguments, nprocs=world, start_method="forkserver")
    return [torch.load(place / f"{comm}-{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize(("world", "micro_batches"), [(2, 1), (4, 1), (2, 3)])
def test_factor_exchange_has_the_gradients_of_ddp_and_of_a_single_rank(
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
            assert torch.equal(other["gradients"][name], gradient), name  # otherwise the ranks would diverge
    assert plain[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, "ddp")
    assert factor[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, "factor")


@pytest.mark.slow
@pytest.mark.parametrize("comm", ["ddp", "factor"])
def test_exchange_of_a_compiled_net(tmp_path: Path, comm: Comm) -> None:
    plain = exchanged(2, "ddp", tmp_path)
    compiled = exchanged(2, comm, tmp_path, micro_batches=2, compiled=True)
    for rank in range(2):
        for name, gradient in plain[0]["gradients"].items():
            torch.testing.assert_close(compiled[rank]["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert compiled[0]["bytes"] == payload_bytes(small_net().architecture, BATCH, comm)


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
    assert round(payload_bytes(net, 256, "factor", "bf16") / 1e6) == 81


def test_auto_selects_the_cheaper_exchange() -> None:
    for net in ("A", "A-LRN", "B", "C", "D", "E"):
        for ranks in (2, 8, 32, 256):
            assert comm_of("auto", architecture(net), 256, ranks, "fp32") == "factor"
            assert comm_of("auto", architecture(net), 256, ranks, "bf16") == "factor"
    small = small_net().architecture
    assert comm_of("auto", small, 8, 2, "fp32") == "factor"
    assert sent_bytes(small, 256, "factor", 2) > sent_bytes(small, 256, "ddp", 2)
    assert comm_of("auto", small, 256, 2, "fp32") == "ddp"  # its factors are larger than its gradients
    # ever more operations for ever fewer bytes: at 4096 images fewer bytes still, but 1,000 GFLOP on each rank
    assert sent_bytes(architecture("D"), 4096, "factor", 8) < sent_bytes(architecture("D"), 4096, "ddp", 8)
    assert comm_of("auto", architecture("D"), 4096, 8, "fp32") == "ddp"
    assert comm_of("auto", architecture("D"), 256, 1, "fp32") is None
    assert comm_of("ddp", architecture("D"), 256, 2, "fp32") == "ddp"  # as configured


def test_a_ring_sends_all_reduced_bytes_twice_and_gathered_bytes_once() -> None:
    net = architecture("D")
    reduced, gathered = (
        payload_bytes(net, 0, "factor"),
        payload_bytes(net, 256, "factor") - payload_bytes(net, 0, "factor"),
    )
    assert sent_bytes(net, 256, "factor", 4) == (2 * reduced + gathered) * 3 / 4
    assert sent_bytes(net, 256, "bf16", 4) == 2 * payload_bytes(net, 256, "bf16") * 3 / 4


@pytest.mark.parametrize(("kinds", "comm"), [(("H100", "H100"), "factor"), (("H100", "A100"), "ddp")])
def test_ranks_on_different_devices_do_not_use_factor_exchange(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], comm: Comm
) -> None:
    """Their products might round differently, so that their weights would diverge."""
    monkeypatch.setattr(step, "from_every_rank", lambda _: list(kinds))
    with torch.device("meta"):
        net = VGG(architecture("A"))
    config = Config(model=Model(net="A"))
    assert step._comm(net, config, Topology(0, 2, 0, 1), torch.device("cpu")) == comm


def test_a_single_rank_exchanges_nothing() -> None:
    net = small_net()
    exchange = Exchange(net, Topology(), "factor")
    assert exchange.forward is net
    nn.functional.cross_entropy(exchange.forward(torch.randn(2, 3, CROP, CROP)), torch.tensor([0, 1])).backward()
    exchange.finish()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert exchange.payload_bytes == 0


@pytest.mark.parametrize(("drifted", "status"), [(None, 0), (1, 2)])
def test_ranks_with_diverging_weights_stop_and_are_named(
    images: Path, tmp_path: Path, drifted: int | None, status: int
) -> None:
    """A rank's gradient of a bias is slightly wrong."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import os, sys
from vggrepro.cli import main as cli
from vggrepro.training.exchange import Exchange

finish = Exchange.finish

def off(self):
    finish(self)
    if int(os.environ["RANK"]) == {drifted}:
        self.forward.module.classifier[6].bias.grad += 1e-7

Exchange.finish = off
cli.main()
"""
    )
    overrides = ["train.iterations=3", "train.comm=factor", f"data.root={images}", f"run.root={tmp_path / 'runs'}"]
    done = fork_program(program, "train", "--config", CONFIGS / "vgg_A.yaml", *set_words(*TINY, *overrides), ranks=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("vggrepro:")]
    assert (done.returncode == 0) == (status == 0), done.stderr
    if status:
        assert lines[0] == (
            "vggrepro: the weights of rank 1 differ from those of rank 0, because their gradients differed "
            "(train.comm=factor); resume from the newest checkpoint with --set train.comm=ddp, "
            "and check that rank's GPU"
        )
