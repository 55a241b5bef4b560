from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.load.schedule import Segment, Shape, arrivals, constant, ramp, soak, spike, steps
from edgesmith.errors import UsageError

SHAPES = {
    "constant": constant(300, 20),
    "ramp": ramp(10, 500, 20),
    "ramp down to nothing": ramp(400, 0, 20),
    "spike": spike(50, 1000, 20),
    "soak": soak(200, 30),
    "steps": steps([100, 0, 400], 8),
}


def cumulative(shape: Shape, seconds: np.ndarray) -> np.ndarray:
    """Expected number of arrivals until each moment, summed piece by piece: nothing of the code under test."""
    total = np.zeros_like(seconds)
    begin = 0.0
    for segment in shape.segments:
        inside = np.clip(seconds - begin, 0, segment.seconds)
        slope = (segment.end_rate - segment.start_rate) / segment.seconds
        total += segment.start_rate * inside + slope * inside**2 / 2
        begin += segment.seconds
    return total


@pytest.mark.parametrize("name", SHAPES)
def test_arrivals_have_the_distribution_of_the_rate(name: str) -> None:
    shape = SHAPES[name]
    times = arrivals(shape, seed=3) / 1e9
    assert stats.kstest(cumulative(shape, times) / shape.expected, "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", SHAPES)
def test_gaps_are_exponential_in_expected_arrivals(name: str) -> None:
    levels = cumulative(SHAPES[name], arrivals(SHAPES[name], seed=4) / 1e9)
    assert stats.kstest(np.diff(levels), "expon").pvalue > 0.001


def test_number_of_arrivals_is_poisson() -> None:
    shape = constant(20, 5)
    counts = np.array([len(arrivals(shape, seed=seed)) for seed in range(400)])
    edges = [0, 88, 94, 98, 102, 106, 112, 1000]
    observed = np.histogram(counts, bins=edges)[0]
    expected = 400 * np.diff(stats.poisson.cdf(np.array(edges) - 1, 100))
    expected *= observed.sum() / expected.sum()
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_workers_streams_are_disjoint_and_their_union_is_the_whole_stream() -> None:
    shape = ramp(100, 700, 15)
    parts = [arrivals(shape, seed=5, worker=worker, num_workers=3) for worker in range(3)]
    assert not set(parts[0]) & set(parts[1])
    assert not set(parts[1]) & set(parts[2])
    for part in parts:
        assert abs(len(part) - shape.expected / 3) < 5 * np.sqrt(shape.expected / 3)
    union = np.sort(np.concatenate(parts)) / 1e9
    levels = cumulative(shape, union)
    assert stats.kstest(levels / shape.expected, "uniform").pvalue > 0.001
    assert stats.kstest(np.diff(levels), "expon").pvalue > 0.001


def test_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    shape = spike(50, 400, 10)
    first = arrivals(shape, seed=1, worker=1, num_workers=2)
    assert np.array_equal(first, arrivals(shape, seed=1, worker=1, num_workers=2))
    assert not np.array_equal(first[:50], arrivals(shape, seed=2, worker=1, num_workers=2)[:50])


def test_nothing_arrives_where_the_rate_is_zero() -> None:
    times = arrivals(steps([100, 0, 400], 8), seed=6) / 1e9
    assert not ((times > 8) & (times < 16)).any()
    assert (times > 16).any()


@settings(max_examples=60, deadline=None)
@given(
    segments=st.lists(
        st.tuples(st.floats(0.1, 50), st.floats(0, 300), st.floats(0, 300)), min_size=1, max_size=5
    ).filter(lambda rows: sum(seconds * (first + last) for seconds, first, last in rows) > 0.2),
    seed=st.integers(0, 2**32),
)
def test_arrivals_ascend_and_stay_inside_the_run(segments: list[tuple[float, float, float]], seed: int) -> None:
    shape = Shape(name="steps", segments=tuple(Segment(*row) for row in segments))
    times = arrivals(shape, seed=seed)
    assert (np.diff(times) >= 0).all()
    assert len(times) == 0 or (times[0] >= 0 and times[-1] <= shape.seconds * 1e9)


def test_json_keeps_every_shape() -> None:
    for shape in SHAPES.values():
        assert Shape.from_json(shape.to_json()) == shape


def test_rate_and_totals_of_a_spike() -> None:
    shape = spike(10, 100, 10, after=2, peak_seconds=3)
    assert [shape.rate_at(second) for second in (0, 1.9, 2.1, 4.9, 5.1, 9.9, 10.1)] == [10, 10, 100, 100, 10, 10, 0]
    assert shape.expected == pytest.approx(2 * 10 + 3 * 100 + 5 * 10)
    assert shape.peak_rate == 100
    assert "100 requests/s for 3 s" in shape.description


@pytest.mark.parametrize(
    "build",
    [
        lambda: constant(0, 5),
        lambda: constant(5, 0),
        lambda: constant(float("nan"), 5),
        lambda: constant(-1, 5),
        lambda: constant(float("inf"), 5),
        lambda: constant(1e9, 1000),
        lambda: spike(1, 5, 10, after=8, peak_seconds=3),
        lambda: steps([], 3),
    ],
)
def test_impossible_loads_are_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        build()
