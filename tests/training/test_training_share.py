"""Division of a global batch into ranks' shards and micro-batches."""

import re

import pytest

from vggrepro.errors import UserError
from vggrepro.ranks.topology import Topology
from vggrepro.training.step import shard_of


@pytest.mark.parametrize("world", [1, 2, 4, 8, 32, 256])
@pytest.mark.parametrize("micro_batch", [None, 1, 3, 5, 8, 1000])
def test_the_shards_of_all_ranks_are_the_batch(world: int, micro_batch: int | None) -> None:
    shares = [shard_of(Topology(rank, world, rank, world), 256, micro_batch) for rank in range(world)]
    rows = [row for share in shares for part in share.rows for row in range(part.start, part.stop)]
    assert rows == list(range(256))
    assert {share.size for share in shares} == {256 // world}
    largest = max(part.stop - part.start for share in shares for part in share.rows)
    assert largest <= min(micro_batch or 256, 256 // world)


def test_a_remainder_makes_a_shorter_last_micro_batch() -> None:
    share = shard_of(Topology(1, 2, 1, 2), 20, 4)
    assert share.rows == (slice(10, 14), slice(14, 18), slice(18, 20))


def test_ranks_that_do_not_divide_the_batch_are_an_error_that_lists_divisors() -> None:
    with pytest.raises(UserError, match=re.escape("start one of 1, 2, 4, 8, 16, 32, 64, 128, 256 ranks")) as refusal:
        shard_of(Topology(0, 24, 0, 8), 256, None)
    assert "train.batch=256" in str(refusal.value)
    assert "24 ranks" in str(refusal.value)
