"""Topology, rendezvous, devices and cores of ranks."""

import os

import pytest
import torch
from programs import free_port, run_program

from vggrepro.errors import UserError
from vggrepro.ranks import collectives, group
from vggrepro.ranks.collectives import from_every_rank, from_first_rank, sum_over_ranks
from vggrepro.ranks.group import pick_device, rendezvous
from vggrepro.ranks.topology import Topology, host_names, topology_of

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_an_empty_environment_is_a_single_process() -> None:
    assert topology_of({}) == Topology(0, 1, 0, 1)
    assert topology_of({"PATH": "/bin"}).is_first


def test_torchruns_variables() -> None:
    assert topology_of(TORCHRUN) == Topology(rank=5, world=8, local_rank=1, local_world=4)
    assert not topology_of(TORCHRUN).is_first


@pytest.mark.parametrize("missing", TORCHRUN)
def test_an_incomplete_environment_is_an_error_that_names_the_missing_variable(missing: str) -> None:
    with pytest.raises(UserError, match=f"but {missing} is not; start the ranks with torchrun"):
        topology_of({name: text for name, text in TORCHRUN.items() if name != missing})


def test_a_number_of_ranks_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(UserError, match=r"WORLD_SIZE=many.*expected whole numbers"):
        topology_of(TORCHRUN | {"WORLD_SIZE": "many"})


# Environment of the sixth task of `srun -N 3 --ntasks-per-node ...` in a larger allocation.
SLURM_STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_NODELIST": "gpu[01-08]",
    "SLURM_STEP_NODELIST": "gpu[03-04,07]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}


def test_the_topology_is_that_of_the_slurm_step_and_not_of_the_allocation() -> None:
    assert topology_of(SLURM_STEP) == Topology(rank=6, world=8, local_rank=0, local_world=2)
    assert topology_of(SLURM_STEP | TORCHRUN) == topology_of(TORCHRUN), "torchrun inside a step takes precedence"


def test_a_batch_script_is_a_single_process() -> None:
    batch = {name: text for name, text in SLURM_STEP.items() if "STEP" not in name}
    assert topology_of(batch | {"SLURM_PROCID": "0"}) == Topology()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, "does not add up to SLURM_STEP_NUM_TASKS=8"),
        ({"SLURM_PROCID": "first"}, "expected whole numbers; start the ranks with srun"),
    ],
)
def test_an_inconsistent_step_is_an_error(changed: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        topology_of(SLURM_STEP | changed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n1", ["n1"]),
        ("n[08-10],login", ["n08", "n09", "n10", "login"]),
        ("r[1-2]-n[1,3].site", ["r1-n1.site", "r1-n3.site", "r2-n1.site", "r2-n3.site"]),
        ("", []),
    ],
)
def test_lists_of_nodes(text: str, expected: list[str]) -> None:
    assert host_names(text) == expected


def test_the_rendezvous_is_on_the_first_node_of_the_step_at_a_port_of_the_attempt() -> None:
    host, port = rendezvous(SLURM_STEP)
    assert host == "gpu03"
    others = [{"SLURM_JOB_ID": "1235"}, {"SLURM_STEP_ID": "2"}, {"SLURM_RESTART_COUNT": "1"}]
    ports = {rendezvous(SLURM_STEP | other)[1] for other in others} | {port}
    assert len(ports) == 4
    assert all(15000 <= number < 30000 for number in ports)
    assert rendezvous(SLURM_STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "77"}) == ("head", 77)


def test_ranks_that_do_not_connect_are_named() -> None:
    code = (
        "import os, torch\n"
        "from vggrepro.ranks import group\n"
        "from vggrepro.ranks.topology import topology_of\n"
        "group._JOIN_TIMEOUT_S = 4.0\n"
        "with group.process_group(topology_of(os.environ), torch.device('cpu')): pass"
    )
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    step = SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_LOCALID": "0"}
    topology = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURMD_NODENAME": "gpu03"}
    done = run_program("-c", code, **(step | master | topology))
    assert "rank 1, rank 2 of 3 did not connect" in done.stderr
    assert "no rank connected from gpu04, gpu07" in done.stderr


@pytest.mark.parametrize(("count", "local_rank", "expected"), [(0, 0, "cpu"), (1, 3, "cuda:0"), (4, 3, "cuda:3")])
def test_auto_selects_the_device_of_the_rank(
    monkeypatch: pytest.MonkeyPatch, count: int, local_rank: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_device("auto", local_rank) == torch.device(expected)
    assert pick_device("cpu", local_rank) == torch.device("cpu")


def test_a_missing_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no CUDA device is visible"):
        pick_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="start at most 2 ranks"):
        pick_device("cuda", 2)


def test_collectives_of_a_single_process_return_their_input() -> None:
    assert sum_over_ranks(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert from_first_rank({"a": 1}) == {"a": 1}
    assert from_every_rank("item") == ["item"]


@pytest.mark.parametrize(
    ("of_ranks", "expected"),
    [
        ({"a": [range(4), range(4, 8)]}, 4),  # each task is bound to separate cores
        ({"a": [range(8), range(8)]}, 4),
        ({"a": [range(8), range(8), range(8)]}, 2),
        ({"a": [range(8), range(4)]}, 6),
        ({"a": [range(1), range(1)]}, 1),
        ({"a": [range(8)], "b": [range(8), range(8)]}, 8),
    ],
)
def test_the_cores_of_a_node_are_divided_among_its_ranks(
    monkeypatch: pytest.MonkeyPatch, of_ranks: dict[str, list[range]], expected: int
) -> None:
    ranks = [(host, set(cores)) for host, bindings in of_ranks.items() for cores in bindings]
    monkeypatch.setattr(collectives, "from_every_rank", lambda _: ranks)
    monkeypatch.setattr(collectives.socket, "gethostname", lambda: "a")
    monkeypatch.setattr(collectives.os, "sched_getaffinity", lambda _: set(of_ranks["a"][0]))
    assert collectives.cores_of_rank() == expected


def test_gloo_listens_on_an_interface_that_other_nodes_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name resolves to the loopback address, as in Debian's hosts file."""
    monkeypatch.setattr(group.socket, "gethostname", lambda: "node1")
    monkeypatch.setattr(group.socket, "gethostbyname", lambda _: "127.0.1.1")
    monkeypatch.setattr(group, "_address", lambda host: "127.0.0.1")  # the only address that a test has
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that monkeypatch restores it
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    group._keep_gloo_off_loopback(set())
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "ranks on a single node need no other interface"
    group._keep_gloo_off_loopback({"node2"})
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    group._keep_gloo_off_loopback({"node2"})
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0", "the user's setting is unchanged"
    assert group.interface_to("no.such.host.invalid") is None
