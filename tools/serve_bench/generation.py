"""Writing text from one GGUF file: our server against llama-cpp-python's own, the same prompt, greedily."""

from __future__ import annotations

import json
import time
from pathlib import Path

from serve_bench.context import Context
from serve_bench.processes import Running, cores, cpu_ns, free_port, launch
from serve_bench.report import median_of
from serve_bench.subjects import PEERS_PYTHON, launch_ours
from serve_bench.swarm import Swarm
from serve_bench.wire import Wire, post

__all__ = ["measure_generation"]

PROMPT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, "
MAX_TOKENS = 64
NUM_PAIRS = 9
HEAD = ("server", "in flight", "tokens/s", "CPU a token, ms", "a request, p50, ms", "tokens a request", "failed",
        "tokens/s over the peer's, %")  # fmt: skip


def measure_generation(context: Context, *, with_peers: bool) -> None:
    """Measure one and four requests in flight, the servers in turn."""
    rows: list[list[object]] = []
    file = next(context.language.glob("*.gguf"))
    with launch_ours(f"m={context.language}", "--threads", "1", "--slots", "4", "--context", "2048") as ours:
        if not with_peers or not PEERS_PYTHON.exists():
            for flight in (1, 4):
                rows += _compare(context, [ours], flight)
        else:
            with _peer(file) as theirs:
                for flight in (1, 4):
                    rows += _compare(context, [ours, theirs], flight)
    context.report.table(
        "Writing from GGUF",
        HEAD,
        rows,
        f"The prompt has {len(PROMPT.split())} words, answers up to {MAX_TOKENS} tokens, greedy; one thread each. "
        "Medians of blocks in turn, with 95 % intervals. Both know the prompt from the request before.",
    )


def _peer(file: Path):  # type: ignore[no-untyped-def]
    port = free_port()
    command = [str(PEERS_PYTHON), "-m", "llama_cpp.server", "--model", str(file), "--model_alias", "m"]
    command += ["--port", str(port), "--n_threads", "1", "--n_threads_batch", "1", "--n_ctx", "2048"]
    command += ["--interrupt_requests", "false", "--verbose", "false"]
    return launch("llama-cpp-python's server", command, port=port, ready="/v1/models", core=cores()[0])


def _compare(context: Context, servers: list[Running], flight: int) -> list[list[object]]:
    body = {"model": "m", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}
    request = post("/v1/completions", json.dumps(body).encode())
    found: dict[str, dict[str, list[float]]] = {
        one.name: {"rate": [], "cpu": [], "latency": [], "tokens": [], "failed": []} for one in servers
    }
    for server in servers:
        wire = Wire(server.port, 120)
        status, answer = wire.ask(request)
        if status != 200:
            raise SystemExit(f"{server.name} answers {status}: {answer[:500]!r}")
        wire.close()
    for number in range(context.times(NUM_PAIRS, 3)):
        for server in servers if number % 2 else reversed(servers):
            _block(context, server, request, flight, found[server.name])
    rows: list[list[object]] = []
    last = found[servers[-1].name]["rate"]
    for server in servers:
        one = found[server.name]
        ratio = [100 * a / b for a, b in zip(one["rate"], last, strict=True)]
        rows.append(
            [server.name, str(flight), *(median_of(one[key], "") for key in ("rate", "cpu", "latency", "tokens")),
             f"{sum(one['failed']):.0f}", median_of(ratio, "") if server is not servers[-1] else "—"]
        )  # fmt: skip
    return rows


def _block(context: Context, server: Running, request: bytes, flight: int, found: dict[str, list[float]]) -> None:
    """Keep requests in flight for some seconds; tokens as the answers count them."""
    tokens: list[int] = []

    def count(status: int, body: bytes) -> None:
        if status == 200:
            tokens.append(json.loads(body)["usage"]["completion_tokens"])

    swarm = Swarm(server.port, count)
    cpu, wall = cpu_ns(server.pid), time.perf_counter()
    outcomes = swarm.closed([request], flight, context.seconds(4.0, 1.0))
    wall, cpu = time.perf_counter() - wall, cpu_ns(server.pid) - cpu
    swarm.close()
    total = max(1, sum(tokens))
    latencies = outcomes.latencies_ms(200) or [float("nan")]
    found["rate"].append(total / wall)
    found["cpu"].append(cpu / 1e6 / total)
    found["latency"].append(latencies[len(latencies) // 2])
    found["tokens"].append(total / max(1, len(tokens)))
    found["failed"].append(len(outcomes.status) - len(tokens))
