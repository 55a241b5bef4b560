"""The same routes under uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import uvicorn

from serve.access import Access
from serve.config import Limits
from serve.errors import OverloadedError
from serve.http.asgi import asgi_app
from serve.http.message import Request, Response
from serve.http.router import Route, Router
from tests.serve.http.harness import ROUTES, Client, echo


class Watch:
    def __init__(self) -> None:
        self.events: list[str] = []

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")

    def never(self, request: Request) -> None:
        self.events.append("asked")
        request.on_close(lambda: self.events.append("gone"))

    async def never_in_coroutine(self, request: Request) -> None:
        self.events.append("asked")
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append("cancelled")


async def stream(request: Request) -> None:
    answer = request.stream(200, b"text/plain", ((b"x-a", b"b"),))
    for index in range(50):
        answer.write(b"%d " % index + b"x" * 20_000)
        await answer.drain()
    answer.end()
    answer.write(b"late")


async def breaks(request: Request) -> None:
    request.stream(200, b"text/plain").write(b"begun")
    await asyncio.sleep(0)
    raise ValueError("in the middle")


def later(request: Request) -> None:
    asyncio.get_running_loop().call_later(0.01, request.respond, Response(200, [b"la", b"ter"]))


def full(_request: Request) -> None:
    raise OverloadedError("full", retry_after_s=3)


def bad_header(request: Request) -> None:
    request.respond(Response(200, b"", headers=((b"x", b"a\r\nb: c"),)))


@contextlib.contextmanager
def under_uvicorn(watch: Watch) -> Iterator[SimpleNamespace]:
    routes = [
        *ROUTES,
        Route("GET", "/stream", stream),
        Route("GET", "/breaks", breaks),
        Route("GET", "/later", later),
        Route("GET", "/full", full),
        Route("GET", "/header", bad_header),
        Route("GET", "/never", watch.never),
        Route("GET", "/never2", watch.never_in_coroutine),
        Route("GET", "/params/{a}", lambda r: r.respond(Response(200, f"{r.params} {r.query} {r.path}".encode()))),
        Route("POST", "/admin", echo, access="admin"),
    ]
    app = asgi_app(
        Router(routes),
        Limits(max_body_bytes=1_000_000, max_headers=20),
        Access.for_host("127.0.0.1", admin_token="t"),
        on_startup=watch.start,
        on_shutdown=watch.stop,
    )
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, lifespan="on", loop="uvloop", http="httptools", server_header=False, ws="none"
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        yield SimpleNamespace(port=bound.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def connect(port: int) -> Client:
    return Client(socket.create_connection(("127.0.0.1", port)))


def test_routes_answer_alike_under_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    with under_uvicorn(watch) as live, contextlib.closing(connect(live.port)) as client:
        answer = client.request("GET", "/")
        assert (answer.status, answer.body, answer.headers["server"]) == (200, b"hello", "edgesmith")
        body = bytes(range(256)) * 3000
        assert client.request("POST", "/echo", body).body == body
        client.send(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        )
        assert client.read().body == b"abc"
        assert client.request("HEAD", "/").headers["content-length"] == "5"
        assert client.request("GET", "/params/x%20y?q=%20").body == b"{'a': 'x y'} q=%20 /params/x y"
        assert client.request("GET", "/later").body == b"later"
        answer = client.request("GET", "/stream")
        assert answer.body == b"".join(b"%d " % index + b"x" * 20_000 for index in range(50))
        assert answer.headers["x-a"] == "b"
        answer = client.request("GET", "/full")
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        assert client.request("GET", "/nowhere").status == 404
        assert client.request("DELETE", "/").headers["allow"] == "get, head, options"
        assert client.request("OPTIONS", "/").status == 204
        assert client.request("GET", "/header").status == 500
        assert client.request("POST", "/admin", b"x").status == 401
        assert client.request("POST", "/admin", b"x", {"Authorization": "Bearer t"}).body == b"x"
        assert client.request("GET", "/a%2fb").status == 400
        assert client.request("GET", "/", headers={f"X-{index}": "y" for index in range(30)}).status == 431
        assert client.request("GET", "/" + "x" * 9000).status == 414
        assert watch.events == ["start"]
    assert watch.events == ["start", "stop"]
    assert "line break or NUL" in caplog.text


def test_body_above_the_limit_is_refused_under_uvicorn() -> None:
    with under_uvicorn(Watch()) as live:
        with contextlib.closing(connect(live.port)) as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n")
            assert client.read().status == 413
        with contextlib.closing(connect(live.port)) as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nf4241\r\n")
            client.send(b"x" * 1_000_001)
            assert client.read().status == 413


def test_broken_stream_is_not_finished_under_uvicorn() -> None:
    with under_uvicorn(Watch()) as live, contextlib.closing(connect(live.port)) as client:
        client.send(b"GET /breaks HTTP/1.1\r\nHost: localhost\r\n\r\n")
        everything = client.read_to_end()
        assert b"begun" in everything
        assert not everything.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("path", "event"), [("/never", "gone"), ("/never2", "cancelled")])
def test_handler_learns_that_its_client_has_gone_under_uvicorn(path: str, event: str) -> None:
    watch = Watch()
    with under_uvicorn(watch) as live:
        client = connect(live.port)
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while "asked" not in watch.events:
            pass
        client.close()
        while event not in watch.events:
            pass
    assert watch.events == ["start", "asked", event, "stop"]


def test_failed_start_is_told_to_the_server() -> None:
    async def fail() -> None:
        raise OSError("no model")

    app = asgi_app(Router(ROUTES), on_startup=fail)
    sent: list[object] = []

    async def run() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "lifespan.startup"}

        async def send(message: object) -> None:
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "lifespan.startup.failed", "message": "no model"}]
