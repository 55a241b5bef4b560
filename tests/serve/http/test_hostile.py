"""What clients that err, dawdle or attack get, and that the server stays ready."""

from __future__ import annotations

import time

import pytest

from serve.access import Access
from serve.config import Limits
from serve.http.message import Request, Response
from serve.http.router import Route
from tests.serve.http.harness import ROUTES, Client, Live, serving

HOST = b"Host: a\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"


def send_for_ever(client: Client, piece: bytes) -> None:
    for _ in range(10_000):
        client.send(piece)


def refused(live: Live, wire: bytes) -> int:
    """Status of the answer to bytes after which the connection is closed."""
    client = live.connect()
    client.send(wire)
    answer = client.read()
    assert answer.headers["connection"] == "close"
    assert client.is_closed()
    assert live.request("GET", "/").body == b"hello"
    return answer.status


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"POST /echo HTTP/1.1\r\n" + HOST + headers + b"\r\n", id=name)
        for name, headers in {
            "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
            "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
            "list of lengths": b"Content-Length: 5, 5\r\n",
            "signed length": b"Content-Length: +5\r\n",
            "negative length": b"Content-Length: -5\r\n",
            "empty length": b"Content-Length:\r\n",
            "hexadecimal length": b"Content-Length: 0x5\r\n",
            "huge length": b"Content-Length: 99999999999999999999999\r\n",
            "space before the colon": b"Content-Length : 5\r\n",
            "gzip coding": b"Transfer-Encoding: gzip\r\n",
            "gzip then chunked": b"Transfer-Encoding: gzip, chunked\r\n",
            "two codings": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "coding that looks like chunked": b"Transfer-Encoding: xchunked\r\n",
            "identity": b"Transfer-Encoding: identity\r\n",
            "chunked with an upgrade": b"Transfer-Encoding: chunked\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
            "folded line": b"X: a\r\n b\r\n",
            "bare line feed": b"X: a\nY: b\r\n",
            "bare carriage return": b"X: a\rY: b\r\n",
            "NUL": b"X: a\0b\r\n",
            "empty name": b": a\r\n",
            "name with a space": b"X Y: a\r\n",
            "two hosts": b"Host: b\r\n",
            "two keys": b"Authorization: a\r\nAuthorization: b\r\n",
        }.items()
    ]
    + [
        pytest.param(wire, id=name)
        for name, wire in {
            "no host": b"GET / HTTP/1.1\r\n\r\n",
            "host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "host with a user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "line folded at once": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "line feeds only": b"GET / HTTP/1.1\nHost: a\n\n",
            "HTTP/0.9": b"GET /\r\n\r\n",
            "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
            "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "unknown method": b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
            "CONNECT": b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n",
            "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            "nonsense": b"\xff\xfe\xfd\r\n\r\n",
            "space in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
        }.items()
    ]
    + [
        pytest.param(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n", id=f"target {target.decode('latin-1')}")
        for target in (
            b"/../etc/passwd",
            b"/a/../b",
            b"/a/..",
            b"/./a",
            b"/%2e%2e/a",
            b"/a/%2E%2E",
            b"/a%2f..%2fb",
            b"/a%00b",
            b"/a%0d%0ab",
            b"/a%5cb",
            b"/a%ff",
            b"/a%c0%ae",
            b"/a%zz",
            b"/a%",
            b"//a",
            b"/a//b",
            b"/a#b",
            b"a",
            b"ftp://a/b",
        )
    ]
    + [
        pytest.param(CHUNKED + b"\r\n" + chunks, id=f"chunks {chunks[:20]!r}")
        for chunks in (
            b"xyz\r\n",
            b"-5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5\nhello\n0\n\n",
            b"3\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\nhello",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"\r\n5\r\nhello",
        )
    ],
)
def test_ambiguous_request_gets_400_and_the_end(wire: bytes) -> None:
    with serving(ROUTES) as live:
        assert refused(live, wire) == 400


def test_what_follows_a_refused_request_is_no_request() -> None:
    seen: list[Request] = []
    with serving([*ROUTES, Route("GET", "/smuggled", seen.append)]) as live:
        inner = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
        for headers in (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"X: a\r\n b\r\n"):
            assert refused(live, b"POST /echo HTTP/1.1\r\n" + HOST + headers + b"\r\n0\r\n\r\n" + inner) == 400
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + inner)
        assert client.read().body == b"hello"
        assert client.is_closed()
    assert seen == []


SMALL = Limits(max_body_bytes=1000, max_header_bytes=2000, max_headers=20, max_url_bytes=500)


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 3000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 3000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 30 + b"\r\n", 431),
        (b"\r\n" * 2000, 431),
        (b"GET /" + b"x" * 600 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"x" * 200_000, 414),
        (CHUNKED + b"\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", 413),
        (CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 1001, 413),
        (CHUNKED + b"\r\n1\r\nx\r\n0\r\n" + b"T: u\r\n" * 30 + b"\r\n", 431),
        (CHUNKED + b"\r\n1;" + b"x" * 1_000_000, 431),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n", 413),
    ],
)
def test_too_much_is_refused_with_its_status(wire: bytes, status: int) -> None:
    with serving(ROUTES, SMALL) as live:
        assert refused(live, wire) == status


def test_client_that_sends_too_large_a_body_without_looking_sees_the_answer() -> None:
    with serving(ROUTES, Limits(max_body_bytes=4_000_000)) as live:
        client = live.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6000000\r\n\r\n")
        for _ in range(30):
            client.send(b"x" * 100_000)
        assert client.read().status == 413
        assert client.is_closed()


def test_client_that_never_stops_sending_is_cut() -> None:
    with serving(ROUTES, Limits(max_body_bytes=200_000)) as live:
        client = live.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6000000000\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, b"x" * 100_000)
        assert live.server.counters.bytes_in < 2_000_000


def test_small_body_of_a_refused_request_does_not_cost_the_connection() -> None:
    with serving(ROUTES, SMALL) as live:
        client = live.connect()
        assert client.request("POST", "/echo", b"x" * 1001).status == 413
        assert client.request("POST", "/echo", b"x" * 1000).status == 200


def test_route_may_have_a_narrower_limit() -> None:
    def own(status: int, reason: str, _message: str) -> Response:
        return Response(status, reason.encode())

    route = Route("POST", "/narrow", lambda r: r.respond(Response()), error_body=own, max_body_bytes=10)
    with serving([route]) as live:
        answer = live.request("POST", "/narrow", b"x" * 11)
        assert (answer.status, answer.body) == (413, b"too_large")
        client = live.connect()
        client.send(b"POST /narrow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n")
        assert client.read().body == b"too_large"


def test_key_is_asked_for_before_the_body() -> None:
    with serving(ROUTES, access=Access(api_keys=["k"])) as live:
        client = live.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        answer = client.read()
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "bearer")
        assert client.is_closed()
        assert live.request("POST", "/echo", b"x", {"X-Api-Key": "k"}).status == 200


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHo", "timeout"),
        (b"\r\n", "timeout"),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", "timeout"),
        (CHUNKED + b"\r\n5\r\nab", "timeout"),
    ],
)
def test_request_that_stops_halfway_gets_408(wire: bytes, reason: str) -> None:
    with serving(ROUTES, Limits(header_timeout_s=0.05, read_timeout_s=0.05)) as live:
        assert refused(live, wire) == 408
        assert live.server.counters.errors == {reason: 1}


@pytest.mark.parametrize(
    "limits", [Limits(header_timeout_s=0.1), Limits(read_timeout_s=5, body_timeout_s=0.1)], ids=["head", "body"]
)
def test_request_that_trickles_gets_408(limits: Limits) -> None:
    start = b"GET / HTTP/1.1\r\nX: " if limits.header_timeout_s < 1 else b"POST /echo HTTP/1.1\r\nHost: a\r\n"
    if limits.header_timeout_s > 1:
        start += b"Content-Length: 100000\r\n\r\n"
    with serving(ROUTES, limits) as live:
        client = live.connect()
        client.send(start)
        client.sock.setblocking(False)
        answer = b""
        while not answer:
            client.sock.send(b"x")
            time.sleep(0.005)
            try:
                answer = client.sock.recv(1000)
            except BlockingIOError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_idle_connection_is_closed_without_a_word() -> None:
    with serving(ROUTES, Limits(idle_timeout_s=0.05)) as live:
        fresh, used = live.connect(), live.connect()
        assert used.request("GET", "/").body == b"hello"
        assert fresh.is_closed()
        assert used.is_closed()
        assert live.server.counters.errors == {}


def test_request_may_be_answered_after_all_time_limits() -> None:
    waiting: list[Request] = []
    short = Limits(header_timeout_s=0.02, read_timeout_s=0.02, body_timeout_s=0.02, idle_timeout_s=0.02)
    with serving([Route("POST", "/", waiting.append)], short) as live:
        client = live.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok")
        live.wait_until(lambda: len(waiting) == 1)
        time.sleep(0.15)
        live.call(lambda: waiting[0].respond(Response(200, b"late")))
        assert client.read().body == b"late"


def test_client_that_does_not_read_its_answer_is_cut() -> None:
    large = Route("GET", "/large", lambda r: r.respond(Response(200, bytes(30_000_000))))
    with serving([large], Limits(write_timeout_s=0.1)) as live:
        client = live.connect(receive_buffer=4096)
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: live.server.counters.errors == {"write_timeout": 1})
        live.wait_until(lambda: live.server.counters.connections == 0)


def test_slow_reader_that_goes_on_reading_gets_all() -> None:
    large = Route("GET", "/large", lambda r: r.respond(Response(200, bytes(12_000_000))))
    with serving([large], Limits(write_timeout_s=0.3, idle_timeout_s=0.3)) as live:
        client = live.connect(receive_buffer=65536)
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        got = 0
        started = time.monotonic()
        while got < 12_000_000:
            got += len(client.sock.recv(200_000))
            if time.monotonic() - started < 0.8:
                time.sleep(0.02)


def test_connections_beyond_the_limit_get_503_at_once() -> None:
    with serving(ROUTES, Limits(max_connections=3)) as live:
        clients = [live.connect() for _ in range(3)]
        assert [client.request("GET", "/").status for client in clients] == [200] * 3
        for _ in range(5):
            extra = live.connect()
            answer = extra.read()  # without a request
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert extra.is_closed()
        assert [client.request("GET", "/").status for client in clients] == [200] * 3
        clients[0].close()
        live.wait_until(lambda: live.server.counters.connections == 2)
        assert live.request("GET", "/").status == 200
        assert live.server.counters.connections_refused == 5


def test_three_megabytes_in_chunks_of_one_byte_leave_the_server_ready() -> None:
    with serving(ROUTES) as live:
        attacker, other = live.connect(), live.connect()
        attacker.send(CHUNKED + b"\r\n")
        piece = b"1\r\nx\r\n" * 10_000
        for _ in range(30):
            attacker.send(piece)
            assert other.request("GET", "/").body == b"hello"
        for _ in range(270):
            attacker.send(piece)
        attacker.send(b"0\r\n\r\n")
        assert attacker.read().body == b"x" * 3_000_000
        assert other.request("GET", "/").body == b"hello"


def test_announced_bytes_take_no_memory_before_they_come() -> None:
    with serving(ROUTES, Limits(max_body_bytes=1 << 40)) as live:
        client = live.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\nx")
        live.wait_until(lambda: any(c._body is not None for c in live.server._shared.connections))
        (connection,) = live.server._shared.connections
        assert len(connection._body.room()) < 5_000_000
