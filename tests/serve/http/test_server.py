"""What clients that behave get."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.errors import UsageError
from serve.access import Access
from serve.config import Limits
from serve.errors import ModelNotFoundError, OverloadedError
from serve.http.message import Request, Response
from serve.http.router import Route, Router
from serve.http.server import HttpServer
from tests.serve.http.harness import ROUTES, Live, echo, hello, serving


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with serving(ROUTES, loop_factory=request.param) as running:
        yield running


def test_answer_carries_length_type_date_and_server(live: Live) -> None:
    answer = live.request("GET", "/")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["server"] == "edgesmith"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d gmt", answer.headers["date"])


@pytest.mark.parametrize("size", [1, 1_000, 65_536, 65_537, 700_000, 9_000_000])
def test_body_comes_back_whole(live: Live, size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    client = live.connect()
    sender = threading.Thread(target=client.send, args=(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",))
    sender.start()
    sender.join()
    assert client.read().body == b"hello"
    assert client.request("POST", "/echo", body).body == body
    assert client.request("POST", "/echo", b"again").body == b"again"


def test_body_apart_from_its_head_comes_back_whole(live: Live) -> None:
    client = live.connect()
    for _ in range(3):
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        live.wait_until(lambda: any(c.state == 1 for c in live.server._shared.connections))
        client.send(b"01234")
        client.send(b"56789")
        assert client.read().body == b"0123456789"


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64])
def test_any_division_of_the_bytes_gives_the_same_answers(live: Live, step: int) -> None:
    client = live.connect()
    wire = (
        b"\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab\r\n\r\n"
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4\r\n\r\n\r\n\r\n3;x=y\r\n0\r\n\r\n0\r\nTrailer: 1\r\n\r\n"
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    for start in range(0, len(wire), step):
        client.send(wire[start : start + step])
    assert [client.read().body for _ in range(3)] == [b"ab\r\n\r\n", b"\r\n\r\n0\r\n", b"hello"]


def test_pipelined_requests_are_answered_in_order() -> None:
    waiting: list[Request] = []
    with serving([*ROUTES, Route("GET", "/later", waiting.append)]) as live:
        client = live.connect()
        client.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        live.wait_until(lambda: len(waiting) == 1)
        live.call(lambda: waiting[0].respond(Response(200, b"first")))
        assert [client.read().body for _ in range(201)] == [b"first"] + [b"hello"] * 200


def test_client_that_pipelines_without_reading_is_not_read_from_for_ever() -> None:
    waiting: list[Request] = []
    with serving([Route("POST", "/later", waiting.append)], Limits(write_timeout_s=60)) as live:
        client = live.connect()
        client.sock.settimeout(0.3)
        wire = b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000
        with pytest.raises(TimeoutError):
            client.send(wire * 1_000)
        live.wait_until(lambda: len(waiting) == 1)
        assert live.server.counters.bytes_in < 1_000_000


def test_head_has_the_headers_of_get_and_no_body(live: Live) -> None:
    client = live.connect()
    answer = client.request("HEAD", "/")
    assert (answer.status, answer.headers["content-length"]) == (200, "5")
    assert client.request("GET", "/").body == b"hello"


def test_options_name_the_methods(live: Live) -> None:
    answer = live.request("OPTIONS", "/echo")
    assert (answer.status, answer.headers["allow"]) == (204, "options, post")
    assert live.request("OPTIONS", "*").status == 204


def test_unknown_path_and_method_are_told(live: Live) -> None:
    client = live.connect()
    assert client.request("GET", "/nowhere").status == 404
    answer = client.request("DELETE", "/", b"body")
    assert (answer.status, answer.headers["allow"]) == (405, "get, head, options")
    assert client.request("GET", "/").status == 200


def test_connection_is_closed_on_request_and_for_http_1_0(live: Live) -> None:
    client = live.connect()
    answer = client.request("GET", "/", headers={"Connection": "close"})
    assert answer.headers["connection"] == "close"
    assert client.is_closed()
    old = live.connect()
    old.send(b"GET / HTTP/1.0\r\n\r\n")
    assert old.read().body == b"hello"
    assert old.is_closed()


def test_body_is_asked_for_only_when_it_is_wanted(live: Live) -> None:
    client = live.connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert client.read().status == 100
    client.send(b"ok")
    assert client.read().body == b"ok"
    client.send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert client.read().status == 404
    other = live.connect()
    other.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 200-maybe\r\n\r\n")
    assert other.read().status == 417


def test_offer_of_another_protocol_is_passed_over(live: Live) -> None:
    client = live.connect()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    for _ in range(2):
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\n" + upgrade + b"Content-Length: 3\r\n\r\nabc")
        assert client.read().body == b"abc"


def test_target_may_be_a_whole_url(live: Live) -> None:
    client = live.connect()
    client.send(b"POST http://there:1/echo/x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nz")
    assert client.read().body == b"z"


def test_request_tells_all_that_handlers_ask() -> None:
    seen: list[Request] = []

    def look(request: Request) -> None:
        seen.append(request)
        hello(request)

    with serving([Route("POST", "/m/{model}/v/{version}", look)]) as live:
        live.request("POST", "/m/caf%C3%A9/v/1%2E0?a=%20&b", b"xyz", {"X-Thing": "Value", "x-thing": "Last"})
    request = seen[0]
    assert (request.method, request.path, request.query) == ("POST", "/m/café/v/1.0", "a=%20&b")
    assert request.params == {"model": "café", "version": "1.0"}
    assert (request.body, request.peer) == (b"xyz", "127.0.0.1")
    assert (request.header(b"x-thing"), request.header(b"nothing")) == (b"Last", None)
    assert request.received_ns > 0


def test_params_of_one_request_are_not_those_of_the_next() -> None:
    def change(request: Request) -> None:
        request.params["model"] += "!"
        request.respond(Response(200, request.params["model"].encode()))

    with serving([Route("GET", "/{model}", change)]) as live:
        client = live.connect()
        assert [client.request("GET", "/a").body for _ in range(2)] == [b"a!", b"a!"]


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_body_of_several_buffers_is_written_in_order(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    array = np.arange(500_000, dtype=np.float32).reshape(500, 1000)
    parts = (b"head", array.data, memoryview(b""), bytearray(b"tail"), np.zeros((0, 3)).data)

    with serving([Route("GET", "/", lambda r: r.respond(Response(200, parts)))], loop_factory=factory) as live:
        client = live.connect()
        for _ in range(2):
            assert client.request("GET", "/").body == b"head" + array.tobytes() + b"tail"


def test_error_of_a_handler_becomes_an_answer() -> None:
    def missing(_request: Request) -> None:
        raise ModelNotFoundError("no model 'x'")

    async def broken(_request: Request) -> None:
        await asyncio.sleep(0)
        raise OverloadedError("full", retry_after_s=7)

    def own(status: int, reason: str, message: str) -> Response:
        return Response(429, f"{status} {reason} {message}".encode())

    routes = [
        Route("GET", "/missing", missing),
        Route("GET", "/full", broken),
        Route("GET", "/own", broken, error_body=own),
    ]
    with serving(routes) as live:
        client = live.connect()
        answer = client.request("GET", "/missing")
        assert (answer.status, answer.body) == (404, b'{"error": "no model \'x\'"}')
        answer = client.request("GET", "/full")
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        answer = client.request("GET", "/own")
        assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, b"503 queue_full full", "7")


def test_bug_of_a_handler_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_request: Request) -> None:
        raise KeyError("secret")

    def breaking(_status: int, _reason: str, _message: str) -> Response:
        raise ValueError

    routes = [Route("GET", "/", broken), Route("GET", "/worse", broken, error_body=breaking)]
    with serving(routes) as live:
        client = live.connect()
        for path in ("/", "/worse"):
            answer = client.request("GET", path)
            assert answer.status == 500
            assert b"secret" not in answer.body
    assert "KeyError: 'secret'" in caplog.text


def test_error_from_a_callback_becomes_an_answer() -> None:
    def later(request: Request) -> None:
        asyncio.get_running_loop().call_soon(request.fail, ModelNotFoundError("gone"))

    with serving([Route("GET", "/", later)]) as live:
        assert live.request("GET", "/").status == 404


@pytest.mark.parametrize(
    "response",
    [
        Response(200, b"x", b"text/plain\r\nx: y"),
        Response(200, b"x", b"text/plain", ((b"x", b"a\r\nset-cookie: b"),)),
        Response(200, b"x", b"text/plain", ((b"x\n", b"a"),)),
        Response(200, b"x", b"text/plain", ((b"x", b"a\0"),)),
    ],
)
def test_line_breaks_in_an_answers_headers_are_not_sent(response: Response, caplog: pytest.LogCaptureFixture) -> None:
    def stream(request: Request) -> None:
        request.stream(response.status, response.content_type, response.headers)

    with serving([Route("GET", "/", lambda r: r.respond(response)), Route("GET", "/stream", stream)]) as live:
        client = live.connect()
        for path in ("/", "/stream"):
            answer = client.request("GET", path)
            assert answer.status == 500
            assert not {"x", "set-cookie"} & set(answer.headers)
    assert "line break or NUL" in caplog.text


def test_second_answer_is_an_error_of_the_handler() -> None:
    errors: list[RuntimeError] = []

    def twice(request: Request) -> None:
        hello(request)
        try:
            hello(request)
        except RuntimeError as error:
            errors.append(error)

    with serving([Route("GET", "/", twice)]) as live:
        client = live.connect()
        assert [client.request("GET", "/").body for _ in range(2)] == [b"hello"] * 2
    assert len(errors) == 2


def test_counters_count() -> None:
    with serving(ROUTES) as live:
        client = live.connect()
        client.request("POST", "/echo", b"x" * 1000)
        client.request("GET", "/nowhere")
        client.send(b"nonsense\r\n\r\n")
        assert client.read().status == 400
        counters = live.server.counters
        assert (counters.connections, counters.connections_total, counters.requests) == (1, 1, 2)
        assert counters.bytes_in > 1000
        assert counters.bytes_out > 1000
        assert counters.errors == {"no_route": 1, "malformed": 1}


def test_port_in_use_is_named_with_a_mend() -> None:
    async def start_second(port: int) -> None:
        await HttpServer(Router(ROUTES)).start("127.0.0.1", port)

    with serving(ROUTES) as live, pytest.raises(UsageError, match=f"port {live.port} of 127.0.0.1 is in use") as caught:
        asyncio.run(start_second(live.port))
    assert "--port" in caught.value.mend


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=re.escape(host)):
        asyncio.run(HttpServer(Router(ROUTES)).start(host, 0))


def test_localhost_and_brackets_are_understood() -> None:
    with serving(ROUTES, host="localhost") as live:
        assert live.request("GET", "/").status == 200
        assert live.server.url == f"http://localhost:{live.port}"


def test_routes_do_not_hide_each_other() -> None:
    routes = [Route("POST", "/m/{a}/run", echo), Route("GET", "/m/all/run", hello), Route("GET", "/m/{a}", hello)]
    with serving(routes) as live:
        client = live.connect()
        assert client.request("POST", "/m/x/run", b"1").body == b"1"
        assert client.request("GET", "/m/all/run").body == b"hello"
        assert client.request("GET", "/m/all/").body == b"hello"
        assert client.request("GET", "/m").status == 404


def wire_of(kind: str, body: bytes) -> bytes:
    match kind:
        case "length":
            return b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        case "chunks":
            chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
            return b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        case _:
            return b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


BODIES = st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n\r\n", wire_of("none", b""), b"0\r\n\r\n"])


@pytest.fixture(scope="module")
def shared_live() -> Iterator[Live]:
    with serving(ROUTES) as running:
        yield running


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(st.sampled_from(["length", "length", "chunks", "none"]), BODIES), max_size=12),
    cuts=st.lists(st.integers(0, 2_000), max_size=12),
)
def test_answers_do_not_depend_on_how_the_bytes_were_cut(
    shared_live: Live, requests: list[tuple[str, bytes]], cuts: list[int]
) -> None:
    wire = b"".join(wire_of(kind, body) for kind, body in requests)
    edges = [0, *sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]
    client = shared_live.connect()
    for start, end in pairwise(edges):
        client.send(wire[start:end])
    expected = [b"hello" if kind == "none" else body for kind, body in requests]
    assert [client.read().body for _ in requests] == expected
    client.close()
    shared_live.clients.clear()


def test_head_that_comes_again_is_judged_alike() -> None:
    access = Access(api_keys=["k"])
    with serving([*ROUTES, Route("POST", "/small", echo, max_body_bytes=3)], access=access) as live:
        client = live.connect()
        for _ in range(3):
            assert client.request("POST", "/echo", b"x").status == 401
            assert client.request("POST", "/echo", b"y", {"X-Api-Key": "k"}).body == b"y"
            assert client.request("POST", "/echo", b"z", {"X-Api-Key": "j"}).status == 401
            assert client.request("POST", "/small", b"abc", {"X-Api-Key": "k"}).status == 200
            assert client.request("POST", "/small", b"abcd", {"X-Api-Key": "k"}).status == 413
            assert client.request("GET", "/nowhere", b"", {"X-Api-Key": "k"}).status == 404
        assert live.server.counters.requests == 18
