"""Measure an artifact in a process of its own: cold start, first answer, steady state, peak memory.

`python -m serve.runtime.probe ARTIFACT [--threads N] [--runs N]` prints one JSON object. It needs nothing but
the thin runtime, so it is what runs on a device.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import EdgesmithError, UsageError
from serve.runtime import Engine, EngineOptions, open_engine
from serve.runtime.golden import check_golden, read_golden

__all__ = ["main", "peak_rss_bytes", "probe"]

NUM_WARMUP = 3
FREE_AXIS_LENGTH = 8


def probe(path: Path, *, threads: int = 1, num_runs: int = 30, inputs: Path | None = None) -> dict[str, Any]:
    """Open an artifact and run it.

    Args:
        path: The artifact.
        threads: Threads for one run.
        num_runs: Timed runs, after a few for warming up.
        inputs: A safetensors file with one array for each input; by default the artifact's golden inputs, and
            for a model without them ones of a small shape.

    Returns:
        Times in milliseconds: `startup_cpu_ms` of the interpreter and its imports, `verify_ms` to hash the
        artifact's files, `load_ms` to import the engine's library and open the model, `first_run_ms`, then
        `latency_ms` and `cpu_ms` of a run; `peak_rss_bytes` of this process; and the golden check. `began_at_ns`
        and `answered_at_ns` are moments of the system's monotonic clock, which the process that started this one
        may compare with its own: the end of the imports, and the first answer.

    Raises:
        EdgesmithError: As `open_artifact`, `open_engine` and `Engine.run` do.
    """
    if num_runs < 1:
        raise UsageError(f"runs is {num_runs}; it must be at least 1")
    began_at_ns, startup_cpu_ms = time.monotonic_ns(), time.process_time_ns() / 1e6
    start = time.perf_counter_ns()
    artifact = open_artifact(path)
    verified = time.perf_counter_ns()
    engine = open_engine(artifact, EngineOptions(threads=threads))
    loaded = time.perf_counter_ns()
    arrays = _inputs(artifact, engine, inputs)
    first = time.perf_counter_ns()
    engine.run(arrays)
    answered, answered_at_ns = time.perf_counter_ns(), time.monotonic_ns()
    latencies_ms, cpu_ms = _time_runs(engine, arrays, num_runs)
    golden = check_golden(artifact, engine)
    result = {
        "engine": engine.name,
        "artifact": artifact.digest,
        "threads": threads,
        "num_runs": num_runs,
        "input_shapes": {name: list(array.shape) for name, array in arrays.items()},
        "began_at_ns": began_at_ns,
        "answered_at_ns": answered_at_ns,
        "startup_cpu_ms": startup_cpu_ms,
        "verify_ms": (verified - start) / 1e6,
        "load_ms": (loaded - verified) / 1e6,
        "first_run_ms": (answered - first) / 1e6,
        "latency_ms": {"p50": median(latencies_ms), "min": min(latencies_ms), "samples": latencies_ms},
        "cpu_ms": {"p50": median(cpu_ms), "min": min(cpu_ms), "samples": cpu_ms},
        "peak_rss_bytes": peak_rss_bytes(),
        "golden": asdict(golden) if golden is not None else None,
    }
    engine.close()
    return result


def _time_runs(engine: Engine, arrays: dict[str, NDArray[Any]], num_runs: int) -> tuple[list[float], list[float]]:
    """Wall and CPU time of each run, in milliseconds."""
    for _ in range(NUM_WARMUP):
        engine.run(arrays)
    wall_ms, cpu_ms = [], []
    for _ in range(num_runs):
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        engine.run(arrays)
        cpu_ms.append((time.process_time_ns() - cpu) / 1e6)
        wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
    return wall_ms, cpu_ms


def _inputs(artifact: Artifact, engine: Engine, given: Path | None) -> dict[str, NDArray[Any]]:
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{given}: no such file of inputs")
        try:
            return dict(load_file(given))
        except SafetensorError as error:
            raise UsageError(f"{given}: is no safetensors file: {error}") from error
    golden = read_golden(artifact)
    if golden is not None:
        return golden.inputs
    arrays: dict[str, NDArray[Any]] = {}
    for spec in engine.signature.inputs:
        shape = [axis if isinstance(axis, int) and axis > 0 else FREE_AXIS_LENGTH for axis in spec.shape]
        arrays[spec.name] = np.ones(shape, spec.dtype)
    return arrays


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far, in bytes.

    On Linux from /proc: `ru_maxrss` there starts at the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _finite(value: Any) -> Any:
    """JSON has no infinity: written as null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serve.runtime.probe", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--inputs", type=Path, default=None, help="safetensors file with one array for each input")
    given = parser.parse_args(arguments)
    try:
        result = probe(given.artifact, threads=given.threads, num_runs=given.runs, inputs=given.inputs)
    except EdgesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(_finite(result), allow_nan=False) + "\n")
    golden = result["golden"]
    return 0 if golden is None or golden["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
