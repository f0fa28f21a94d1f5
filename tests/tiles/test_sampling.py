"""The order of samples: a permutation, keyed, the same global batches for any number of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.tiles import sampling

SHARDS = [7, 5, 9, 4]
STARTS = np.cumsum([0, *SHARDS])
ROWS = np.array([0, 2, 3, 6, 7, 9, 12, 13, 14, 20, 21, 24], dtype=np.int64)


@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_an_epoch_visits_every_row_once(window):
    order = sampling.epoch_order(ROWS, STARTS, (1, 2, 3), window)
    assert sorted(order) == list(ROWS)


def test_the_order_depends_on_seed_stage_and_epoch_alone():
    base = sampling.epoch_order(ROWS, STARTS, (1, 2, 3)).tolist()
    assert sampling.epoch_order(ROWS, STARTS, (1, 2, 3)).tolist() == base
    for key in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert sampling.epoch_order(ROWS, STARTS, key).tolist() != base


def test_a_window_of_one_finishes_a_shard_before_the_next():
    order = sampling.epoch_order(np.arange(25), STARTS, (0, 0, 0), 1)
    shard = np.searchsorted(np.cumsum(SHARDS), order, side="right")
    assert (np.diff(shard) != 0).sum() == len(SHARDS) - 1


@given(st.integers(0, 200), st.integers(1, 8))
def test_slices_of_the_ranks_cover_a_batch_once_and_evenly(length, world):
    slices = [sampling.rank_slice(length, rank, world) for rank in range(world)]
    covered = [i for s in slices for i in range(length)[s]]
    assert covered == list(range(length))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


def test_a_last_batch_too_small_for_batch_norm_is_dropped():
    order = np.arange(19)
    assert [len(b) for b in sampling.global_batches(order, 8, 1, drop_last=False)] == [8, 8, 3]
    assert [len(b) for b in sampling.global_batches(order, 8, 2, drop_last=False)] == [8, 8]
    assert [len(b) for b in sampling.global_batches(order[:17], 8, 1, drop_last=False)] == [8, 8]
    assert [len(b) for b in sampling.global_batches(order, 8, 1, drop_last=True)] == [8, 8]
    assert [len(b) for b in sampling.global_batches(order[:16], 8, 4, drop_last=True)] == [8, 8]
