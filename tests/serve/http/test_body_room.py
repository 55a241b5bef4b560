"""Bodies of all requests share a bounded piece of memory, and those that nobody reads are small."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from serve.access import Access
from serve.config import Limits
from serve.errors import OverloadedError
from serve.http.body_room import BodyRoom, Lease, default_room
from serve.http.incoming import IncomingBody
from serve.http.message import Request, Response
from serve.http.router import Route
from tests.serve.http.harness import ROUTES, hello, serving

KB, MB = 1 << 10, 1 << 20


@pytest.mark.parametrize("route", [Route("GET", "/", hello), Route("POST", "/", hello, "open", max_body_bytes=MB)])
def test_a_body_that_comes_without_a_key_is_small(route: Route) -> None:
    with serving([route], access=Access(api_keys=["k"])) as live:
        assert live.request(route.method, "/", bytes(64 * KB + 1)).status in (401, 413)
        key = {"x-api-key": "k"}
        assert live.request(route.method, "/", bytes(64 * KB), key).status == 200
        assert live.request(route.method, "/", bytes(64 * KB + 1), key).status == 413


@pytest.mark.parametrize("is_chunked", [False, True])
def test_bodies_above_the_common_room_are_refused_until_there_is_some(is_chunked: bool) -> None:
    def start(client, size: int) -> None:
        framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % size
        client.send(b"POST /echo HTTP/1.1\r\nhost: localhost\r\n" + framing + b"\r\n\r\n")
        client.send(b"%x\r\n" % size if is_chunked else b"")
        client.send(bytes(size - 1))

    with serving(ROUTES, Limits(max_body_bytes=4 * MB)) as live:
        room = live.server._bodies
        room.limit = 8 * MB
        first, second, third = (live.connect() for _ in range(3))
        start(first, 3 * MB)
        start(second, 3 * MB)
        live.wait_until(lambda: room.taken >= 5 * MB)
        start(third, 3 * MB)
        answer = third.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        second.send(b"\0" + (b"\r\n0\r\n\r\n" if is_chunked else b""))
        assert second.read().body == bytes(3 * MB)
        first.close()
        assert live.request("POST", "/echo", bytes(3 * MB)).status == 200
        live.wait_until(lambda: room.taken == 0)


def test_room_is_taken_as_long_as_anything_looks_at_the_body() -> None:
    kept: list[object] = []

    def keep(request: Request) -> None:
        kept.append(np.frombuffer(request.body, np.float32)[10:20])
        request.respond(Response())

    with serving([Route("POST", "/", keep)]) as live:
        assert live.request("POST", "/", bytes(MB)).status == 200
        assert live.call(lambda: live.server._bodies.taken) == MB
        kept.clear()
        live.wait_until(lambda: live.server._bodies.taken == 0)


def test_room_is_given_back_on_any_thread_and_found_in_cycles() -> None:
    room = BodyRoom(MB)
    body = IncomingBody(MB, room)
    with pytest.raises(OverloadedError):
        Lease(room, 1)
    held = [body]
    del body
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert room.taken == 0

    cycle: list[object] = [IncomingBody(MB, room)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        room._collected_s = 0.0
        Lease(room, MB)
    finally:
        gc.enable()


def test_the_room_holds_the_largest_bodies() -> None:
    assert default_room(MB) == 256 * MB
    assert default_room(1 << 30) == 4 << 30
