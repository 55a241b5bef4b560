from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bench.scenarios.inputs import Inputs, encode_inputs
from bench.scenarios.latency import Latency
from bench.scenarios.server import ServerOptions, measure_server, poisson_arrivals
from bench.scenarios.timing import time_closed_loop, time_open_loop
from edgesmith.errors import UsageError
from serve.runtime import Engine, open_engine
from tests.bench.conftest import News

FEW = ServerOptions(rate=400, seconds=0.2, min_requests=80, max_requests=80, max_warm_up_windows=4)


class Slowed:
    """A real engine that takes at least so long for the requests named."""

    def __init__(self, engine: Engine, seconds: float, requests: range) -> None:
        self.name, self.signature = engine.name, engine.signature
        self._engine, self._seconds, self._requests, self._count = engine, seconds, requests, 0

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._count in self._requests:
            time.sleep(self._seconds)
        self._count += 1
        return self._engine.run(arrays)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def inputs(news: News) -> Inputs:
    return encode_inputs(news.task, news.examples[:20])


@pytest.fixture(scope="module")
def served(news: News, inputs: Inputs) -> Latency:
    return measure_server(open_engine(news.exact), inputs, options=FEW, artifact_digest=news.exact.digest)


def test_arrivals_are_a_seeded_poisson_process() -> None:
    arrivals = poisson_arrivals(100, 4000, seed=3)
    gaps_s = np.diff(arrivals) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 100)).pvalue > 0.01
    assert abs(stats.pearsonr(gaps_s[1:], gaps_s[:-1]).statistic) < 0.05
    assert np.array_equal(arrivals, poisson_arrivals(100, 4000, seed=3))
    assert not np.array_equal(arrivals, poisson_arrivals(100, 4000, seed=4))


def test_requests_are_answered_one_after_the_other_in_the_order_of_arrival(served: Latency) -> None:
    assert served.service_ns is not None
    answered = served.start_ns + served.wall_ns
    begun = answered - served.service_ns
    assert np.all(begun[1:] >= answered[:-1])
    assert np.all(begun >= served.start_ns)


def test_requests_start_when_they_were_meant_to_whatever_the_rate_of_answers(served: Latency) -> None:
    assert served.rate == 400
    assert np.array_equal(served.start_ns, poisson_arrivals(400, 80, seed=0))


def test_a_stall_is_seen_by_every_request_that_arrives_in_it(news: News, inputs: Inputs) -> None:
    arrivals = np.arange(100, dtype=np.int64) * 5_000_000  # 200 a second
    stalled = Slowed(open_engine(news.exact), 0.3, range(10, 11))
    opened = time_open_loop(stalled, inputs.arrays, arrivals)
    assert np.count_nonzero(opened.wall_ns >= 100e6) >= 40  # those that arrive in the first 200 ms
    stalled = Slowed(open_engine(news.exact), 0.3, range(10, 11))
    closed = time_closed_loop(stalled, inputs.arrays, 100)
    assert np.count_nonzero(closed.wall_ns >= 300e6) == 1  # what a client that waits would report


def test_a_rate_that_the_engine_cannot_serve_is_said_and_shows_in_the_latency(news: News, inputs: Inputs) -> None:
    slow = Slowed(open_engine(news.exact), 0.005, range(10_000))
    options = ServerOptions(rate=1000, min_requests=100, max_requests=100, max_warm_up_windows=1)
    latency = measure_server(slow, inputs, options=options)
    assert latency.is_saturated
    assert latency.utilization is not None
    assert latency.utilization >= 5
    assert latency.wall_ns[-1] > 300e6  # 100 requests of 5 ms that came within a tenth of a second or so
    assert latency.summary()["is_saturated"] is True


def test_waiting_for_earlier_requests_is_not_taken_for_waiting_for_the_processor(news: News, inputs: Inputs) -> None:
    samples = time_open_loop(open_engine(news.exact), inputs.arrays, np.zeros(50, dtype=np.int64))
    assert samples.wall_ns[-1] > 10 * np.median(samples.service_ns)
    assert np.all(samples.wall_ns >= samples.service_ns)


def test_without_a_rate_half_of_the_capacity_is_taken_and_said(news: News, inputs: Inputs) -> None:
    options = ServerOptions(min_requests=50, max_requests=50, max_warm_up_windows=3)
    latency = measure_server(open_engine(news.exact), inputs, options=options)
    assert latency.capacity is not None
    assert latency.rate == pytest.approx(0.5 * latency.capacity)
    assert latency.rate_source == "50 % of the measured capacity"


def test_arrivals_end_in_time_at_a_low_rate() -> None:
    assert ServerOptions().num_requests(50) == 1500
    assert ServerOptions().num_requests(10) == 700
    assert ServerOptions().num_requests(0.1) == 30
    assert ServerOptions().num_requests(0.0001) == 1


@pytest.mark.parametrize("rate", [0, -5, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="rate"):
        ServerOptions(rate=rate)


def test_what_was_measured_reads_back(served: Latency, tmp_path: Path) -> None:
    served.save(tmp_path)
    read = Latency.load(tmp_path)
    assert read.summary() == served.summary()
    assert served.service_ns is not None
    assert read.service_ns is not None
    assert np.array_equal(read.service_ns, served.service_ns)
    assert np.array_equal(read.start_ns, served.start_ns)


def test_nothing_to_send_is_refused(news: News) -> None:
    with pytest.raises(UsageError):
        measure_server(open_engine(news.exact), Inputs(arrays=(), description=""))
