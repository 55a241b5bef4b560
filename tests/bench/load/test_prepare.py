from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.load.plan import LoadPlan
from bench.load.probe import split_url
from bench.load.protocols import prepare_target
from bench.load.protocols.oip_inputs import read_batches
from bench.load.protocols.tensors import TensorSpec
from bench.load.schedule import constant
from bench.load.target import Address, Target, make_request
from edgesmith.errors import DataError, ServerError, UsageError
from tests.bench.load.conftest import RunningServer, StartServer

PLAN = LoadPlan(url="http://127.0.0.1:1", shape=constant(1, 1))
TEXT = (TensorSpec("text", "BYTES", (-1, 1)),)
NUMBERS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("ids", "INT32", (-1, -1)))


def bodies(target: Target) -> list[dict[str, Any]]:
    return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in target.requests]


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def speaker() -> Iterator[Any]:
    """Something that listens and answers every connection with the same bytes."""
    listeners: list[socket.socket] = []

    def start(said: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "localhost",
        "ftp://127.0.0.1/x",
        "http://",
        "http://host:x/",
        "http://host:99999/",
        "grpc://127.0.0.1:8001",
        "http://user:word@host/",
        "http://host/a b",
        "http://host/ä",
        "http://host/v2?x=1",
        "http://[::1/",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        split_url(url)


def test_urls_are_split() -> None:
    assert split_url("http://localhost:8000/v1/") == (Address(host="localhost", port=8000, is_tls=False), "/v1")
    assert split_url("https://[::1]/v2")[0].base == "https://[::1]"


def test_a_server_that_is_down_is_said_at_once() -> None:
    with pytest.raises(ServerError, match="nobody listens"):
        prepare_target(PLAN)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"\xff\x00" * 50])
def test_what_speaks_no_http_is_said(speaker: Any, said: bytes) -> None:
    with pytest.raises(ServerError, match="not HTTP"):
        prepare_target(replace(PLAN, url=speaker(said) + "/v2/models/intent"))


def test_another_web_server_is_said_with_what_was_tried(speaker: Any) -> None:
    url = speaker(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    with pytest.raises(ServerError, match=r"neither.*GET /v2 → 200, no JSON object, GET /v1/models"):
        prepare_target(replace(PLAN, url=url))


@pytest.mark.parametrize("metadata", [b'{"name": "x"}', b'{"inputs": [{"name": "a"}], "outputs": []}', b"{}"])
def test_metadata_without_inputs_are_refused(speaker: Any, metadata: bytes) -> None:
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(metadata)}\r\n\r\n".encode()
    with pytest.raises(ServerError, match="inputs"):
        prepare_target(replace(PLAN, url=speaker(head + metadata) + "/v2/models/x"))


@pytest.mark.parametrize(
    ("path", "protocol", "asked"),
    [
        ("/v2/models/intent", "oip", "/v2/models/intent/infer"),
        ("/v2/models/intent/infer", "oip", "/v2/models/intent/infer"),
        ("/v2/models/intent/versions/1", "oip", "/v2/models/intent/versions/1/infer"),
        ("/served/intent", "oip", "/served/intent/infer"),
        ("/served/intent/infer", "oip", "/served/intent/infer"),
        ("/v1", "openai", "/v1/chat/completions"),
        ("/v1/completions", "openai", "/v1/completions"),
        ("/v1/embeddings", "openai", "/v1/embeddings"),
        ("", "openai", "/v1/chat/completions"),
    ],
)
def test_the_protocol_is_found_from_the_url_and_the_server(
    start_server: StartServer, path: str, protocol: str, asked: str
) -> None:
    target = prepare_target(replace(PLAN, url=start_server().base + path))
    assert (target.protocol, target.path) == (protocol, asked)
    assert Target.from_bytes(target.to_bytes()) == target
    assert all(request.startswith(f"POST {asked} HTTP/1.1\r\n".encode()) for request in target.requests)


def test_a_base_url_with_a_model_asks_for_it(start_server: StartServer) -> None:
    target = prepare_target(replace(PLAN, url=start_server().base, model="intent"))
    assert target.path == "/v2/models/intent/infer"


def test_unknown_models_are_named(start_server: StartServer) -> None:
    server: RunningServer = start_server()
    with pytest.raises(ServerError, match="nothing at /v2/models/other"):
        prepare_target(replace(PLAN, url=f"{server.base}/v2/models/other"))
    with pytest.raises(UsageError, match="tiny"):
        prepare_target(replace(PLAN, url=f"{server.base}/v1", model="other"))


def test_texts_are_the_rows_own(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    data = rows_file(tmp_path, [{"headline": "Ünïcode"}, {"headline": "b"}, {"headline": "c"}])
    plan = replace(PLAN, data=data, columns={"text": "headline"}, batch_size=2)
    (body,) = bodies(prepare_target(replace(plan, url=server.url)))
    assert body["inputs"] == [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["Ünïcode", "b"]}]
    first = bodies(prepare_target(replace(plan, url=f"{server.base}/v1/embeddings")))[0]
    assert first == {"model": "tiny", "input": ["Ünïcode", "b"]}
    chat = bodies(prepare_target(replace(plan, url=f"{server.base}/v1", max_tokens=9)))[2]
    assert chat["messages"] == [{"role": "user", "content": "c"}]
    assert (chat["max_tokens"], chat["stream"]) == (9, True)


def test_a_row_without_a_text_names_its_columns(start_server: StartServer, tmp_path: Path) -> None:
    plan = replace(PLAN, url=start_server().url, data=rows_file(tmp_path, [{"headline": "a", "label": "b"}]))
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*'text'; there: 'headline', 'label'"):
        prepare_target(plan)


def test_numbers_are_columns_named_like_the_inputs(tmp_path: Path) -> None:
    rows = [{"x": [1, 2.5], "ids": [[1, 2, 3]]}, {"x": [3, 4], "ids": [4, 5, 6]}]
    (arrays,) = read_batches(replace(PLAN, data=rows_file(tmp_path, rows), batch_size=2), NUMBERS).arrays
    assert np.array_equal(arrays["x"], np.array([[1, 2.5], [3, 4]], np.float32))
    assert arrays["ids"].dtype == np.int32
    assert arrays["ids"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "row",
    [
        {"x": [1, 2]},
        {"x": [1, 2, 3], "ids": [1]},
        {"x": [1, "a"], "ids": [1]},
        {"x": [1, [2]], "ids": [1]},
        {"x": [1, 1e39], "ids": [1]},
        {"x": [1, 2], "ids": [1.5]},
        {"x": [1, 2], "ids": [2**40]},
        {"x": [1, 2], "ids": 3},
        {"x": None, "ids": [1]},
    ],
)
def test_numbers_that_do_not_fit_an_input_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        read_batches(replace(PLAN, data=rows_file(tmp_path, [row])), NUMBERS)


def test_a_model_of_numbers_needs_rows_or_a_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"x FP32 \[-1, 2\].*") as caught:
        read_batches(PLAN, NUMBERS)
    assert "--artifact" in str(caught.value)


def test_a_tokenizer_that_lacks_an_input_is_refused(minilm_folder: Path) -> None:
    inputs = (TensorSpec("input_ids", "INT64", (-1, -1)), TensorSpec("pixels", "FP32", (-1, 3)))
    with pytest.raises(UsageError, match="pixels"):
        read_batches(replace(PLAN, encoder=minilm_folder), inputs)


def test_fewer_rows_than_one_request_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 rows are fewer than the 2"):
        read_batches(replace(PLAN, data=rows_file(tmp_path, [{"text": "a"}]), batch_size=2), TEXT)


def test_the_plans_headers_replace_ours_and_are_in_no_target_field() -> None:
    address = Address(host="127.0.0.1", port=80, is_tls=False)
    headers = {"authorization": "Bearer x", "user-agent": "mine"}
    request = make_request(address, "/p", b"abc", content_type="text/plain", headers=headers).decode()
    head, _, body = request.partition("\r\n\r\n")
    assert body == "abc"
    assert head.lower().count("user-agent:") == 1
    assert "user-agent: mine" in head
    assert "Content-Length: 3" in head
    assert "Host: 127.0.0.1\r\n" in head
