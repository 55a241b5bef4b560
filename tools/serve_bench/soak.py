"""Mixed traffic for a quarter of an hour: memory and descriptors must stay where they are."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter

from serve_bench.context import Context, token_arrays
from serve_bench.lifecycle import gauges
from serve_bench.overload import capacity_of
from serve_bench.processes import descriptors, resident_mb
from serve_bench.report import Check, Outcome, slope_of
from serve_bench.subjects import launch_ours
from serve_bench.swarm import Swarm
from serve_bench.wire import infer_body, post

__all__ = ["measure_soak"]

WARM_UP_SHARE = 0.2
TEXT = "Shares fell after the bank cut its forecast for the year. "


def _mixture() -> list[bytes]:
    """Requests of all protocols, of many lengths, and some that are wrong."""
    draw = random.Random(0)
    found = []
    for number in range(200):
        length = draw.randrange(4, 128)
        arrays = token_arrays(draw.choice([1, 1, 1, 2, 4]), length, seed=number)
        write = {"model": "t", "prompt": TEXT * draw.randrange(1, 4), "max_tokens": draw.randrange(1, 9)}
        found.append(
            draw.choices(
                [
                    infer_body(arrays, is_binary=True),
                    infer_body(arrays, is_binary=False),
                    post("/predict/m", json.dumps({"text": TEXT * draw.randrange(1, 6)}).encode()),
                    post("/v1/completions", json.dumps(write).encode()),
                    post("/v2/models/m/infer", b'{"inputs": [{"name": '),
                    post(f"/nowhere/{number}", b"{}"),
                    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
                ],
                [6, 3, 4, 1, 1, 1, 0.2],
            )[0]
        )
    return found


def measure_soak(context: Context) -> None:
    """Ask for the given minutes at a third of the capacity."""
    seconds = max(10.0, context.arguments.soak_minutes * 60 * context.scale)
    memory: list[float] = []
    open_files: list[int] = []
    statuses: Counter[int] = Counter()
    draw = random.Random(1)
    with launch_ours(f"m={context.classifier}", f"t={context.language}", "--threads", "1") as server:
        rate = capacity_of(context, server.port, _mixture(), 5.0) / 3
        context.say(f"soak: {seconds:.0f} s at {rate:.0f} requests/s")

        def between(now: float) -> None:
            if now < len(memory):
                return
            memory.append(resident_mb(server.pid))
            open_files.append(descriptors(server.pid) - swarm.num_connections)
            with socket.create_connection(("127.0.0.1", server.port)) as plug:  # somebody goes in the middle
                plug.sendall(_mixture_part(draw))

        swarm = Swarm(server.port)
        found = swarm.open(_mixture(), rate, seconds, between=between, wait_s=20.0)
        swarm.close()
        statuses.update(found.status)
        after = gauges(server.port)
    first = int(len(memory) * WARM_UP_SHARE)
    per_hour = [value * 3600 for value in memory[first:]]
    slope, files = slope_of(per_hour, "MB an hour"), slope_of([float(one) for one in open_files[first:]], "a second")
    context.report.table(
        f"Soak, {seconds / 60:.1f} min at {rate:.0f} requests/s",
        ("what", "found"),
        [
            ["answers by status", ", ".join(f"{code}: {count:,}" for code, count in sorted(statuses.items()))],
            ["resident memory at first, after the warm-up, at last, MB",
             f"{memory[0]:.1f}, {memory[first]:.1f}, {memory[-1]:.1f}"],
            ["slope after the warm-up", slope],
            ["descriptors beside clients' connections, least and most",
             f"{min(open_files[first:])}, {max(open_files[first:])}"],
            ["waiting and running at the end",
             f"{after.get('edgesmith_queue_length', -1):.0f}, {after.get('edgesmith_running_requests', -1):.0f}"],
        ],
        f"Memory and descriptors each second; slopes by regression on the means of 12 blocks after the first "
        f"{WARM_UP_SHARE:.0%}, with 95 % intervals. Each second a client goes in the middle of its request.",
    )  # fmt: skip
    context.report.check(
        Check("soak: memory slope indistinguishable from 0", str(slope), _flat(slope.low, slope.high)),
        Check("soak: descriptors flat", str(files), _flat(files.low, files.high)),
    )


def _mixture_part(draw: random.Random) -> bytes:
    request = draw.choice(_PARTS)
    return request[: draw.randrange(1, len(request))]


_PARTS = _mixture()[:20]


def _flat(low: float | None, high: float | None) -> Outcome:
    """A series that grows fails; one that falls does not grow."""
    if low is None or high is None:
        return "INCONCLUSIVE"
    return "PASS" if low <= 0 else "FAIL"
