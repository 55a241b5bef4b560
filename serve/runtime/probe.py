"""Measure an artifact in a process of its own: cold start, first answer, steady state, memory.

`python -m serve.runtime.probe ARTIFACT [--threads N] [--runs N]` prints one JSON object. It needs nothing but
the thin runtime, so it is what runs on a device.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import EdgesmithError, UsageError
from serve.runtime import Engine, EngineOptions, open_engine, open_generation_engine
from serve.runtime.generation import TextChunk
from serve.runtime.golden import check_golden, read_golden
from serve.runtime.golden_generation import PROMPT, check_golden_generation, read_golden_generation

__all__ = ["main", "peak_rss_bytes", "private_bytes", "probe"]

GENERATING_KINDS = ("gguf", "genai")

NUM_WARMUP = 3
FREE_AXIS_LENGTH = 8


def probe(path: Path, *, threads: int = 1, num_runs: int = 30, inputs: Path | None = None) -> dict[str, Any]:
    """Open an artifact and run it.

    Args:
        path: The artifact.
        threads: Threads for one run.
        num_runs: Timed runs, after a few for warming up; of a model that generates text, timed tokens.
        inputs: A safetensors file with one array for each input; by default the artifact's golden inputs, and
            for a model without them ones of a small shape.

    Returns:
        Times in milliseconds: `startup_cpu_ms` of the interpreter and its imports, `verify_ms` to hash the
        artifact's files, `load_ms` to import the engine's library and open the model, `first_run_ms` (of a model
        that generates text: the prompt and the first token), then `latency_ms` and `cpu_ms` of a run; memory of
        this process, see `peak_rss_bytes` and `private_bytes`; and the golden check. `began_at_ns` and
        `answered_at_ns` are moments of the system's monotonic clock, which the process that started this one may
        compare with its own: the end of the imports, and the first answer.

    Raises:
        EdgesmithError: As `open_artifact`, `open_engine` and `Engine.run` do.
    """
    if num_runs < 1:
        raise UsageError(f"runs is {num_runs}; it must be at least 1")
    began_at_ns, startup_cpu_ms = time.monotonic_ns(), time.process_time_ns() / 1e6
    start = time.perf_counter_ns()
    artifact = open_artifact(path)
    verified = time.perf_counter_ns()
    run = _run_generator if artifact.kind in GENERATING_KINDS else _run_arrays
    result = run(artifact, threads, num_runs, inputs)
    return {
        "artifact": artifact.digest,
        "threads": threads,
        "num_runs": num_runs,
        "began_at_ns": began_at_ns,
        "startup_cpu_ms": startup_cpu_ms,
        "verify_ms": (verified - start) / 1e6,
        **result,
    }


def _run_arrays(artifact: Artifact, threads: int, num_runs: int, inputs: Path | None) -> dict[str, Any]:
    """Open and run what turns arrays into arrays."""
    start = time.perf_counter_ns()
    engine = open_engine(artifact, EngineOptions(threads=threads))
    loaded = time.perf_counter_ns()
    arrays = _inputs(artifact, engine, inputs)
    first = time.perf_counter_ns()
    engine.run(arrays)
    answered, answered_at_ns = time.perf_counter_ns(), time.monotonic_ns()
    latencies_ms, cpu_ms = _time_runs(engine, arrays, num_runs)
    memory = _memory()
    golden = check_golden(artifact, engine)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    result = {
        "engine": engine.name,
        "request": "inputs of " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
        "input_shapes": shapes,
        "answered_at_ns": answered_at_ns,
        "load_ms": (loaded - start) / 1e6,
        "first_run_ms": (answered - first) / 1e6,
        "latency_ms": _spread(latencies_ms),
        "cpu_ms": _spread(cpu_ms),
        **memory,
        "golden": asdict(golden) if golden is not None else None,
    }
    engine.close()
    return result


def _run_generator(artifact: Artifact, threads: int, num_runs: int, inputs: Path | None) -> dict[str, Any]:
    """Open what generates text, and let it answer a fixed prompt."""
    if inputs is not None:
        raise UsageError(f"{artifact.path}: generates text from a prompt and takes no arrays")
    start = time.perf_counter_ns()
    engine = open_generation_engine(artifact, EngineOptions(threads=threads))
    loaded = time.perf_counter_ns()
    golden = read_golden_generation(artifact)
    prompt = PROMPT if golden is None else golden.prompt
    first = time.perf_counter_ns()
    answer = engine.generate(prompt, max_tokens=1 + NUM_WARMUP + num_runs)
    next(answer)
    answered, answered_at_ns = time.perf_counter_ns(), time.monotonic_ns()
    latencies_ms, cpu_ms = _time_tokens(answer)
    memory = _memory()
    check = check_golden_generation(artifact, engine)
    result = {
        "engine": engine.name,
        "request": f"a prompt of {engine.count_prompt_tokens(prompt)} tokens and the first token of its answer",
        "answered_at_ns": answered_at_ns,
        "load_ms": (loaded - start) / 1e6,
        "first_run_ms": (answered - first) / 1e6,
        "latency_ms": _spread(latencies_ms),
        "cpu_ms": _spread(cpu_ms),
        **memory,
        "golden": asdict(check) if check is not None else None,
    }
    engine.close()
    return result


def _time_tokens(answer: Iterator[TextChunk]) -> tuple[list[float], list[float]]:
    """Wall and CPU time of each further token but the first few, in milliseconds; none if the answer has ended."""
    moments = [(time.perf_counter_ns(), time.process_time_ns())]
    moments += [(time.perf_counter_ns(), time.process_time_ns()) for _ in answer]
    steps = list(pairwise(moments))[NUM_WARMUP:]
    return [(end[0] - begin[0]) / 1e6 for begin, end in steps], [(end[1] - begin[1]) / 1e6 for begin, end in steps]


def _spread(samples_ms: list[float]) -> dict[str, Any] | None:
    return {"p50": median(samples_ms), "min": min(samples_ms), "samples": samples_ms} if samples_ms else None


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

    Pages of files that are mapped, such as the weights of a GGUF file, are in it as far as they were read; the
    system takes them back when it needs the room. `private_bytes` is without them.

    On Linux from /proc: `ru_maxrss` there starts at the size of the process that started this one.
    """
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def private_bytes() -> int | None:
    """Resident memory that is this process's own now, without mapped files; None where the system does not say."""
    return _status_bytes("RssAnon")


def _status_bytes(name: str) -> int | None:
    status = Path("/proc/self/status")
    text = status.read_text(encoding="ascii", errors="replace") if status.is_file() else ""
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _memory() -> dict[str, int | None]:
    return {"peak_rss_bytes": peak_rss_bytes(), "private_bytes": private_bytes()}


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
