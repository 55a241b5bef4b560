"""The same routes under any ASGI server, such as uvicorn, or Ray Serve's proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from serve.access import Access
from serve.config import Limits
from serve.errors import MalformedError, RequestError, TooLargeError
from serve.http.admission import Admission
from serve.http.failures import HeadersTooLargeError, UrlTooLongError, answer_failure
from serve.http.heads import as_parts
from serve.http.message import Headers, Response
from serve.http.router import Route, Router

__all__ = ["asgi_app"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_HIGH_WATER_BYTES = 64 << 10


def asgi_app(
    router: Router,
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    on_startup: Callable[[], Awaitable[None]] | None = None,
    on_shutdown: Callable[[], Awaitable[None]] | None = None,
) -> AsgiApp:
    """An ASGI 3 application that answers the routes of a router.

    Args:
        router: What is answered by whom.
        limits: Of bodies, URLs and headers; time limits and connections are the ASGI server's.
        access: Who may ask for what; by default everybody for everything but admin routes.
        on_startup: Awaited before the first request, on the loop that serves.
        on_shutdown: Awaited after the last one.
    """
    limits = limits or Limits()
    admission = Admission(router, limits, access or Access())

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send, on_startup, on_shutdown)
        elif scope["type"] == "http":
            await _AsgiRequest(scope, send).serve(admission, limits, receive)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    return app


async def _live(
    receive: Receive,
    send: Send,
    on_startup: Callable[[], Awaitable[None]] | None,
    on_shutdown: Callable[[], Awaitable[None]] | None,
) -> None:
    while True:
        event = (await receive())["type"]
        action = on_startup if event == "lifespan.startup" else on_shutdown
        try:
            if action is not None:
                await action()
        except Exception as error:  # noqa: BLE001  the server is told, and stops
            await send({"type": f"{event}.failed", "message": str(error)})
            return
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


class _AsgiRequest:
    """A `serve.http.message.Request`, and the `Stream` of its answer."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and self.path.startswith(root + "/"):
            self.path = self.path[len(root) :]
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.body: bytes | bytearray | memoryview = b""
        self.params: dict[str, str] = {}
        self.peer: str = (scope.get("client") or ("",))[0]
        self.received_ns = 0
        self._raw_path: bytes = scope.get("raw_path") or self.path.encode()
        self._header_list: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._headers: dict[bytes, bytes] = dict(self._header_list)
        self._send = send
        self._extra: Headers = ()
        self._route: Route | None = None
        self._loop = asyncio.get_running_loop()
        self._on_close: Callable[[], None] | None = None
        self._is_gone = False
        self._messages: list[Message] = []  # to be sent
        self._pending_bytes = 0
        self._has_messages = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_begun = False
        self._is_ended = False
        self._is_cut = False

    # What handlers call.

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""
        return self._is_gone

    def header(self, name: bytes) -> bytes | None:
        """A header's value by its name in lower case; of several equal ones the last."""
        return self._headers.get(name)

    def on_close(self, callback: Callable[[], None] | None) -> None:
        """Call once if the client goes before it is answered; None takes the callback back."""
        self._on_close = callback

    def respond(self, response: Response) -> None:
        """Answer; only once, and not after `stream`."""
        if self._is_gone:
            return
        parts, size = as_parts(response.body)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        length = ((b"content-length", b"%d" % size),) if response.status not in (204, 304) else ()
        try:
            self._begin(response, length)
        except ValueError as error:
            self.respond(answer_failure(error, None))
            return
        self._push({"type": "http.response.body", "body": bytes(body), "more_body": False}, 0)
        self._is_ended = True

    def fail(self, error: BaseException) -> None:
        """Answer with the error; a stream that has begun is cut."""
        if self._is_gone:
            return
        response = answer_failure(error, self._route)
        if not self._is_begun:
            self.respond(response)
        elif not self._is_ended:
            self._is_ended = self._is_cut = True
            self._has_messages.set()

    def stream(self, status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> _AsgiRequest:
        """Begin an answer of unknown length."""
        if not self._is_gone:
            self._begin(Response(status, b"", content_type, headers), ())
        return self

    def write(self, data: bytes) -> None:
        """Send a piece; after the client has gone, or the end, nothing happens."""
        if data and not self._is_gone and not self._is_ended:
            self._push({"type": "http.response.body", "body": data, "more_body": True}, len(data))

    async def drain(self) -> None:
        """Wait while the client is slower than we are."""
        await self._has_room.wait()

    def end(self) -> None:
        """Finish the answer. Ending twice is harmless."""
        if not self._is_gone and not self._is_ended:
            self._push({"type": "http.response.body", "body": b"", "more_body": False}, 0)
            self._is_ended = True

    # What the application calls.

    async def serve(self, admission: Admission, limits: Limits, receive: Receive) -> None:
        """Read the request, have it answered, and send the answer."""
        try:
            handler_route = self._admit(admission, limits)
            if handler_route is not None:
                self.body = await self._read_body(receive, admission.body_limit(handler_route))
        except RequestError as error:
            self.fail(error)
            handler_route = None
        except ConnectionResetError:
            return
        self.received_ns = time.monotonic_ns()
        watcher = self._loop.create_task(self._watch(receive)) if handler_route is not None else None
        worker: asyncio.Task[None] | None = None
        try:
            if handler_route is not None:
                worker = self._handle(handler_route)
            await self._send_all(worker)
        finally:
            tasks = [task for task in (watcher, worker) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, admission: Admission, limits: Limits) -> Route | None:
        """The route, or None when the answer is already given."""
        if len(self._raw_path) + len(self.query) > limits.max_url_bytes:
            raise UrlTooLongError(f"the URL has more than {limits.max_url_bytes:,} bytes")
        if len(self._header_list) > limits.max_headers:
            raise HeadersTooLargeError(f"there are more than {limits.max_headers} headers")
        if sum(len(name) + len(value) + 4 for name, value in self._header_list) > limits.max_header_bytes:
            raise HeadersTooLargeError(f"the headers have more than {limits.max_header_bytes:,} bytes")
        if b"%2f" in self._raw_path.lower():
            raise MalformedError("the path holds an encoded slash")
        place = admission.find_decoded(self.method, self.path, self.query)
        self._route, self.params = place.route, place.params
        self._extra = admission.cross_origin(self._headers)
        answer = admission.answer_options(place, self.method, self._headers)
        if answer is not None:
            self.respond(answer)
            return None
        length = self._headers.get(b"content-length", b"0")
        admission.check(place, self.method, self._headers, int(length) if length.isdigit() else 0)
        return place.route

    async def _read_body(self, receive: Receive, limit: int) -> bytes | bytearray:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise TooLargeError(f"the body has more than {limit:,} bytes")
            if part:
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _watch(self, receive: Receive) -> None:
        """Wait for the client to go."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._go()

    def _go(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        callback, self._on_close = self._on_close, None
        self._has_messages.set()
        self._has_room.set()
        if callback is not None and not self._is_ended:
            callback()

    def _handle(self, route: Route) -> asyncio.Task[None] | None:
        try:
            awaitable = route.handler(self)
        except Exception as error:  # noqa: BLE001  a handler's bug is answered with 500 and logged
            self.fail(error)
            return None
        return None if awaitable is None else self._loop.create_task(self._wait_for(awaitable))

    async def _wait_for(self, awaitable: Awaitable[None]) -> None:
        try:
            await awaitable
        except Exception as error:  # noqa: BLE001  a handler's bug is answered with 500 and logged
            self.fail(error)

    async def _send_all(self, worker: asyncio.Task[None] | None) -> None:
        """Send what the handler writes, as fast as the server takes it, until the end or until the client goes."""
        while not self._is_gone:
            messages, self._messages = self._messages, []
            self._has_messages.clear()
            for message in messages:
                try:
                    await self._send(message)
                except OSError:  # how servers of ASGI 2.4 say that the client has gone
                    self._go()
                    return
            if not self._messages:
                self._pending_bytes = 0
                self._has_room.set()
                if self._is_cut:
                    raise ConnectionAbortedError(f"the answer of {self.method} {self.path} could not be finished")
                if self._is_ended:
                    self._on_close = None
                    break
                await self._has_messages.wait()
        if worker is not None and not self._is_gone:
            await worker

    def _begin(self, response: Response, extra: tuple[tuple[bytes, bytes], ...]) -> None:
        if self._is_begun:
            raise RuntimeError(f"{self.method} {self.path} was answered twice")
        headers = [*response.headers, *self._extra, *extra, (b"server", b"edgesmith")]
        if response.content_type:
            headers.append((b"content-type", response.content_type))
        for name, value in headers:
            if any(character in value or character in name for character in (b"\r", b"\n", b"\0")):
                raise ValueError("a header of the answer holds a line break or NUL")
        self._is_begun = True
        self._push({"type": "http.response.start", "status": response.status, "headers": headers}, 0)

    def _push(self, message: Message, num_bytes: int) -> None:
        self._messages.append(message)
        self._pending_bytes += num_bytes
        if self._pending_bytes > _HIGH_WATER_BYTES:
            self._has_room.clear()
        self._has_messages.set()
