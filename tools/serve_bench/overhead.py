"""Processor time of a request beyond that of the engine called in a loop with the same arrays."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from serve_bench.context import Context
from serve_bench.processes import Running, awake, cpu_ns
from serve_bench.report import Estimate, at_most, median_of
from serve_bench.subjects import OURS, PEERS, Arrays, EngineChild, Subject, identity, pooling
from serve_bench.swarm import Swarm
from serve_bench.wire import Wire

__all__ = ["measure_overhead"]

NUM_PAIRS = 24
LIMITS_US = {("1×128 int64", "JSON"): 120.0, ("1×128 int64", "binary"): 90.0, ("1×3×224×224 fp32", "binary"): 700.0}
HEAD = ("server", "tensor", "form", "CPU a request, µs", "engine a call, µs", "overhead, µs", "at 16 in flight, µs",
        "wall a request, µs", "idle CPU, ms/s")  # fmt: skip


def measure_overhead(context: Context, *, with_peers: bool) -> None:
    """Measure all servers on both tensors; only ours has limits."""
    cases: list[tuple[str, Path, Arrays, int]] = [
        ("1×128 int64", identity(context.folder), {"x": np.arange(1000, 1128).reshape(1, 128)}, 200),
        ("1×3×224×224 fp32", pooling(context.folder), {"x": _image()}, 24),
    ]
    rows = []
    for label, model, arrays, calls in cases:
        engine = EngineChild(model, context.folder)
        try:
            kept = engine.keep(label, arrays)
            for subject in [OURS, *(PEERS if with_peers else ())]:
                if subject.is_here:
                    rows += _measure(context, subject, label, model, arrays, engine, kept, calls)
        finally:
            engine.close()
    context.report.table(
        "Overhead",
        HEAD,
        rows,
        f"Median of pairs of blocks, a block of requests then one of engine calls, with its 95 % interval; {NUM_PAIRS} "
        "pairs at full length. CPU of a server and its child processes by the kernel's clocks; loops of the lowest "
        "priority keep the cores from halting. The figure at 16 in flight is over the same engine calls; where they "
        "run together it has less of the engine.",
    )


def _image() -> Any:
    return np.random.default_rng(0).random((1, 3, 224, 224), np.float32)


def _measure(
    context: Context,
    subject: Subject,
    label: str,
    model: Path,
    arrays: Arrays,
    engine: EngineChild,
    kept: Path,
    calls: int,
) -> list[list[object]]:
    rows: list[list[object]] = []
    context.say(f"overhead: {subject.name}, {label}")
    with subject.start(model, context.folder) as server, awake():
        for form in subject.forms():
            request = subject.request(arrays, form)
            slow = form == "JSON" and len(request) > 1_000_000
            block = max(4, calls // 8) if slow else calls
            found = _pairs(context, server, request, engine, kept, block, NUM_PAIRS // 2 if slow else NUM_PAIRS)
            crowd = _crowd(context, server, request, found["engine"].value)
            rows.append(
                [subject.name, label, form, *(found[name] for name in ("server", "engine", "overhead")), crowd,
                 found["wall"], _idle(context, server)]
            )  # fmt: skip
            limit = LIMITS_US.get((label, form))
            if subject is OURS and limit is not None:
                what = f"overhead of {label} {form} ≤ {limit:g} µs CPU"
                context.report.check(at_most(what, found["overhead"], limit))
    return rows


def _pairs(
    context: Context, server: Running, request: bytes, engine: EngineChild, kept: Path, calls: int, pairs: int
) -> dict[str, Estimate]:
    wire = Wire(server.port)
    status, body = wire.ask(request)
    if status != 200:
        raise SystemExit(f"{server.name} answers {status}: {body[:500]!r}")
    found: dict[str, list[float]] = {"server": [], "engine": [], "overhead": [], "wall": []}
    for _ in range(calls):
        wire.ask(request)
    engine.run(kept, calls=calls)
    for _ in range(context.times(pairs, 6)):
        cpu, wall = cpu_ns(server.pid), time.perf_counter_ns()
        for _ in range(calls):
            wire.ask(request)
        wall, cpu = time.perf_counter_ns() - wall, cpu_ns(server.pid) - cpu
        _, engine_cpu, _ = engine.run(kept, calls=calls)
        spent, alone = cpu / calls / 1e3, engine_cpu / calls * 1e6
        for name, value in (
            ("server", spent),
            ("engine", alone),
            ("overhead", spent - alone),
            ("wall", wall / calls / 1e3),
        ):
            found[name].append(value)
    wire.close()
    return {name: median_of(values, "") for name, values in found.items()}


def _crowd(context: Context, server: Running, request: bytes, engine_us: float) -> float:
    """Overhead a request when 16 are in flight."""
    swarm = Swarm(server.port)
    swarm.closed([request], 16, 0.2)
    found = []
    for _ in range(3):
        before = cpu_ns(server.pid)
        outcomes = swarm.closed([request], 16, context.seconds(1.0))
        found.append((cpu_ns(server.pid) - before) / 1e3 / max(1, outcomes.count(200)) - engine_us)
    swarm.close()
    return statistics.median(found)


def _idle(context: Context, server: Running) -> float:
    """Processor time of a server that is asked nothing, in ms a second."""
    seconds = context.seconds(2.0)
    before = cpu_ns(server.pid)
    time.sleep(seconds)
    return (cpu_ns(server.pid) - before) / 1e6 / seconds
