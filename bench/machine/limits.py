"""How near an artifact is to what the machine can do at the most, and what bounds it: a roofline of one point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.machine.operations import Operations, OperatorTime, count_operations, time_operators
from bench.machine.peaks import MachinePeaks
from bench.raw import damage_errors, pretty_json, read_json
from bench.scenarios.inputs import Arrays, Inputs
from bench.strict import check_numbers
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write

if TYPE_CHECKING:
    from bench.scenarios.latency import Latency
    from edgesmith.artifact import Artifact

__all__ = ["LIMITS", "Ideal", "Limits", "ideal_of", "measure_limits"]

LIMITS = "limits.json"
_MAX_COUNTED = 16


@dataclass(frozen=True, kw_only=True)
class Ideal:
    """The time of a request that meets the machine's peaks."""

    ms: float
    bound_by: str
    """`memory`, `fp32 arithmetic` or `int8 arithmetic`."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A machine's peaks, what an artifact asks of it, and how near it comes."""

    artifact_digest: str
    inputs: str
    operations: Operations
    """Of the request of median ideal time."""
    peaks: MachinePeaks
    ideal_ms: float
    measured_ms: float
    """Median CPU time of a request with one thread, median wall time with more."""
    bound_by: str
    operators: tuple[OperatorTime, ...]
    """Which operators take the time, most first."""

    @property
    def share(self) -> float:
        """Ideal over measured time: 1 is the machine's limit."""
        return self.ideal_ms / self.measured_ms

    @property
    def sentence(self) -> str:
        """Such as `38 % of this machine's limit, bound by int8 arithmetic`."""
        said = f"{100 * self.share:.0f} % of this machine's limit, bound by {self.bound_by}"
        if self.operations.not_counted:
            said += f" ({', '.join(self.operations.not_counted)} not counted)"
        if self.share > 1:
            said += " (more than its measured peaks allow: they were measured while it was busy)"
        return said

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "sentence": self.sentence,
            "share": self.share,
            "bound_by": self.bound_by,
            "ideal_ms": self.ideal_ms,
            "measured_ms": self.measured_ms,
            "operations": self.operations.to_json(),
            "operators": [asdict(operator) for operator in self.operators],
            "peaks": self.peaks.to_json(),
        }

    def save(self, folder: Path) -> None:
        """Write `limits.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / LIMITS, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Limits:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / LIMITS, mend="Make one with `edgesmith bench`.")
        with damage_errors(folder / LIMITS):
            names = ("artifact_digest", "inputs", "ideal_ms", "measured_ms", "bound_by")
            check_numbers(value, ("ideal_ms", "measured_ms"))
            check_numbers(value["operations"], ("fp32_macs", "int8_macs", "weight_bytes", "io_bytes"))
            for operator in value["operators"]:
                check_numbers(operator, ("share", "ms", "num_nodes"))
            if not value["measured_ms"] > 0:
                raise ValueError(f"a measured time of {value['measured_ms']} ms")
            return cls(
                **{name: value[name] for name in names},
                operations=Operations.from_json(value["operations"]),
                operators=tuple(OperatorTime(**operator) for operator in value["operators"]),
                peaks=MachinePeaks.from_json(value["peaks"]),
            )


def ideal_of(operations: Operations, peaks: MachinePeaks) -> Ideal:
    """The shortest time that the machine's peaks allow: moving the bytes and multiplying go on side by side.

    Args:
        operations: Of one request.
        peaks: Of the machine; weights are read at the rate of a working set of their size, which for small models
            is that of a cache.

    Source: Williams, Waterman & Patterson, "Roofline: an insightful visual performance model for multicore
    architectures", Communications of the ACM 52 (2009).
    """
    fp32_ms = 2 * operations.fp32_macs / peaks.fp32_gflop_s / 1e6
    int8_ms = 2 * operations.int8_macs / peaks.int8_gop_s / 1e6
    memory_ms = operations.num_bytes / peaks.read_rate(operations.num_bytes) / 1e6
    if memory_ms >= fp32_ms + int8_ms:
        return Ideal(ms=memory_ms, bound_by="memory")
    return Ideal(ms=fp32_ms + int8_ms, bound_by="fp32 arithmetic" if fp32_ms >= int8_ms else "int8 arithmetic")


def measure_limits(artifact: Artifact, inputs: Inputs, latency: Latency, peaks: MachinePeaks) -> Limits:
    """Count an artifact's operations and say how near its measured time is to the machine's limit.

    Args:
        artifact: An ONNX model.
        inputs: The requests that `latency` was measured with.
        latency: Of the artifact, with as many threads as `peaks`.
        peaks: From `bench.machine.peaks.measure_peaks`.

    Raises:
        UsageError: Threads differ, or there are no inputs.
        UnsupportedError: The artifact's engine writes no trace of its operators.
    """
    if latency.threads != peaks.threads:
        raise UsageError(f"times of {latency.threads} threads cannot be held against peaks of {peaks.threads}")
    if not inputs.arrays:
        raise UsageError("no inputs to count", mend="Give a data file with rows.")
    requests = _evenly(inputs.arrays, _MAX_COUNTED)
    counted = sorted(count_operations(artifact, requests), key=lambda one: ideal_of(one, peaks).ms)
    middle = counted[len(counted) // 2]
    not_counted = tuple(sorted({name for one in counted for name in one.not_counted}))
    ideal = ideal_of(middle, peaks)
    measured_ms = latency.cpu_ms if peaks.threads == 1 else float(np.median(latency.engine_ns)) / 1e6
    return Limits(
        artifact_digest=artifact.digest,
        inputs=inputs.description,
        operations=replace(middle, not_counted=not_counted),
        peaks=peaks,
        ideal_ms=ideal.ms,
        measured_ms=measured_ms,
        bound_by=ideal.bound_by,
        operators=time_operators(artifact, requests, threads=peaks.threads),
    )


def _evenly(requests: Sequence[Arrays], most: int) -> list[Arrays]:
    count = min(most, len(requests))
    return [requests[index * len(requests) // count] for index in range(count)]
