"""What happens to requests when the server is told to stop, when a model is swapped, and when clients go."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import re
import signal
import socket
import struct
import threading
import time

from serve_bench.context import Context, token_arrays
from serve_bench.overload import capacity_of
from serve_bench.processes import Running, get, resident_mb
from serve_bench.report import at_most, exactly, slope_of
from serve_bench.subjects import launch_ours
from serve_bench.swarm import LOST, REFUSED, UNANSWERED, Swarm
from serve_bench.wire import infer_body, post

__all__ = ["gauges", "measure_disconnects", "measure_drain", "measure_swaps"]

TOKEN = "measure-serve-admin-token"
NUM_DRAINS, NUM_SWAPS, NUM_DISCONNECTS = 5, 100, 1000


def _requests(length: int = 64) -> list[bytes]:
    return [infer_body(token_arrays(1, length, seed=seed), is_binary=True) for seed in range(16)]


def gauges(port: int) -> dict[str, float]:
    """Sums of the metrics that have no bucket, by name."""
    found: dict[str, float] = {}
    for line in get(port, "/metrics")[1].decode().splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{[^}]*\})? (\S+)", line):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def measure_drain(context: Context) -> None:
    """SIGTERM at half load: every request that was taken is answered."""
    rows: list[list[object]] = []
    lost = sent = 0
    for number in range(context.times(NUM_DRAINS)):
        with launch_ours(f"m={context.classifier}", "--threads", "1") as server:
            rate = capacity_of(context, server.port, _requests(), 4.0) / 2
            seconds = context.seconds(6.0, 2.0)
            told: list[float] = []

            def between(
                now: float, server: Running = server, half: float = seconds / 2, told: list[float] = told
            ) -> None:
                if now > half and not told:
                    told.append(now)
                    server.process.send_signal(signal.SIGTERM)

            swarm = Swarm(server.port)
            found = swarm.open(_requests(), rate, seconds, seed=number, wait_s=10.0, between=between)
            swarm.close()
            code = server.process.wait(40)
        bad = found.count(LOST, UNANSWERED)
        lost += bad
        sent += len(found.status) - found.count(REFUSED)
        rows.append(
            [f"{number + 1}", f"{rate:.0f}", found.count(200), found.count(503), found.count(REFUSED), bad, code]
        )
    context.report.table(
        "SIGTERM at half load",
        ("run", "requests/s", "answered", "refused with 503", "no listener any more", "lost", "exit code"),
        rows,
    )
    context.report.check(exactly("SIGTERM at half load: accepted requests lost = 0", lost, 0, of=sent))


def measure_swaps(context: Context) -> None:
    """Load the model anew, again and again, while clients ask it."""
    num_swaps, requests = context.times(NUM_SWAPS, 8), _requests()
    with launch_ours(
        f"m={context.classifier}", "--threads", "1", environment={"EDGESMITH_ADMIN_TOKEN": TOKEN}
    ) as server:  # fmt: skip
        rate = capacity_of(context, server.port, requests, 3.0) * 0.4
        memory: list[float] = []
        took: list[float] = []
        codes: list[int] = []
        over = threading.Event()

        def swap() -> None:
            try:
                for _ in range(num_swaps):
                    begin = time.monotonic()
                    codes.append(_load(server.port))
                    took.append(time.monotonic() - begin)
                    time.sleep(0.1)
                    memory.append(resident_mb(server.pid))
            finally:
                over.set()

        swapper = threading.Thread(target=swap)
        swapper.start()
        swarm = Swarm(server.port)
        total, bad, statuses = 0, 0, set()
        while not over.is_set():
            found = swarm.open(requests, rate, 2.0, wait_s=30.0, seed=total)
            total += len(found.status)
            bad += len(found.status) - found.count(200)
            statuses |= set(found.status)
        swapper.join()
        swarm.close()
    slope = slope_of(memory[len(memory) // 10 :], "MB a swap")
    context.report.table(
        "Swaps under load",
        ("what", "found"),
        [
            ["swaps", f"{codes.count(200)} of {num_swaps}"],
            ["seconds a swap, median and most", f"{sorted(took)[len(took) // 2]:.2f}, {max(took):.2f}"],
            ["requests", f"{total:,} at {rate:.0f}/s"],
            ["not answered with 200", f"{bad:,} ({sorted(statuses)})"],
            ["resident memory first, last, most, MB", f"{memory[0]:.0f}, {memory[-1]:.0f}, {max(memory):.0f}"],
            ["slope of memory after the first tenth, MB a swap", slope],
        ],
    )
    context.report.check(
        exactly("swaps under load: errors = 0", bad + num_swaps - codes.count(200), 0, of=total),
        at_most("swaps: memory slope < 1 MB a swap", slope, 1.0),
    )


def _load(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    connection.request("POST", "/v2/repository/models/m/load", b"{}", headers)
    status = connection.getresponse().status
    connection.close()
    return status


def measure_disconnects(context: Context) -> None:
    """Cut streams and long requests at all moments; then nothing may be held, and all slots must still write."""
    count = context.times(NUM_DISCONNECTS, 20)
    stream = json.dumps(
        {"model": "t", "prompt": "Call me", "max_tokens": 200, "stream": True, "temperature": 0}
    ).encode()
    long_infer = infer_body(token_arrays(16, 128), is_binary=True)
    with launch_ours(f"m={context.classifier}", f"t={context.language}", "--threads", "1", "--slots", "4") as server:
        before = gauges(server.port)
        draw = random.Random(0)
        for number in range(count):
            request = post("/v1/completions", stream) if number % 2 else long_infer
            _cut(server.port, request, draw, wait_s=draw.choice([0.0, 0.002, 0.02, 0.1]))
        after = _settle(server.port)
        finished = _write(server.port, 4)
        held = {name: after.get(name, -1) for name in ("edgesmith_queue_length", "edgesmith_running_requests")}
        connections = after.get("edgesmith_connections", -1) - before.get("edgesmith_connections", 0)
        gone = after.get("edgesmith_gone_clients_total", 0.0)
        ready = get(server.port, "/v2/health/ready")[0]
    leaked = int(sum(held.values()) + max(0.0, connections)) + (4 - finished)
    context.report.table(
        "Clients that go",
        ("what", "found"),
        [
            ["cut, half of them streams of a language model", f"{count:,}"],
            ["noticed before the answer was whole", f"{gone:,.0f}"],
            ["waiting afterwards", f"{held['edgesmith_queue_length']:.0f}"],
            ["running afterwards", f"{held['edgesmith_running_requests']:.0f}"],
            ["connections more than before", f"{connections:.0f}"],
            ["texts finished at once afterwards, of 4 slots", finished],
            [
                "descriptors before, after",
                f"{before.get('process_open_fds', 0):.0f}, {after.get('process_open_fds', 0):.0f}",
            ],
            ["resident memory before, after, MB", f"{_mb(before):.0f}, {_mb(after):.0f}"],
            ["ready", ready],
        ],
    )
    context.report.check(exactly(f"{count:,} disconnects: leaked slots = 0", leaked, 0, of=count))


def _mb(found: dict[str, float]) -> float:
    return found.get("process_resident_memory_bytes", 0.0) / 1e6


def _cut(port: int, request: bytes, draw: random.Random, *, wait_s: float) -> None:
    """Send a request, or a part of one, and go: by FIN or by RST, at once or in the middle of the answer."""
    plug = socket.create_connection(("127.0.0.1", port), timeout=10)
    with contextlib.suppress(OSError):
        plug.sendall(request if draw.random() < 0.9 else request[: draw.randrange(len(request))])
        if wait_s == 0.1:
            plug.settimeout(0.2)
            plug.recv(1000)
        else:
            time.sleep(wait_s)
    if draw.random() < 0.5:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plug.close()


def _settle(port: int) -> dict[str, float]:
    """The gauges when nothing waits or runs any more, or after 20 s."""
    for number in itertools.count():
        found = gauges(port)
        busy = found.get("edgesmith_queue_length", 1) + found.get("edgesmith_running_requests", 1)
        if (not busy and found.get("edgesmith_connections", 2) <= 1) or number >= 200:
            return found
        time.sleep(0.1)
    raise AssertionError


def _write(port: int, count: int) -> int:
    body = json.dumps({"model": "t", "prompt": "Call me Ishmael.", "max_tokens": 16, "temperature": 0}).encode()
    swarm = Swarm(port)
    found = swarm.open([post("/v1/completions", body)], count * 1000.0, count / 1000.0 * 3, wait_s=60.0)
    swarm.close()
    return min(count, found.count(200))
