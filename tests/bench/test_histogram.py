from __future__ import annotations

import base64
import math
import pickle
import struct
import zlib

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.histogram import HIGHEST_NS, Histogram
from bench.stats.percentiles import bound_percentile

durations = st.integers(0, 50) | st.integers(0, 5000) | st.integers(0, 10**8) | st.integers(0, HIGHEST_NS)
samples = st.lists(durations, max_size=300)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.record_many(np.array(values, dtype=np.int64))
    return histogram


def theirs_of(values: list[int]) -> HdrHistogram:
    histogram = HdrHistogram(1, HIGHEST_NS, 3)
    for value in values:
        assert histogram.record_value(value)
    return histogram


@settings(deadline=None)
@given(samples)
def test_encoding_is_the_libraries_to_the_byte(values: list[int]) -> None:
    assert of(values).encode() == theirs_of(values).encode().decode()


@settings(deadline=None)
@given(samples)
def test_each_reads_what_the_other_wrote(values: list[int]) -> None:
    assert Histogram.decode(theirs_of(values).encode().decode()) == of(values)
    read = HdrHistogram.decode(of(values).encode())
    assert read.get_total_count() == len(values)
    assert list(read.counts) == of(values).counts.tolist()


@pytest.mark.parametrize("count", [1, 63, 64, 2**31, 2**55 - 1, 2**55, 2**62])
def test_large_counts_keep_every_bit(count: int) -> None:
    theirs = HdrHistogram(1, HIGHEST_NS, 3)
    theirs.record_value(1_000_000, count)
    ours = Histogram.decode(theirs.encode().decode())
    assert ours.num_samples == count
    assert ours.encode() == theirs.encode().decode()


@settings(deadline=None)
@given(samples.filter(bool), st.floats(0.1, 99.9))
def test_percentile_is_the_libraries_at_the_same_rank_and_never_below(values: list[int], percentile: float) -> None:
    ours, theirs = of(values), theirs_of(values)
    rank = max(1, math.ceil(len(values) * (1 - (100 - percentile) / 100) - 1e-9))
    assert ours.percentile(percentile) == theirs.get_value_at_percentile(100 * rank / len(values))
    exact = sorted(values)[rank - 1]
    assert exact <= ours.percentile(percentile) <= exact + max(0, exact / 1000)


@given(samples)
def test_one_by_one_counts_as_all_at_once(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    assert histogram == of(values)
    assert histogram.num_samples == len(values)


@given(samples, samples)
def test_merging_counts_as_recording_both(first: list[int], second: list[int]) -> None:
    merged = of(first)
    merged.merge(of(second))
    assert merged == of(first + second)


@given(samples, durations)
def test_count_over_is_never_too_small_and_exact_at_a_buckets_edge(values: list[int], limit: int) -> None:
    histogram = of(values)
    over = sum(value > limit for value in values)
    assert histogram.count_over(limit) >= over
    assert histogram.count_over(limit) <= sum(value > limit - limit / 1000 - 1 for value in values)
    if limit < 2048:
        assert histogram.count_over(limit) == over


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.sampled_from([50.0, 90.0, 99.0]), st.sampled_from([1.0, 1.7, 6.0]))
def test_bounds_enclose_those_of_the_raw_samples_within_a_bucket(n: int, percentile: float, inflation: float) -> None:
    values = np.random.default_rng(n).lognormal(15, 1, n).astype(np.int64)
    histogram = of(values.tolist())
    raw = bound_percentile(values, percentile, 0.95, inflation)
    bounds = histogram.bounds(percentile, 0.95, inflation)
    assert (bounds.num_samples, bounds.num_required) == (raw.num_samples, raw.num_required)
    for ours, exact, below, above in (
        (bounds.upper, raw.upper, 0.0, 0.001),
        (bounds.estimate, raw.estimate, 0.0, 0.001),
        (bounds.lower, raw.lower, -0.001, 0.0),
    ):
        assert (ours is None) == (exact is None)
        if ours is not None and exact is not None:
            assert exact * (1 + below) <= ours <= exact * (1 + above)


def test_what_is_longer_than_the_range_is_over_every_limit() -> None:
    histogram = of([10**6] * 10 + [10**14] * 90)
    assert histogram.count_over(10**15) == 90
    assert histogram.count_over(HIGHEST_NS) == 90
    assert histogram.bounds(50, 0.95).upper == math.inf
    assert histogram.percentile(50) > HIGHEST_NS
    one = Histogram()
    one.record(10**14)
    assert one == of([10**14])


@pytest.mark.parametrize("record", ["record", "record_many"])
def test_a_negative_duration_is_refused_with_its_value(record: str) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="-7 ns"):
        getattr(histogram, record)(-7)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        Histogram().percentile(50)
    assert Histogram().bounds(50, 0.95).upper is None


def test_a_pickled_histogram_still_records() -> None:
    copy = pickle.loads(pickle.dumps(of([5, 7_000_000])))
    copy.record(9)
    assert copy == of([5, 7_000_000, 9])


def repacked(inner: bytes) -> str:
    packed = zlib.compress(inner)
    return base64.b64encode(struct.pack(">II", 0x1C849314, len(packed)) + packed).decode()


def header(length: int, *, digits: int = 3, lowest: int = 1) -> bytes:
    return struct.pack(">IIIIQQd", 0x1C849313, length, 0, digits, lowest, HIGHEST_NS, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 bytes"),
        ("?", "base64|padding"),
        (of([5]).encode()[:-8], "length"),
        (base64.b64encode(struct.pack(">II", 0x1C849314, 4) + b"abcd").decode(), "decompress"),
        (repacked(b"short"), "5 bytes"),
        (repacked(header(0, digits=2)), "2 digits"),
        (repacked(header(0, lowest=1000)), "from 1000 on"),
        (repacked(header(9) + b"\x02"), "header says 9"),
        (repacked(header(1) + b"\x82"), "within a count"),
        (repacked(header(5) + b"\xff\xff\xff\xff\x0f"), "more than an hour"),
        (repacked(header(0) + bytes(10**6)), "more than"),
        (repacked(header(18) + b"\xfe" + b"\xff" * 7 + b"\x7f" + b"\xfe" + b"\xff" * 7 + b"\x7f"), "more samples"),
        (repacked(bytes(40)), "cookie"),
    ],
)
def test_damaged_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram.decode(text)


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_a_histogram(position: int, byte: int) -> None:
    packed = bytearray(base64.b64decode(of([5, 10**6, 10**9]).encode()))
    packed[position % len(packed)] = byte
    try:
        read = Histogram.decode(base64.b64encode(packed).decode())
    except ValueError:
        return
    assert int(read.counts.min()) >= 0
