"""What the whole server does when there is too much work, when models change, when clients go and engines die."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.serve.models_built import FLOAT, affine, save, write
from tests.serve.served import Served, serving

TOKEN = "a-token-of-these-tests"
WIDTH, DEPTH = 512, 60
Answer = tuple[int, dict[str, str], Any]


@pytest.fixture(scope="module")
def slow_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph whose every row costs 30 million operations: some hundred rows take as many milliseconds."""
    weight = np.random.default_rng(0).normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    names = ["x", *(f"h{index}" for index in range(DEPTH - 1)), "y"]
    nodes = [helper.make_node("MatMul", [one, "w"], [two]) for one, two in pairwise(names)]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(weight, "w")],
    )
    return save(graph, tmp_path_factory.mktemp("slow") / "slow.onnx")


def ask(
    url: str, path: str, body: object | None = None, headers: dict[str, str] | None = None, timeout: float = 60
) -> Answer:
    """One request on a connection of its own."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=timeout)
    try:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request("GET" if data is None else "POST", path, data, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        is_json = (answer.headers["content-type"] or "").startswith("application/json")
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(text) if is_json else text
    finally:
        connection.close()


def tensor(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> dict[str, object]:
    one = {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
    return {"inputs": [one]}


def heavy(rows: int) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request that keeps the slow model busy."""
    array = np.ones((rows, WIDTH), np.float32)
    size = {"binary_data_size": array.nbytes}
    one = {"name": "x", "shape": list(array.shape), "datatype": "FP32", "parameters": size}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return head + array.tobytes(), {"inference-header-content-length": str(len(head))}


def gauges(url: str) -> dict[str, float]:
    """The server's metrics, those of several models added up."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if match := re.fullmatch(r"(\w+)(?:\{[^}]*\})? (\S+)", line):
                found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def at_once(jobs: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Run them together; their answers in the order in which they came."""
    answers: list[Answer] = []
    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(lambda job=job: answers.append(job())) for job in jobs]:
            future.result()
    return answers


def test_what_the_queue_has_no_room_for_is_refused_before_others_are_answered(slow_path: Path, tmp_path: Path) -> None:
    body, headers = heavy(200)
    with serving(tmp_path, f"m={slow_path}", "--threads", "1", "--max-batch-size", "200", "--max-queue", "2") as server:
        answers = at_once([lambda: ask(server.url, "/v2/models/m/infer", body, headers)] * 12)
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        assert statuses[0] == 503
        assert statuses.count(200) >= 3  # one runs, two wait
        for status, found, value in answers:
            if status == 503:
                assert 1 <= int(found["retry-after"]) <= 60
                assert "requests wait for m already" in value["error"]
        assert ask(server.url, "/v2/models/m/infer", body, headers)[0] == 200
        after = gauges(server.url)
        assert after["edgesmith_queue_length"] == after["edgesmith_running_requests"] == 0


def test_openai_clients_are_told_of_overload_with_429(tiny_file: Path, tmp_path: Path) -> None:
    body = {"model": "t", "prompt": "a", "max_tokens": 100, "temperature": 0}
    with serving(tmp_path, f"t={tiny_file}", "--threads", "1", "--slots", "1", "--max-queue", "1") as server:
        answers = at_once([lambda: ask(server.url, "/v1/completions", body)] * 12)
        assert {status for status, _, _ in answers} == {200, 429}
        for status, found, value in answers:
            if status == 429:
                assert int(found["retry-after"]) >= 1
                assert value["error"]["message"]
        assert ask(server.url, "/v1/completions", body)[0] == 200


def test_swaps_under_load_lose_no_request_and_mix_no_answer(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    for name, bias in (("one", 1.0), ("two", 1000.0)):
        constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.full(3, bias, np.float32), "b")]
        save(affine(initializers=constants), tmp_path / name / "model.onnx")
        write(tmp_path / name)
    link = tmp_path / "current"
    link.symlink_to("one")
    rows = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    request, expected = tensor("x", rows), rows @ weight
    biases: set[float] = set()
    statuses: list[int] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            status, _, value = ask(server.url, "/v2/models/m/infer", request)
            statuses.append(status)
            if status == 200:
                found = np.array(value["outputs"][0]["data"], np.float32).reshape(16, 3) - expected
                biases.add(round(float(found.mean())))
                assert np.ptp(found) < 0.1, "rows of two models in one answer"

    with (
        serving(tmp_path, f"m={link}", "--threads", "1", EDGESMITH_ADMIN_TOKEN=TOKEN) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        clients = [pool.submit(load) for _ in range(4)]
        try:
            for number in range(12):
                (tmp_path / "next").symlink_to("one" if number % 2 else "two")
                (tmp_path / "next").replace(link)
                headers = {"authorization": f"Bearer {TOKEN}"}
                assert ask(server.url, "/v2/repository/models/m/load", {}, headers)[0] == 200
                asked = len(statuses)
                wait_for(lambda asked=asked: len(statuses) > asked + 8, "no answers after a swap")
        finally:
            over.set()
        for client in clients:
            client.result()
        assert set(statuses) == {200}
        assert biases == {1, 1000}


def go(url: str, wire: bytes, *, reads: bool, resets: bool) -> None:
    """Send, perhaps wait for the answer's begin, and go."""
    place = urlsplit(url)
    plug = socket.create_connection((str(place.hostname), place.port), timeout=10)
    with contextlib.suppress(OSError):
        plug.sendall(wire)
        if reads:
            plug.recv(100)
    if resets:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plug.close()


def wire_of(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_clients_that_go_leave_nothing_behind(slow_path: Path, tiny_file: Path, tmp_path: Path) -> None:
    text = {"model": "t", "prompt": "a", "max_tokens": 100, "temperature": 0}
    stream = wire_of("/v1/completions", json.dumps(text | {"stream": True}).encode())
    long = wire_of("/v2/models/m/infer", *heavy(100))
    with serving(tmp_path, f"m={slow_path}", f"t={tiny_file}", "--threads", "1", "--slots", "4") as server:
        before = gauges(server.url)
        for number in range(60):
            go(server.url, stream, reads=number % 3 > 0, resets=number % 2 == 0)
            go(server.url, long if number % 3 else long[: 50 + 1000 * number], reads=False, resets=number % 2 == 0)

        def is_quiet() -> bool:
            found = gauges(server.url)
            names = ("edgesmith_queue_length", "edgesmith_running_requests")
            held = sum(found[name] for name in names) + found["edgesmith_connections"] - before["edgesmith_connections"]
            return held == 0 and found["process_open_fds"] <= before["process_open_fds"]

        wait_for(is_quiet, "requests, connections or descriptors are still held")
        answers = at_once([lambda: ask(server.url, "/v1/completions", text)] * 4)
        assert [status for status, _, _ in answers] == [200] * 4
        assert len({json.dumps(value["choices"]) for _, _, value in answers}) == 1


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="/proc names no children")
def test_a_killed_engine_takes_no_server_along_and_comes_back(classifier_path: Path, tmp_path: Path) -> None:
    text = {"text": "Shares fell."}
    with serving(tmp_path, f"news={classifier_path}", "--threads", "1", "--isolate") as server:
        expected = ask(server.url, "/predict/news", text)[2]["predictions"]
        engines = list(children(server.process.pid))
        assert engines
        for engine in engines:
            os.kill(engine, signal.SIGKILL)
        seen: list[int] = []

        def is_back() -> bool:
            assert ask(server.url, "/v2/health/live")[0] == 200
            status, _, value = ask(server.url, "/predict/news", text)
            seen.append(status)
            return (
                status == 200 and value["predictions"] == expected and not {*engines} & {*children(server.process.pid)}
            )

        wait_for(is_back, "the engine did not come back")
        assert set(seen) <= {200, 500, 502, 503}
        assert gauges(server.url)["edgesmith_child_restarts_total"] == len(engines)


@pytest.fixture(scope="module")
def news(classifier_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("news"), f"news={classifier_path}", "--threads", "1") as server:
        yield server


def test_a_hundred_clients_that_never_finish_their_headers_hold_nobody_up(news: Served) -> None:
    place = urlsplit(news.url)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((place.hostname, place.port))) for _ in range(100)]
        for letter in b"POST /predict/news HTTP/1.1\r\nX":
            for line in slow:
                line.send(bytes([letter]))
            assert ask(news.url, "/predict/news", {"text": "Shares fell."}, timeout=20)[0] == 200
        assert gauges(news.url)["edgesmith_connections"] >= 100
        assert ask(news.url, "/v2/health/ready")[0] == 200


def test_a_body_in_chunks_of_one_byte_is_read_and_answered(news: Served) -> None:
    place = urlsplit(news.url)
    body = json.dumps({"text": "Shares fell."}).encode()
    expected = ask(news.url, "/predict/news", body)[2]
    with socket.create_connection((place.hostname, place.port), timeout=60) as plug:
        plug.sendall(b"POST /predict/news HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        plug.sendall(b"1\r\n \r\n" * 300_000)
        plug.sendall(b"".join(b"1\r\n%c\r\n" % letter for letter in body) + b"0\r\n\r\n")
        answer = http.client.HTTPResponse(plug)
        answer.begin()
        assert answer.status == 200
        assert json.loads(answer.read())["predictions"] == expected["predictions"]
    assert ask(news.url, "/v2/health/ready")[0] == 200


@pytest.mark.parametrize("path", ["/predict/news", "/v2/models/news/infer", "/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("depth", [101, 100_000])
def test_json_that_is_too_deep_is_refused(news: Served, path: str, depth: int) -> None:
    body = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    status, _, value = ask(news.url, path, body, {"content-type": "application/json"})
    assert status == 400
    assert "depth" in json.dumps(value) or "deep" in json.dumps(value)
    assert ask(news.url, "/v2/health/ready")[0] == 200
