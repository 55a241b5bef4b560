from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.models.stats import Buckets, ModelStats


@given(st.lists(st.integers(0, 10**11)), st.lists(st.integers(0, 10**11), min_size=1, unique=True).map(sorted))
def test_buckets_count_values_up_to_each_bound(values: list[int], bounds: list[int]) -> None:
    buckets = Buckets(tuple(bounds))
    for value in values:
        buckets.add(value)
    assert buckets.cumulative() == [*(sum(value <= bound for value in values) for bound in bounds), len(values)]
    assert (buckets.count, buckets.total) == (len(values), sum(values))


def test_snapshot_has_the_protocols_fields() -> None:
    stats = ModelStats()
    stats.count_run(3, 2, 10, 100, 1)  # two requests
    stats.count_run(3, 1, 20, 200, 2)  # a request in two runs
    stats.count_run(1, 0, 0, 50, 0)
    stats.count_success(2, 5, 120)
    stats.count_success(4, 7, 130)
    stats.count_failure("queue_full")
    stats.count_failure("deadline", 90)
    stats.count_failure("deadline", 10)
    found = stats.snapshot()
    assert found["inference_count"] == 6
    assert found["execution_count"] == 3
    assert found["inference_stats"]["success"] == {"count": 2, "ns": 250}
    assert found["inference_stats"]["fail"] == {"count": 3, "ns": 100}
    assert found["inference_stats"]["queue"] == {"count": 2, "ns": 12}
    assert found["inference_stats"]["compute_input"] == {"count": 3, "ns": 40}
    assert found["inference_stats"]["compute_infer"] == {"count": 3, "ns": 450}
    assert found["inference_stats"]["compute_output"] == {"count": 3, "ns": 4}
    assert [(one["batch_size"], one["compute_infer"]) for one in found["batch_stats"]] == [
        (1, {"count": 1, "ns": 50}),
        (3, {"count": 2, "ns": 300}),
    ]
    assert stats.failures == {"queue_full": 1, "deadline": 2}


def test_padding_share_is_what_was_run_beside_what_was_sent() -> None:
    stats = ModelStats()
    assert stats.padding_share == 0.0
    stats.elements_given, stats.elements_run = 30, 40
    assert np.isclose(stats.padding_share, 0.25)
