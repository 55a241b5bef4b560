"""Clients that dawdle or attack, while another one must be answered."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

from serve_bench.context import Context, token_arrays
from serve_bench.processes import cpu_ns, get
from serve_bench.report import exactly
from serve_bench.subjects import launch_ours
from serve_bench.wire import Wire, infer_body, post

__all__ = ["measure_hostile"]

NUM_SLOW, NUM_BYTES, DEPTH = 100, 3_000_000, 101


def measure_hostile(context: Context) -> None:
    """Attack in turn; after each, and meanwhile, the server must answer."""
    rows: list[list[object]] = []
    with launch_ours(f"m={context.classifier}", "--threads", "1") as server:
        attacks: dict[str, Callable[[], str]] = {
            f"{NUM_SLOW} clients that send a byte of their headers a second": lambda: _slow_loris(context, server.port),
            f"{NUM_BYTES / 1e6:g} MB in chunks of 1 byte": lambda: _tiny_chunks(server.port),
            f"JSON of depth {DEPTH}": lambda: _deep(server.port, DEPTH),
            "JSON of depth 100,000": lambda: _deep(server.port, 100_000),
        }
        for name, attack in attacks.items():
            context.say(f"hostile: {name}")
            cpu, begin = cpu_ns(server.pid), time.monotonic()
            told, latencies, failed = _beside(server.port, attack)
            seconds = time.monotonic() - begin
            ready = get(server.port, "/v2/health/ready")[0]
            rows.append(
                [name, told, f"{seconds:.1f}", f"{(cpu_ns(server.pid) - cpu) / 1e9:.2f}", len(latencies),
                 latencies[len(latencies) // 2], latencies[-1], failed, ready]
            )  # fmt: skip
            good = int(ready == 200 and not failed)
            context.report.check(exactly(f"{name}: ready, and others are answered", 1 - good, 0, of=len(latencies)))
    context.report.table(
        "Hostile clients",
        ("attack", "what it got", "s", "CPU, s", "others' requests", "their p50, ms", "most, ms", "failed", "ready"),
        rows,
        "Others: one client that asks for 32 tokens all the time, 5 ms after each answer.",
    )


def _beside(port: int, attack: Callable[[], str]) -> tuple[str, list[float], int]:
    """Run an attack while another client asks."""
    request = infer_body(token_arrays(1, 32), is_binary=False)
    latencies: list[float] = []
    failed = [0]
    over = threading.Event()

    def ask() -> None:
        wire = Wire(port)
        while not over.is_set() or not latencies:
            begin = time.perf_counter()
            try:
                failed[0] += wire.ask(request)[0] != 200
            except (OSError, ValueError):
                failed[0] += 1
                break
            latencies.append((time.perf_counter() - begin) * 1e3)
            time.sleep(0.005)
        wire.close()

    other = threading.Thread(target=ask)
    other.start()
    try:
        told = attack()
    finally:
        over.set()
        other.join()
    return told, sorted(latencies), failed[0]


def _slow_loris(context: Context, port: int) -> str:
    """Send a byte a second on each of many connections, until the server has closed them all or 40 s are over."""
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 1000
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(NUM_SLOW)]
    watch = selectors.DefaultSelector()
    for line in lines:
        line.setblocking(False)
        watch.register(line, selectors.EVENT_READ)
    begin, number, answers = time.monotonic(), 0, {}
    while watch.get_map() and time.monotonic() - begin < max(5.0, 40 * min(1.0, context.scale * 5)):
        for key in list(watch.get_map().values()):
            with contextlib.suppress(OSError):
                key.fileobj.send(head[number : number + 1])  # type: ignore[union-attr]
        number += 1
        next_s = time.monotonic() + 1
        while (left := next_s - time.monotonic()) > 0:
            for key, _ in watch.select(left):
                try:
                    data = key.fileobj.recv(4096)  # type: ignore[union-attr]
                except OSError:
                    data = b""
                if data:
                    answers[key.fd] = data[9:12].decode()
                else:
                    watch.unregister(key.fileobj)
    left_open, seconds = len(watch.get_map()), time.monotonic() - begin
    for line in lines:
        line.close()
    codes = ", ".join(sorted(set(answers.values()))) or "no answer"
    return f"{NUM_SLOW - left_open} closed within {seconds:.0f} s ({codes})"


def _tiny_chunks(port: int) -> str:
    wire = Wire(port)
    wire.socket.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    begin = time.monotonic()
    piece = b"1\r\nx\r\n" * 10_000
    try:
        for _ in range(NUM_BYTES // 10_000):
            wire.socket.sendall(piece)
        status, _ = wire.ask(b"0\r\n\r\n")
    except (OSError, ConnectionError) as error:
        return f"{type(error).__name__} after {time.monotonic() - begin:.1f} s"
    finally:
        wire.close()
    return f"{status} after {time.monotonic() - begin:.1f} s"


def _deep(port: int, depth: int) -> str:
    found = []
    for path, body in (
        ("/v2/models/m/infer", b"[" * depth + b"]" * depth),
        ("/v2/models/m/infer", b'{"a":' * depth + b"1" + b"}" * depth),
        ("/predict/m", b"[" * depth + b"]" * depth),
        ("/v1/chat/completions", b"[" * depth),
    ):
        wire = Wire(port)
        found.append(wire.ask(post(path, body))[0])
        wire.close()
    return ", ".join(map(str, found))
