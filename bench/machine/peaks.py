"""What a machine can do at the most: bytes moved and matrix products a second, measured once and kept.

With one thread, rates are of CPU time, which holds on a machine that others use too; with more, of wall time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.machine.machine import Machine, describe_machine
from bench.machine.tiny_graphs import float_product, integer_product
from bench.raw import pretty_json
from edgesmith.errors import MissingExtraError, UsageError
from edgesmith.files import atomic_write, sha256_text
from edgesmith.progress import SILENT, Progress

__all__ = ["MachinePeaks", "measure_peaks"]

_MIB = 1 << 20
_SECONDS = 0.15
_SHAPES = ((128, 384, 1536), (256, 1024, 1024), (512, 512, 512), (1024, 1024, 1024))  # rows, depth, width
_CACHE_FALLBACK_BYTES = 32 * _MIB


@dataclass(frozen=True, kw_only=True)
class MachinePeaks:
    """The highest rates seen on a machine with a number of threads."""

    machine: str
    threads: int
    clock: str
    """`CPU time` with one thread, `wall time` with more."""
    copy_gb_s: float
    """Bytes read and written while copying arrays much larger than the last cache, in 10⁹ a second."""
    read_gb_s: float
    """Bytes read from arrays much larger than the last cache, in 10⁹ a second."""
    reads: tuple[tuple[int, float], ...]
    """Working set in bytes, ascending, and the rate of reading it again and again, in 10⁹ bytes a second."""
    fp32_gflop_s: float
    """Multiplications and additions of float matrices through ONNX Runtime, in 10⁹ a second."""
    int8_gop_s: float
    """The same of uint8 by int8 matrices."""
    library: str

    def __post_init__(self) -> None:
        rates = (self.copy_gb_s, self.read_gb_s, self.fp32_gflop_s, self.int8_gop_s, *(rate for _, rate in self.reads))
        if not self.reads or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"rates of {rates}")

    def read_rate(self, num_bytes: int) -> float:
        """Rate of reading a working set: of the largest measured one that is no larger, in 10⁹ bytes a second."""
        fitting = [rate for size, rate in self.reads if size <= num_bytes]
        return fitting[-1] if fitting else self.reads[0][1]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"reads": [list(pair) for pair in self.reads]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> MachinePeaks:
        """Read what `to_json` gave.

        Raises:
            TypeError: A figure is missing or unknown.
            ValueError: A rate is not positive.
        """
        return cls(**(value | {"reads": tuple((int(size), float(rate)) for size, rate in value["reads"])}))


def measure_peaks(*, threads: int = 1, cache: Path | None = None, progress: Progress = SILENT) -> MachinePeaks:
    """Measure a machine's peaks, in a few seconds, or read them from where they were kept.

    Args:
        threads: For each product and each pass over memory.
        cache: JSON file of peaks, by machine, threads and version of ONNX Runtime; damaged, it is written anew.
        progress: Shows what is measured.

    Raises:
        UsageError: `threads` is below 1.
        MissingExtraError: ONNX Runtime is not installed.
        StorageError: The file cannot be written.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    try:
        library = f"onnxruntime {metadata.version('onnxruntime')}"
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            "the library `onnxruntime` is not installed; it measures the machine's limits",
            mend="Install it: pip install 'edgesmith[bench]'",
        ) from error
    machine = describe_machine()
    key = _key(machine, threads, library)
    known = _read_cache(cache)
    if key in known:
        return known[key]
    found = _measure(machine, threads, library, progress)
    if cache is not None:
        kept = {name: peaks.to_json() for name, peaks in sorted({**_read_cache(cache), key: found}.items())}
        atomic_write(cache, pretty_json(kept))
    return found


def _key(machine: Machine, threads: int, library: str) -> str:
    fixed = [machine.cpu, machine.architecture, machine.num_cpus, machine.flags, machine.memory_mb, machine.governor]
    return sha256_text(json.dumps(fixed), str(threads), library, np.__version__)[:16]


def _read_cache(cache: Path | None) -> dict[str, MachinePeaks]:
    """What a file of peaks holds; nothing of a missing or damaged one."""
    if cache is None:
        return {}
    try:
        return {key: MachinePeaks.from_json(value) for key, value in json.loads(cache.read_bytes()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _measure(machine: Machine, threads: int, library: str, progress: Progress) -> MachinePeaks:
    with progress.bar("measure the machine", total=4) as advance, ThreadPoolExecutor(threads) as pool:
        reads = tuple((size, _read_rate(size, threads, pool)) for size in _working_sets())
        advance(1)
        copy = _copy_rate(reads[-1][0], threads, pool)
        advance(1)
        fp32 = max(_product_rate(shape, np.dtype(np.float32), threads) for shape in _SHAPES)
        advance(1)
        int8 = max(_product_rate(shape, np.dtype(np.int8), threads) for shape in _SHAPES)
        advance(1)
    return MachinePeaks(
        machine=machine.name,
        threads=threads,
        clock="CPU time" if threads == 1 else "wall time",
        copy_gb_s=copy,
        read_gb_s=reads[-1][1],
        reads=reads,
        fp32_gflop_s=fp32,
        int8_gop_s=int8,
        library=library,
    )


def _working_sets() -> list[int]:
    """Sizes from 1 MiB to four times the last cache, each four times the one before."""
    largest = max(128 * _MIB, 4 * _last_cache_bytes())
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        largest = min(largest, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
    sizes = [_MIB]
    while sizes[-1] * 4 < largest:
        sizes.append(sizes[-1] * 4)
    return [*sizes, max(largest, sizes[-1])]


def _last_cache_bytes() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=_CACHE_FALLBACK_BYTES)


def _read_rate(size: int, threads: int, pool: ThreadPoolExecutor) -> float:
    """The quicker of two ways of looking at every byte, in 10⁹ bytes a second."""
    whole = np.ones(size // 4, dtype=np.float32)
    parts = np.array_split(whole, threads)

    def largest(part: NDArray[np.float32]) -> None:
        np.maximum.reduce(part)

    def bits(part: NDArray[np.float32]) -> None:
        np.bitwise_or.reduce(part.view(np.int32))

    ways = (lambda: _on_all(pool, largest, parts), lambda: _on_all(pool, bits, parts))
    return size / min(_best_seconds(way, threads) for way in ways) / 1e9


def _copy_rate(size: int, threads: int, pool: ThreadPoolExecutor) -> float:
    half = size // 8
    source, target = np.ones(half, dtype=np.float32), np.zeros(half, dtype=np.float32)
    pairs = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def copy(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        np.copyto(pair[1], pair[0])

    return 2 * 4 * half / _best_seconds(lambda: _on_all(pool, copy, pairs), threads) / 1e9


def _on_all(pool: ThreadPoolExecutor, work: Callable[[Any], None], parts: list[Any]) -> None:
    if len(parts) == 1:
        work(parts[0])
    else:
        list(pool.map(work, parts))


def _product_rate(shape: tuple[int, int, int], dtype: np.dtype[Any], threads: int) -> float:
    """Multiplications and additions a second, in 10⁹."""
    import onnxruntime

    rows, depth, width = shape
    rng = np.random.default_rng(0)
    weight_KN = rng.integers(-8, 8, (depth, width)).astype(dtype)
    if dtype == np.float32:
        model, x = float_product(weight_KN, rows), rng.integers(-8, 8, (rows, depth)).astype(np.float32)
    else:
        model, x = integer_product(weight_KN, rows), rng.integers(0, 16, (rows, depth)).astype(np.uint8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    seconds = _best_seconds(lambda: session.run(None, {"x": x}), threads)
    return 2 * rows * depth * width / seconds / 1e9


def _best_seconds(work: Callable[[], Any], threads: int) -> float:
    """The shortest of many runs: what gets in the way only ever makes one longer."""
    return min(_durations(work, time.process_time if threads == 1 else time.perf_counter))


def _durations(work: Callable[[], Any], clock: Callable[[], float]) -> Iterator[float]:
    work()
    end, count = time.perf_counter() + _SECONDS, 0
    while count < 5 or time.perf_counter() < end:
        start = clock()
        work()
        yield max(1e-9, clock() - start)
        count += 1
