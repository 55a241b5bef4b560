"""Rows a second at concurrency 32, against the engine driven directly with the best fixed batch."""

from __future__ import annotations

import time
from pathlib import Path

from serve_bench.context import Context, token_arrays
from serve_bench.processes import cpu_ns
from serve_bench.report import at_least, median_of
from serve_bench.subjects import OURS, PEERS, EngineChild, Subject
from serve_bench.swarm import Swarm

__all__ = ["best_batch", "measure_throughput"]

CONCURRENCY = 32
BATCHES = (1, 2, 4, 8, 16, 32)
NUM_PAIRS = 10
LEAST_PERCENT = 92.0
HEAD = ("server", "tokens", "form", "rows/s", "of the engine's rows/s, %", "of its rows per CPU second, %", "p50, ms",
        "p99, ms", "failed")  # fmt: skip


def measure_throughput(context: Context, *, with_peers: bool) -> None:
    """Measure all servers at two lengths; only ours with its defaults has a limit."""
    rows: list[list[object]] = []
    for length in context.arguments.lengths:
        engine = EngineChild(context.classifier, context.folder)
        try:
            batch, table = best_batch(context, engine, length)
            context.report.table(f"Engine alone, {length} tokens, by fixed batch", ("batch", "rows/s"), table)
            kept = context.folder / f"{length}-{batch}.npz"
            fixed = Subject(f"edgesmith --max-batch-size {batch}", "ours", ("--max-batch-size", str(batch)))
            for subject in [OURS, fixed, *(PEERS if with_peers else ())]:
                if subject.is_here:
                    rows += _measure(context, subject, engine, kept, length, batch)
        finally:
            engine.close()
    context.report.table(
        f"Throughput at concurrency {CONCURRENCY}",
        HEAD,
        rows,
        "Medians of pairs of blocks, server then engine with its best fixed batch, with 95 % intervals; one core each "
        "for server (or engine) and client. Peers may batch as many rows as the engine's best; LitServe and MLServer "
        "wait 2 ms for them.",
    )


def best_batch(context: Context, engine: EngineChild, length: int) -> tuple[int, list[list[object]]]:
    """The fixed batch with the most rows a second, of several rounds in turn."""
    context.say(f"engine alone, {length} tokens")
    files = {size: engine.keep(f"{length}-{size}", token_arrays(size, length)) for size in BATCHES}
    rates: dict[int, list[float]] = {size: [] for size in BATCHES}
    for _ in range(context.times(5, 2)):
        for size, file in files.items():
            calls, _, wall = engine.run(file, seconds=context.seconds(1.0, 0.2))
            rates[size].append(calls * size / wall)
    found = {size: median_of(values, "") for size, values in rates.items()}
    return max(found, key=lambda size: found[size].value), [[str(size), one] for size, one in found.items()]


def _measure(
    context: Context, subject: Subject, engine: EngineChild, kept: Path, length: int, batch: int
) -> list[list[object]]:
    context.say(f"throughput: {subject.name}, {length} tokens")
    form = "JSON" if subject.kind in ("litserve", "mlserver", "fastapi") else "binary"
    requests = [subject.request(token_arrays(1, length, seed=seed), form) for seed in range(64)]
    ratios, cpu_ratios, rates = [], [], []
    latencies: list[float] = []
    failed = 0
    with subject.start(context.classifier, context.folder, batch=batch) as server:
        swarm = Swarm(server.port)
        swarm.closed(requests, CONCURRENCY, context.seconds(2.0))
        for _ in range(context.times(NUM_PAIRS, 3)):
            cpu, wall = cpu_ns(server.pid), time.perf_counter()
            outcomes = swarm.closed(requests, CONCURRENCY, context.seconds(3.0))
            wall, spent = time.perf_counter() - wall, (cpu_ns(server.pid) - cpu) / 1e9
            good = outcomes.count(200)
            failed += len(outcomes.status) - good
            latencies += outcomes.latencies_ms(200)
            calls, engine_cpu, engine_wall = engine.run(kept, seconds=context.seconds(3.0))
            direct = calls * batch
            rates.append(good / wall)
            ratios.append(100 * (good / wall) / (direct / engine_wall))
            cpu_ratios.append(100 * (good / spent) / (direct / engine_cpu))
        swarm.close()
    latencies.sort()
    share = median_of(ratios, "%")
    if subject is OURS:
        what = f"throughput at concurrency {CONCURRENCY}, {length} tokens ≥ {LEAST_PERCENT:g} % of the engine's"
        context.report.check(at_least(what, share, LEAST_PERCENT))
    ends = [latencies[int(len(latencies) * q)] for q in (0.5, 0.99)] if latencies else [float("nan")] * 2
    return [[subject.name, str(length), form, median_of(rates, ""), median_of(ratios, ""), median_of(cpu_ratios, ""),
             *ends, failed]]  # fmt: skip
