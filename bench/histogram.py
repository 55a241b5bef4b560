"""Count durations in buckets of 0.1 %: constant memory however many requests, merged over processes, read by any tool.

The layout and the encoding are HdrHistogram's (version 2, compressed, base64) with 3 significant digits and a range
of 1 ns to 1 hour. Below 2048 ns a bucket is 1 ns wide; every further doubling of the value has 1024 buckets.

Source: Tene, HdrHistogram (hdrhistogram.org), and its V2 encoding in AbstractHistogram.encodeIntoByteBuffer.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.percentiles import PercentileBounds, certifying_ranks, percentile_rank, required_samples

__all__ = ["HIGHEST_NS", "Histogram"]

HIGHEST_NS = 3_600_000_000_000
"""One hour: what takes longer is counted, in the last bucket, as over every limit."""
_HALF_BITS = 10
_SUB_BUCKETS = 1 << (_HALF_BITS + 1)
_NUM_DOUBLINGS = 32  # 2048 << 31 is the first power of two above HIGHEST_NS
_NUM_BUCKETS = (_NUM_DOUBLINGS + 1) << _HALF_BITS
_LAST = _NUM_BUCKETS - 1
_TOP_NS = (_SUB_BUCKETS << (_NUM_DOUBLINGS - 1)) - 1  # upper edge of the last bucket

_ENCODING_COOKIE = 0x1C849303 | 0x10
_COMPRESSION_COOKIE = 0x1C849304 | 0x10
_OUTER = struct.Struct(">II")  # cookie, length
_INNER = struct.Struct(">IIIIQQd")  # cookie, length, offset, digits, lowest, highest, ratio to doubles
_DIGITS = 3
_MOST_SAMPLES = 2**62


class Histogram:
    """Counts of durations in nanoseconds."""

    __slots__ = ("_cells", "counts")

    counts: NDArray[np.int64]
    """How many values fell into each bucket, of shape [33792]; shares its memory with the scalar path."""

    def __init__(self) -> None:
        self._cells = array("q", bytes(8 * _NUM_BUCKETS))
        self.counts = np.frombuffer(self._cells, dtype=np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and bool((self.counts == other.counts).all())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Callable[[str], Histogram], tuple[str]]:
        return Histogram.decode, (self.encode(),)

    @property
    def num_samples(self) -> int:
        """How many values were recorded."""
        return int(self.counts.sum())

    def record(self, value_ns: int) -> None:
        """Count one duration; what is longer than the range counts in the last bucket.

        Raises:
            ValueError: It is negative.
        """
        if value_ns < _SUB_BUCKETS:
            if value_ns < 0:
                raise ValueError(f"a duration of {value_ns} ns")
            self._cells[value_ns] += 1
            return
        doublings = value_ns.bit_length() - (_HALF_BITS + 1)
        index = (doublings << _HALF_BITS) + (value_ns >> doublings)
        self._cells[index if index < _LAST else _LAST] += 1

    def record_many(self, values_ns: ArrayLike) -> None:
        """Count many durations at once.

        Args:
            values_ns: Integers of any shape.

        Raises:
            ValueError: One is negative.
        """
        values = np.asarray(values_ns, dtype=np.int64).ravel()
        if len(values) and int(values.min()) < 0:
            raise ValueError(f"a duration of {int(values.min())} ns")
        self.counts += np.bincount(_indices(values), minlength=_NUM_BUCKETS)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one's."""
        self.counts += other.counts

    def percentile(self, percentile: float) -> int:
        """Give the sample percentile in nanoseconds: the upper edge of its bucket, so up to 0.1 % above the value.

        Args:
            percentile: In per cent, in (0, 100).

        Raises:
            ValueError: Nothing was recorded.
        """
        total = self.num_samples
        if not total:
            raise ValueError("a percentile of no values")
        return _upper_edge(self._bucket_of_rank(percentile_rank(total, percentile)))

    def count_over(self, limit_ns: int) -> int:
        """Count the values over a limit; those in the limit's own bucket count unless the limit is its upper edge."""
        if limit_ns < 0:
            return self.num_samples
        index = int(_indices(np.array([limit_ns], dtype=np.int64))[0])
        is_edge = index < _LAST and _upper_edge(index) == limit_ns
        return int(self.counts[index + is_edge :].sum())

    def bounds(self, percentile: float, confidence: float, inflation: float = 1.0) -> PercentileBounds:
        """Bound a percentile from both sides, for every distribution, in nanoseconds.

        Args:
            percentile: In per cent, in (0, 100).
            confidence: Of each of the two bounds on its own.
            inflation: How many values say as much as an independent one: see `bench.stats.dependence`. A histogram
                has lost the order of the requests and cannot estimate it.

        Returns:
            Upper bound and estimate at the upper edges of their buckets, the lower bound at the lower edge; infinity
            for what is longer than the range.
        """
        total = self.num_samples
        lower, upper = certifying_ranks(total, percentile, confidence, inflation)
        required = required_samples(percentile, confidence)
        estimate = percentile_rank(total, percentile) if total >= required else None
        return PercentileBounds(
            percentile=percentile,
            confidence=confidence,
            num_samples=total,
            num_required=math.ceil(required * inflation),
            estimate=self._edge_of_rank(estimate),
            lower=None if lower is None else float(_lower_edge(self._bucket_of_rank(lower))),
            upper=self._edge_of_rank(upper),
            inflation=inflation,
        )

    def _bucket_of_rank(self, rank: int) -> int:
        return int(np.searchsorted(np.cumsum(self.counts), rank))

    def _edge_of_rank(self, rank: int | None) -> float | None:
        if rank is None:
            return None
        index = self._bucket_of_rank(rank)
        return math.inf if index == _LAST else float(_upper_edge(index))

    def encode(self) -> str:
        """Write as HdrHistogram V2, compressed, base64: the same text for the same counts."""
        recorded = np.flatnonzero(self.counts)
        used = int(recorded[-1]) + 1 if len(recorded) else 0
        body = b"".join(_to_varint(number) for number in _with_runs(self.counts[:used].tolist()))
        inner = _INNER.pack(_ENCODING_COOKIE, len(body), 0, _DIGITS, 1, HIGHEST_NS, 1.0) + body
        packed = zlib.compress(inner)
        return base64.b64encode(_OUTER.pack(_COMPRESSION_COOKIE, len(packed)) + packed).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read an HdrHistogram V2 of 3 significant digits from 1 on, whoever wrote it.

        Raises:
            ValueError: It is damaged, has other digits or another unit, or values beyond the range.
        """
        inner = _decompress(base64.b64decode(text, validate=True))
        if len(inner) < _INNER.size:
            raise ValueError(f"a histogram of {len(inner)} bytes")
        cookie, length, offset, digits, lowest, _, _ = _INNER.unpack_from(inner)
        if cookie & ~0xF0 != _ENCODING_COOKIE & ~0xF0:
            raise ValueError(f"no HdrHistogram V2: its cookie is {cookie:#x}")
        if (digits, lowest, offset) != (_DIGITS, 1, 0):
            raise ValueError(f"a histogram of {digits} digits from {lowest} on instead of {_DIGITS} from 1 on")
        if length != len(inner) - _INNER.size:
            raise ValueError(f"{len(inner) - _INNER.size} bytes of counts, but the header says {length}")
        result = cls()
        index = total = 0
        for number in _from_varints(inner[_INNER.size :]):
            if index - min(number, -1) > _NUM_BUCKETS:
                raise ValueError("a histogram with values of more than an hour")
            total += max(number, 0)
            if total > _MOST_SAMPLES:
                raise ValueError("a histogram of more samples than can be counted")
            if number > 0:
                result._cells[index] = number
            index -= min(number, -1)  # a negative number is a run of empty buckets
        return result


def _indices(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the bucket of each value."""
    capped = np.minimum(values, _TOP_NS)
    bits = np.frexp(capped.astype(np.float64))[1].astype(np.int64)  # exact below 2**53
    doublings = np.maximum(bits - (_HALF_BITS + 1), 0)
    return np.asarray((doublings << _HALF_BITS) + (capped >> doublings))


def _lower_edge(index: int) -> int:
    """Smallest value of a bucket."""
    doublings = max(0, (index >> _HALF_BITS) - 1)
    return (index - (doublings << _HALF_BITS)) << doublings


def _upper_edge(index: int) -> int:
    """Largest value of a bucket."""
    return _lower_edge(index + 1) - 1


def _with_runs(counts: list[int]) -> Iterator[int]:
    """Give the counts, with each run of zeros as one negative number."""
    num_empty = 0
    for count in [*counts, None]:
        if count == 0:
            num_empty += 1
            continue
        if num_empty:
            yield -num_empty
            num_empty = 0
        if count is not None:
            yield count


def _to_varint(number: int) -> bytes:
    """Write a signed number in ZigZag LEB128 of up to 9 bytes, the ninth of which has 8 bits."""
    rest = ((number << 1) ^ (number >> 63)) & 0xFFFF_FFFF_FFFF_FFFF
    written = bytearray()
    while rest > 0x7F and len(written) < 8:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    written.append(rest)
    return bytes(written)


def _from_varints(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        is_ninth = shift == 56
        value |= (byte if is_ninth else byte & 0x7F) << shift
        if byte & 0x80 and not is_ninth:
            shift += 7
            continue
        yield (value >> 1) ^ -(value & 1)
        value = shift = 0
    if shift:
        raise ValueError("a histogram that ends within a count")


def _decompress(packed: bytes) -> bytes:
    if len(packed) < _OUTER.size:
        raise ValueError(f"a histogram of {len(packed)} bytes")
    cookie, length = _OUTER.unpack_from(packed)
    if cookie & ~0xF0 != _COMPRESSION_COOKIE & ~0xF0 or length != len(packed) - _OUTER.size:
        raise ValueError(f"no compressed HdrHistogram V2: cookie {cookie:#x}, length {length}")
    largest = _INNER.size + 9 * _NUM_BUCKETS
    reader: Any = zlib.decompressobj()
    try:
        inner: bytes = reader.decompress(packed[_OUTER.size :], largest + 1)
    except zlib.error as error:
        raise ValueError(f"a histogram that does not decompress ({error})") from error
    if len(inner) > largest or not reader.eof:
        raise ValueError(f"a histogram that is cut off, or has more than {largest:,} bytes")
    return inner
