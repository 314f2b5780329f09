"""Shards: every item belongs to one process; processes of the same work share a folder, others are refused."""

from itertools import pairwise

import pytest

from codeprior.artifact import Workspace
from codeprior.errors import InputError
from codeprior.shards import Shard


@pytest.mark.parametrize(("n_items", "size"), [(0, 3), (1, 3), (10, 3), (1_281_167, 64), (5, 1)])
def test_the_shares_are_the_whole_in_order_and_differ_by_one_at_most(n_items, size):
    shares = [Shard(rank, size).of(n_items) for rank in range(size)]
    assert shares[0].start == 0
    assert shares[-1].stop == n_items
    assert all(a.stop == b.start for a, b in pairwise(shares))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_environment_says_who_we_are(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Shard.from_environment().alone
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match="RANK and WORLD_SIZE must both be numbers, got 2 and None"):
        Shard.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.from_environment() == Shard(2, 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"between 0 and WORLD_SIZE - 1, got rank 2 of 2"):
        Shard.from_environment()


def test_shards_share_a_folder_and_one_finishes(tmp_path):
    def work(rank, size=2):
        return Workspace(tmp_path / "a", kind="codes", settings={}, inputs={}, shard=Shard(rank, size))

    with work(0) as first, work(1) as second:
        with pytest.raises(InputError, match="another process of rank 1 is working"):
            work(1)
        with pytest.raises(InputError, match="another process is working"):
            work(0, size=1)
        with second.alone():
            second.finish([], {})
        with first.alone():
            assert first.complete


def test_shards_do_not_clear_other_work(tmp_path):
    with Workspace(tmp_path, kind="codes", settings={"a": 1}, inputs={}):
        pass
    for rank in range(2):
        with pytest.raises(InputError, match="several processes cannot replace"):
            Workspace(tmp_path, kind="codes", settings={"a": 2}, inputs={}, overwrite=True, shard=Shard(rank, 2))
