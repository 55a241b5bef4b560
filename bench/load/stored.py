"""A load test's result on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.histogram import Histogram
from bench.load.schedule import Shape
from bench.machine.conditions import Conditions
from bench.machine.machine import Machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from edgesmith.files import atomic_write

if TYPE_CHECKING:
    from bench.load.result import LoadResult

__all__ = ["FILES", "LOAD", "load_result", "save_result"]

LOAD = "load.json"
SAMPLES = "load_ns.csv.gz"
GAPS = "load_itl_ns.csv.gz"
FILES = (LOAD, SAMPLES, GAPS)
_COLUMNS = ("start_ns", "wall_ns", "lag_ns", "outcome")
_STREAM_COLUMNS = ("ttft_ns", "num_tokens")
_PLAIN = (
    "url",
    "protocol",
    "payload",
    "server",
    "seed",
    "num_workers",
    "timeout_s",
    "limit_ms",
    "limit_percentile",
    "num_requests",
    "num_not_sent",
    "client_cpu_us",
    "max_in_flight",
    "num_connections",
    "begin_uncertainty_s",
    "tokens_are_chunks",
    "is_complete",
    "stopped_because",
)


def save_result(result: LoadResult, folder: Path) -> None:
    """Write `load.json` and the samples into a folder.

    Raises:
        StorageError: The folder cannot be written.
    """
    columns = {name: getattr(result, name) for name in _COLUMNS}
    if result.ttft_ns is not None and result.num_tokens is not None and result.itl_ns is not None:
        columns |= {name: getattr(result, name) for name in _STREAM_COLUMNS}
        atomic_write(folder / GAPS, columns_to_bytes({"itl_ns": result.itl_ns}))
    atomic_write(folder / SAMPLES, columns_to_bytes(columns))
    seconds = [asdict(second) for second in result.timeline()]
    histograms = {
        "histogram": result.histogram_all.encode(),
        "histogram_ok": result.histogram.encode(),
        "lag_histogram": result.lag_histogram.encode(),
    }
    value = {"schema_version": 1} | result.summary() | {"timeline": seconds} | histograms
    atomic_write(folder / LOAD, pretty_json(value))


def load_result(folder: Path) -> LoadResult:
    """Read what `save_result` wrote.

    Raises:
        UsageError: The folder holds no load test.
        ArtifactError: It is damaged.
    """
    from bench.load.result import Failure, LoadResult

    value = read_json(folder / LOAD, mend="Make one with `edgesmith load`.")
    samples = read_columns(folder / SAMPLES)
    with damage_errors(folder / LOAD):
        is_stream = value["streams"] is not None
        plain: dict[str, Any] = {name: value[name] for name in _PLAIN}
        result = LoadResult(
            **plain,
            start_ns=samples["start_ns"],
            wall_ns=samples["wall_ns"],
            lag_ns=samples["lag_ns"],
            outcome=samples["outcome"],
            ttft_ns=samples["ttft_ns"] if is_stream else None,
            num_tokens=samples["num_tokens"] if is_stream else None,
            shape=Shape.from_json(value["shape"]),
            itl_ns=read_columns(folder / GAPS)["itl_ns"] if is_stream else None,
            failures=tuple(Failure(**failure) for failure in value["failures"]),
            histogram=Histogram.decode(value["histogram_ok"]),
            lag_histogram=Histogram.decode(value["lag_histogram"]),
            notes=tuple(value["notes"]),
            machine=Machine.from_json(value["machine"]),
            conditions=None if value["conditions"] is None else Conditions.from_json(value["conditions"]),
        )
        _check(result, value)
        return result


def _check(result: LoadResult, value: Mapping[str, Any]) -> None:
    """Refuse parts that contradict each other.

    Raises:
        ValueError: They do.
    """
    n = len(result.wall_ns)
    if value["num_samples"] != n or n > result.num_requests:
        raise ValueError(f"{n} samples of {result.num_requests} requests instead of {value['num_samples']}")
    if n and (result.outcome.min() < 0 or result.outcome.max() > len(result.failures)):
        raise ValueError("an outcome that is no failure's")
    if min((failure.count for failure in result.failures), default=1) < 1:
        raise ValueError("a failure that nothing met")
    if result.histogram.num_samples != result.num_ok:
        raise ValueError(f"{result.histogram.num_samples} in the histogram, {result.num_ok} right answers")
    if Histogram.decode(value["histogram"]) != result.histogram_all:
        raise ValueError("the histogram is not that of the right answers and the failures")
    if result.is_sampled:
        counts = np.bincount(result.outcome, minlength=len(result.failures) + 1)[1:]
        if counts.tolist() != [failure.count for failure in result.failures]:
            raise ValueError("the samples' failures are not those counted")
    if n and ((np.diff(result.start_ns) < 0).any() or result.wall_ns.min() <= 0 or result.lag_ns.min() < 0):
        raise ValueError("requests out of order, or times that are not positive")
