"""Loads of real servers by real Locust processes, on the loopback address."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench.load import LoadPlan, LoadResult, constant, run_load
from bench.load.schedule import arrivals
from edgesmith.errors import UsageError
from tests.bench.load.conftest import RunningServer, StartServer

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def names(result: LoadResult) -> dict[str, int]:
    return {failure.name: failure.count for failure in result.failures}


def plan_for(server: RunningServer, rate: float = 100, seconds: float = 1, **changes: Any) -> LoadPlan:
    return LoadPlan(url=server.url, shape=constant(rate, seconds), **changes)


def test_every_planned_request_is_sent_in_its_turn(start_server: StartServer, tmp_path: Path) -> None:
    plan = plan_for(start_server(delay_ms=2), seed=7)
    result = run_load(plan, out=tmp_path)
    assert np.array_equal(result.start_ns, arrivals(plan.shape, seed=7))
    assert result.is_complete
    assert result.num_failed == 0
    assert result.wall_ns.min() > 2e6
    assert (result.lag_ns <= result.wall_ns).all()
    assert result.histogram.num_samples == result.num_requests
    assert result.server["model"] == "intent"
    assert 0 < result.client_cpu_us < 100_000
    assert "packaged samples" in result.notes[0]
    assert np.array_equal(LoadResult.load(tmp_path).wall_ns, result.wall_ns)


FAULTS = {
    "503": "http 503",
    "429": "http 429",
    "garbage": "not JSON",
    "NaN": "not JSON",
    "null": "wrong answer",
    "missing output": "wrong answer",
    "wrong shape": "wrong shape",
    "wrong rows": "wrong shape",
    "close": "closed",
    "half": "closed",
    "reset": "reset",
    "hang": "time-out",
    "not HTTP": "not HTTP",
}


def test_every_fault_is_a_failure_by_name_and_later_than_any_limit(start_server: StartServer) -> None:
    # Every tenth request meets one of them in turn; warm-up requests are none of the load's.
    server = start_server(fault=",".join(FAULTS), every=10)
    result = run_load(plan_for(server, rate=400, seconds=1.5, timeout_s=0.6, warm_up_requests=0))
    met = names(result)
    assert set(met) == set(FAULTS.values())
    assert result.num_failed == result.num_requests // 10
    assert all(failure.sample for failure in result.failures)
    assert result.percentile(95).estimate == float("inf")
    timed_out = result.outcome == 1 + [failure.name for failure in result.failures].index("time-out")
    assert result.wall_ns[timed_out].min() >= 0.6e9


def test_a_stopped_server_shows_as_long_as_it_was_stopped(start_server: StartServer) -> None:
    """A 5 ms server stands still for 2 s at 100 requests/s. A closed loop sees one slow request of many."""
    server = start_server(delay_ms=5)

    def stop_for_two_seconds() -> None:
        time.sleep(4.5)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.process.send_signal(signal.SIGCONT)

    def ask_one_after_the_other() -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]})
        taken = []
        end = time.monotonic() + 9
        while time.monotonic() < end:
            start = time.monotonic()
            connection.request("POST", "/v2/models/intent/infer", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
            taken.append(time.monotonic() - start)
        connection.close()
        return taken

    with ThreadPoolExecutor() as pool:
        closed = pool.submit(ask_one_after_the_other)
        pool.submit(stop_for_two_seconds)
        result = run_load(plan_for(server, rate=100, seconds=9))
    assert result.num_failed == 0
    assert np.quantile(result.wall_ns, 0.99) >= 1e9
    assert result.percentile(90).inflation > 10
    assert max(closed.result()) > 1.9
    assert np.quantile(closed.result(), 0.99) < 0.3  # what the closed loop would have said


def test_a_server_that_dies_leaves_what_was_seen(start_server: StartServer, tmp_path: Path) -> None:
    result = run_load(plan_for(start_server(fault="exit", after=150), seconds=3), out=tmp_path)
    assert result.is_complete
    assert names(result)["refused"] > 50
    assert set(names(result)) <= {"refused", "closed", "reset"}
    assert 100 < LoadResult.load(tmp_path).num_ok < 160
    timeline = result.timeline()
    assert timeline[0].num_failed == 0
    assert timeline[2].num_ok == 0


def test_workers_own_disjoint_streams_that_are_merged(start_server: StartServer) -> None:
    plan = plan_for(start_server(), rate=200, processes=2, seed=3)
    result = run_load(plan)
    streams = [arrivals(plan.shape, seed=3, worker=worker, num_workers=2) for worker in range(2)]
    assert np.array_equal(result.start_ns, np.sort(np.concatenate(streams)))
    assert result.is_complete
    assert result.num_workers == 2
    assert result.histogram.num_samples == result.num_ok == result.num_requests


def _command(process: psutil.Process) -> list[str]:
    """Its command line; none of one that has ended and was not waited for yet."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def test_a_lost_worker_is_said_and_the_others_requests_are_kept(start_server: StartServer) -> None:
    server = start_server()
    plan = plan_for(server, rate=100, seconds=6, processes=2)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_load, plan)
        deadline = time.monotonic() + 20
        workers: list[psutil.Process] = []
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            found = [child for child in psutil.Process().children(recursive=True) if "--processes" in _command(child)]
            workers = [child for child in found if child.parent() in found]
        server.wait_for(20 + 60)
        workers[1].kill()
        result = running.result()
    assert not result.is_complete
    assert "lost" in result.stopped_because
    assert not result.is_open_loop_kept
    whole = [len(arrivals(plan.shape, seed=0, worker=worker, num_workers=2)) for worker in range(2)]
    assert min(whole) <= result.num_requests < sum(whole)


def test_workers_of_other_terminals_get_their_plan_from_the_master(start_server: StartServer) -> None:
    port = free_port()
    plan = plan_for(start_server(), rate=200, expect_workers=2, master_port=port)
    script = f"from bench.load import run_worker; run_worker('127.0.0.1', {port})"
    workers = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(2)]
    result = run_load(plan)
    assert [worker.wait(20) for worker in workers] == [0, 0]
    streams = [arrivals(plan.shape, seed=0, worker=worker, num_workers=2) for worker in range(2)]
    assert np.array_equal(result.start_ns, np.sort(np.concatenate(streams)))


def test_workers_that_do_not_come_are_waited_for_and_named(start_server: StartServer) -> None:
    plan = plan_for(start_server(), expect_workers=1, master_port=free_port(), workers_wait_s=1)
    with pytest.raises(UsageError, match="worker"):
        run_load(plan)


def test_the_web_page_shows_the_requests(start_server: StartServer) -> None:
    port = free_port()
    plan = plan_for(start_server(), rate=50, seconds=2, web_port=port)
    seen: dict[str, Any] = {}

    def look() -> None:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and seen.get("num_requests", 0) < 20:
            time.sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=2) as answer:
                    stats = json.load(answer)["stats"]
                seen.update(next((entry for entry in stats if entry["name"].endswith("/infer")), {}))
            except OSError:
                continue

    watcher = threading.Thread(target=look)
    watcher.start()
    result = run_load(plan)
    watcher.join()
    assert seen["num_requests"] >= 20
    assert seen["method"] == "POST"
    assert result.num_failed == 0
    assert result.is_complete


def test_a_taken_port_of_the_page_is_said_before_anything_starts(start_server: StartServer) -> None:
    server = start_server()
    with pytest.raises(UsageError, match="web page"):
        run_load(plan_for(server, web_port=server.port))


def test_ctrl_c_keeps_what_was_seen(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(delay_ms=300)
    script = (
        "import signal, sys; from pathlib import Path; from bench.load import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"result = run_load(LoadPlan(url={server.url!r}, shape=constant(50, 60), warm_up_requests=1),"
        f" out=Path({str(tmp_path)!r}))\n"
        "sys.exit(0 if not result.is_complete else 7)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    server.wait_for(50)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    result = LoadResult.load(tmp_path)
    assert result.stopped_because == "it was interrupted"
    assert result.num_ok > 10
    assert set(names(result)) == {"interrupted"}


def test_nothing_goes_on_when_the_command_is_killed(start_server: StartServer) -> None:
    server = start_server()
    script = f"from bench.load import *; run_load(LoadPlan(url={server.url!r}, shape=constant(20, 60), processes=2))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    server.wait_for(30)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    assert not alive


def test_more_waiting_requests_than_allowed_are_failures(start_server: StartServer) -> None:
    plan = plan_for(start_server(delay_ms=2000), rate=60, max_in_flight=30, warm_up_requests=0)
    result = run_load(plan)
    assert names(result) == {"not sent": result.num_not_sent}
    assert result.num_ok == 30 == result.max_in_flight
    assert result.num_not_sent == result.num_requests - 30


def test_requests_beyond_the_kept_ones_are_in_the_histogram(start_server: StartServer) -> None:
    result = run_load(plan_for(start_server(), max_samples=40))
    assert len(result.wall_ns) == 40 < result.num_requests
    assert result.histogram.num_samples == result.num_requests
    assert any("histogram only" in note for note in result.notes)
    assert result.percentile(50).num_samples == result.num_requests


def test_streams_have_time_to_the_first_token_and_between_tokens(start_server: StartServer) -> None:
    server = start_server(num_tokens=4, token_ms=10, chunk_bytes=7)
    plan = LoadPlan(url=f"{server.base}/v1", shape=constant(40, 1))
    result = run_load(plan)
    assert result.num_failed == 0
    assert result.ttft_ns is not None
    assert result.num_tokens is not None
    assert result.itl_ns is not None
    assert set(result.num_tokens.tolist()) == {4}
    assert len(result.itl_ns) == 3 * result.num_requests
    assert result.ttft_ns.min() >= 20e6  # the empty first piece and the first token
    assert (result.ttft_ns < result.wall_ns).all()
    assert np.median(result.itl_ns) > 9e6


@pytest.mark.parametrize(("usage", "num_tokens"), [("send", 12), ("refuse", 4), ("", 4)])
def test_tokens_are_counted_by_the_server_or_called_pieces(
    start_server: StartServer, tmp_path: Path, usage: str, num_tokens: int
) -> None:
    server = start_server(num_tokens=4, usage=usage)
    plan = LoadPlan(url=server.base, protocol="openai", shape=constant(40, 0.5))
    result = run_load(plan, out=tmp_path)
    assert result.num_failed == 0
    assert result.num_tokens is not None
    assert set(result.num_tokens.tolist()) == {num_tokens}
    summary = result.stream_summary()
    assert summary is not None
    assert summary["tokens_are_chunks"] is (usage != "send")
    assert summary["tokens_per_chunk"] == pytest.approx(num_tokens / 4)
    assert any("refuses stream_options" in note for note in result.notes) is (usage == "refuse")
    assert LoadResult.load(tmp_path).tokens_are_chunks is result.tokens_are_chunks


def test_streams_that_end_wrong_are_failures(start_server: StartServer) -> None:
    server = start_server(fault="no finish,empty,error in the stream,503,close", every=4, num_tokens=2)
    plan = LoadPlan(url=f"{server.base}/v1/completions", shape=constant(150, 1), warm_up_requests=0)
    assert set(names(run_load(plan))) == {"stream ended early", "no token", "error in the stream", "http 503", "closed"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_whole_answers_of_openai_servers(start_server: StartServer, path: str) -> None:
    server = start_server()
    plan = LoadPlan(url=server.base + path, shape=constant(60, 0.7), stream=False, batch_size=2)
    result = run_load(plan)
    assert result.num_failed == 0
    assert result.ttft_ns is None
    assert result.server["model"] == "tiny"


def test_binary_tensors_through_a_tokenizer(
    start_server: StartServer, minilm_folder: Path, tmp_path: Path, news_rows: list[dict[str, str]]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in news_rows[:40]))
    server = start_server(binary=True, text_input=False)
    plan = replace(plan_for(server, seconds=0.7), encoder=minilm_folder, data=data, batch_size=4)
    result = run_load(plan)
    assert result.num_failed == 0
    assert "binary" in result.payload
    assert "10 requests of 4" in result.payload


def test_a_module_of_the_user_takes_no_modules_place(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bench.py", "locust.py", "json.py", "locust.conf"):
        (tmp_path / name).write_text("raise SystemExit('taken')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCUST_RUN_TIME", "1s")
    assert run_load(plan_for(start_server(), seconds=0.5)).is_complete
    assert os.getcwd() == str(tmp_path)  # noqa: PTH109
