"""From a launcher's environment to this process's place among the ranks."""

import pytest
import torch

from vggrepro.distributed import Topology, from_first_rank, gather_to_first, pick_device, sum_over_ranks, topology
from vggrepro.errors import UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_nothing_set_is_a_single_process() -> None:
    assert topology({}) == Topology(0, 1, 0, 1)
    assert topology({"PATH": "/bin"}).is_first


def test_torchruns_variables() -> None:
    assert topology(TORCHRUN) == Topology(rank=5, world=8, local_rank=1, local_world=4)
    assert not topology(TORCHRUN).is_first


@pytest.mark.parametrize("missing", TORCHRUN)
def test_half_an_environment_is_refused_naming_what_is_missing(missing: str) -> None:
    with pytest.raises(UserError, match=f"but {missing} is not; start the ranks with torchrun"):
        topology({name: text for name, text in TORCHRUN.items() if name != missing})


def test_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"WORLD_SIZE=many.*expected whole numbers"):
        topology(TORCHRUN | {"WORLD_SIZE": "many"})


@pytest.mark.parametrize(("count", "local_rank", "expected"), [(0, 0, "cpu"), (1, 3, "cuda:0"), (4, 3, "cuda:3")])
def test_auto_takes_the_ranks_own_device(
    monkeypatch: pytest.MonkeyPatch, count: int, local_rank: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_device("auto", local_rank) == torch.device(expected)
    assert pick_device("cpu", local_rank) == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no CUDA device is visible"):
        pick_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="start at most 2 ranks"):
        pick_device("cuda", 2)


def test_alone_everything_is_already_agreed() -> None:
    assert sum_over_ranks(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert from_first_rank({"a": 1}) == {"a": 1}
    assert gather_to_first("own") == ["own"]
