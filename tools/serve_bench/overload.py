"""Three times the capacity, in an open loop: what is still answered, how fast the rest is refused, and afterwards."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from serve_bench.context import Context, token_arrays
from serve_bench.processes import resident_mb
from serve_bench.report import Estimate, at_least, at_most, median_of
from serve_bench.subjects import launch_ours
from serve_bench.swarm import LOST, REFUSED, UNANSWERED, Outcomes, Swarm
from serve_bench.wire import Wire, infer_body

__all__ = ["capacity_of", "measure_overload"]

OVERLOAD = 3.0
SECONDS = 60.0
PROBE_S = 0.02


def capacity_of(context: Context, port: int, requests: list[bytes], seconds: float = 10.0) -> float:
    """Answers a second at concurrency 64."""
    swarm = Swarm(port)
    swarm.closed(requests, 64, context.seconds(2.0))
    found = swarm.closed(requests, 64, context.seconds(seconds, 1.0))
    swarm.close()
    return found.rate(200, found.begin_ns, found.end_ns)


def measure_overload(context: Context) -> None:
    """Overload the classifier."""
    length = context.arguments.lengths[0]
    requests = [infer_body(token_arrays(1, length, seed=seed), is_binary=True) for seed in range(64)]
    with launch_ours(f"m={context.classifier}", "--threads", "1") as server:
        before = capacity_of(context, server.port, requests)
        alone = _alone_ms(server.port, requests[0])
        memory = resident_mb(server.pid)
        seconds = context.seconds(SECONDS, 3.0)
        context.say(f"overload: capacity {before:.0f}/s, {seconds:.0f} s at {OVERLOAD:g} times that")
        swarm = Swarm(server.port)
        with ThreadPoolExecutor(1) as pool:  # the first probe goes out when the last request of the overload has
            probing = pool.submit(_recover, server.port, requests[0], time.monotonic() + seconds, alone)
            found = swarm.open(requests, before * OVERLOAD, seconds)
            most_in_flight = swarm.max_in_flight
            swarm.close()
            accepts_s, normal_s = probing.result()
        grown = resident_mb(server.pid) - memory
        after = capacity_of(context, server.port, requests)
    _tell(context, found, before, after, alone, accepts_s, normal_s, grown, most_in_flight, length)


def _alone_ms(port: int, request: bytes) -> float:
    wire, spent = Wire(port), []
    for _ in range(30):
        begin = time.perf_counter()
        wire.ask(request)
        spent.append((time.perf_counter() - begin) * 1e3)
    wire.close()
    return median_of(spent, "ms").value


def _recover(port: int, request: bytes, ended: float, alone_ms: float) -> tuple[float, float]:
    """Seconds from the overload's end to the first accepted request, and to latencies as before; ten in a row."""
    accepts_s, normal, since = float("nan"), 0, 0.0
    time.sleep(max(0.0, ended - time.monotonic()))
    while time.monotonic() - ended < 30 and normal < 10:
        begin = time.monotonic()
        wire = Wire(port)
        status = wire.ask(request)[0]
        wire.close()
        if status == 200 and accepts_s != accepts_s:
            accepts_s = time.monotonic() - ended
        if status == 200 and (time.monotonic() - begin) * 1e3 < 3 * alone_ms + 5:
            since = since if normal else begin - ended
            normal += 1
        else:
            normal = 0
        time.sleep(PROBE_S)
    return accepts_s, since if normal >= 10 else float("inf")


def _tell(
    context: Context,
    found: Outcomes,
    before: float,
    after: float,
    alone_ms: float,
    accepts_s: float,
    normal_s: float,
    grown_mb: float,
    most_in_flight: int,
    length: int,
) -> None:
    first = found.begin_ns + int(1e9)  # the queue fills
    windows = [
        (begin, begin + int(1e9)) for begin in range(first, found.end_ns - int(1e9) + 1, int(1e9))
    ] or [(found.begin_ns, found.end_ns)]  # fmt: skip
    goodput = median_of([100 * found.rate(200, *window) / before for window in windows], "%")
    overall = found.rate(200, first, found.end_ns)
    refused = found.latencies_ms(503, is_from_due=False)
    from_due = found.latencies_ms(503)
    good = found.latencies_ms(200)
    total = len(found.status)
    p99 = Estimate(_at(refused, 0.99), "ms", len(refused))
    rows: list[list[object]] = [
        ["capacity before, closed loop of 64", f"{before:.1f}/s"],
        ["offered", f"{before * OVERLOAD:.1f}/s, {total:,} requests"],
        ["answered with 200", f"{found.count(200):,}, {overall:.1f}/s"],
        ["refused with 503", f"{len(refused):,}"],
        ["no listener or no connection", f"{found.count(REFUSED):,}"],
        ["lost connections", f"{found.count(LOST):,}"],
        ["given up", f"{found.count(UNANSWERED):,}"],
        ["other statuses", f"{total - found.count(200, 503, LOST, REFUSED, UNANSWERED):,}"],
        ["goodput, % of capacity, by seconds", goodput],
        ["rejection from sending, p50 / p99 / most, ms", " / ".join(f"{_at(refused, q):.2f}" for q in (0.5, 0.99, 1))],
        ["rejection from its due time, p50 / p99, ms", " / ".join(f"{_at(from_due, q):.2f}" for q in (0.5, 0.99))],
        ["answer from its due time, p50 / p99, ms", " / ".join(f"{_at(good, q):.0f}" for q in (0.5, 0.99))],
        ["a request alone before, ms", alone_ms],
        ["accepts again after, s", accepts_s],
        ["latency as before again after, s", normal_s],
        ["capacity afterwards", f"{after:.1f}/s"],
        ["memory grown by, MB", grown_mb],
        ["most in flight", most_in_flight],
    ]
    context.report.table(f"Overload, MiniLM int8, {length} tokens", ("what", "found"), rows)
    context.report.check(
        at_least("overload: goodput ≥ 90 % of capacity", goodput, 90),
        at_most("overload: rejections' p99 ≤ 10 ms", p99, 10),
        at_most("overload: latency as before in 2 s", Estimate(normal_s, "s", 1), 2),
    )


def _at(ordered: list[float], quantile: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] if ordered else float("nan")
