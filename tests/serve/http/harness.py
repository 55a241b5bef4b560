"""A real server on a thread of its own, and clients that are plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from serve.access import Access
from serve.config import Limits
from serve.http.message import Request, Response
from serve.http.router import Route, Router
from serve.http.server import HttpServer

WAIT_S = 10.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return self.read(has_body=method != "HEAD")

    def read(self, *, has_body: bool = True) -> Answer:
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in lines if line)
        status = int(first.split()[1])
        body = b""
        if status == 100 or not has_body:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        elif status not in (204, 304):
            body = self.read_to_end()
        return Answer(status, headers, body)

    def read_to_end(self) -> bytes:
        data, self._rest = self._rest, b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.sock.recv(65536):
                data += piece
        return data

    def is_closed(self) -> bool:
        """Wait until the server closes; whether it sent nothing more before."""
        return self.read_to_end() == b""

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close so that the server gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._more()
        found, _, self._rest = self._rest.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _more(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {self._rest!r}")
        self._rest += piece


class Live:
    """A running server."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.clients: list[Client] = []

    @property
    def port(self) -> int:
        return self.server.address[1]

    def connect(self, *, tls: ssl.SSLContext | None = None, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(WAIT_S)
        try:
            sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(tls.wrap_socket(sock, server_hostname="localhost") if tls else sock)
        self.clients.append(client)
        return client

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Over a connection of its own."""
        return self.connect().request(method, path, body, headers)

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function on the server's thread."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true on the server's thread."""

        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(poll(), WAIT_S), self.loop).result()


@contextlib.contextmanager
def serving(
    routes: Sequence[Route],
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[Live]:
    """Run a server; afterwards nothing may be left, and nothing may have gone wrong inside the loop."""
    loop = loop_factory()
    wrong: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: wrong.append(context))
    server = HttpServer(Router(routes), limits, access, tls=tls)
    loop.run_until_complete(server.start(host, 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    live = Live(server, loop)
    try:
        yield live
    finally:
        for client in live.clients:
            client.close()
        live.call(lambda: server.drain(0.5))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        left = asyncio.all_tasks(loop)
        loop.close()
    assert wrong == []
    assert left == set()
    assert server.counters.connections == 0


def echo(request: Request) -> None:
    request.respond(Response(200, request.body, b"application/octet-stream"))


def hello(request: Request) -> None:
    request.respond(Response(200, b"hello", b"text/plain"))


ROUTES = (Route("GET", "/", hello), Route("POST", "/echo", echo), Route("POST", "/echo/{name}", echo))
