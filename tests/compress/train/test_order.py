from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from compress.train.order import Order, Share, row_lengths


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 1), (17, 16), (100, 16), (61, 8)])
def test_every_row_comes_once_an_epoch_in_batches_of_nearly_one_size(num_rows: int, batch_size: int) -> None:
    order = Order(num_rows=num_rows, batch_size=batch_size, seed=3)
    batches = order.epoch(2)
    assert len(batches) == order.updates_per_epoch
    assert sorted(chain(*batches)) == list(range(num_rows))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert max(map(len, batches)) <= batch_size


def test_order_follows_the_seed_and_the_epoch() -> None:
    order, other = (Order(num_rows=50, batch_size=8, seed=seed) for seed in (3, 4))
    assert order.epoch(1) == order.epoch(1)
    assert order.epoch(1) != order.epoch(2)
    assert order.epoch(1) != other.epoch(1)


def test_rows_of_similar_length_share_a_batch() -> None:
    lengths = [index % 40 for index in range(400)]
    order = Order(num_rows=400, batch_size=8, seed=0, lengths=lengths)
    mixed = Order(num_rows=400, batch_size=8, seed=0)

    def padded(which: Order) -> int:
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in which.epoch(0))

    assert padded(order) < 1.05 * sum(lengths) < 1.5 * sum(lengths) < padded(mixed)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_batches_of_one(num_processes: int) -> None:
    order = Order(num_rows=21, batch_size=4, seed=1)
    shares = [Share(order, 13, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    whole = list(Share(order, 13))
    assert len(whole) == len(shares[0]) == 13
    assert whole[6:12] == order.epoch(1)
    for parts, batch in zip(zip(*shares, strict=True), whole, strict=True):
        assert Counter(chain(*parts)) == Counter(batch)


def test_lengths_come_from_the_rows_where_they_cost_nothing() -> None:
    class Lazy(list):
        lengths = (3, 1)

    assert row_lengths([{"input_ids": [1, 2]}, {"input_ids": [1]}]) == [2, 1]
    assert row_lengths(Lazy([{}, {}])) == (3, 1)
    assert row_lengths([{"pixel_values": [1, 2]}]) is None
