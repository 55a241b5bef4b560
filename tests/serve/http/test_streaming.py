"""Answers piece by piece, clients that go, and draining."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from serve.config import Limits
from serve.http.message import Request, Response, Stream
from serve.http.router import Route
from tests.serve.http.harness import ROUTES, Live, serving


def by_callback(request: Request) -> None:
    stream = request.stream(200, b"text/event-stream", ((b"cache-control", b"no-store"),))
    pieces = iter([b"one ", b"", b"two ", b"three" * 20_000])

    def step() -> None:
        piece = next(pieces, None)
        if piece is None:
            stream.end()
            stream.end()
            stream.write(b"too late")
        else:
            stream.write(piece)
            asyncio.get_running_loop().call_soon(step)

    step()


EXPECTED = b"one two " + b"three" * 20_000


def test_stream_comes_in_chunks_and_the_connection_is_kept() -> None:
    with serving([*ROUTES, Route("GET", "/s", by_callback)]) as live:
        client = live.connect()
        for _ in range(2):
            answer = client.request("GET", "/s")
            assert answer.body == EXPECTED
            assert answer.headers["cache-control"] == "no-store"
            assert "content-length" not in answer.headers
        head = client.request("HEAD", "/s")
        assert head.headers["transfer-encoding"] == "chunked"
        assert client.request("GET", "/").body == b"hello"


def test_stream_to_http_1_0_ends_with_the_connection() -> None:
    with serving([Route("GET", "/s", by_callback)]) as live:
        client = live.connect()
        client.send(b"GET /s HTTP/1.0\r\n\r\n")
        answer = client.read()
        assert answer.body == EXPECTED
        assert "transfer-encoding" not in answer.headers


def test_writer_that_waits_is_held_back_by_a_slow_client() -> None:
    written = 0

    async def flood(request: Request) -> None:
        nonlocal written
        stream = request.stream(200, b"text/plain")
        for _ in range(300):
            stream.write(b"x" * 100_000)
            written += 100_000
            await stream.drain()
        stream.end()

    with serving([Route("GET", "/", flood)]) as live:
        client = live.connect(receive_buffer=4096)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: any(c._is_write_paused for c in live.server._shared.connections))
        assert written < 15_000_000
        assert len(client.read().body) == 30_000_000


def test_writer_that_does_not_wait_cannot_fill_the_memory() -> None:
    async def flood(request: Request) -> None:
        stream = request.stream(200, b"text/plain")
        while not stream.is_closed:
            stream.write(b"x" * 1_000_000)
            await asyncio.sleep(0)

    with serving([Route("GET", "/", flood)]) as live:
        client = live.connect(receive_buffer=4096)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: live.server.counters.errors == {"answer_unread": 1})


def test_error_in_the_middle_of_a_stream_leaves_it_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(request: Request) -> None:
        request.stream(200, b"text/plain").write(b"begun")
        raise ValueError("in the middle")

    with serving([Route("GET", "/", breaks)]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        everything = client.read_to_end()
        assert everything.endswith(b"\r\n\r\n5\r\nbegun\r\n")
    assert "in the middle" in caplog.text


class Watched:
    """Requests that nobody answers, and how often each was told that its client went."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.num_closed = 0

    def __call__(self, request: Request) -> None:
        self.requests.append(request)
        request.on_close(self.closed)

    def closed(self) -> None:
        self.num_closed += 1


@pytest.mark.parametrize("factory", [None, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("leave", ["close", "reset", "half"])
def test_handler_is_told_once_that_its_client_has_gone(
    factory: Callable[[], asyncio.AbstractEventLoop] | None, leave: str
) -> None:
    watched = Watched()
    extra = {} if factory is None else {"loop_factory": factory}
    with serving([Route("GET", "/", watched)], **extra) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(watched.requests) == 1)
        if leave == "half":
            client.sock.shutdown(1)
        else:
            getattr(client, leave)()
        live.wait_until(lambda: live.server.counters.connections == 0)
        assert watched.num_closed == 1
        assert watched.requests[0].is_closed
        live.call(lambda: watched.requests[0].respond(Response()))  # harmless
        live.call(lambda: watched.requests[0].fail(ValueError("late")))
        live.call(lambda: watched.requests[0].stream(200, b"").end())
        assert live.server.counters.client_gone == 1


def test_handler_that_took_its_callback_back_is_not_told() -> None:
    watched = Watched()
    with serving([Route("GET", "/", watched)]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(watched.requests) == 1)
        live.call(lambda: watched.requests[0].on_close(None))
        client.close()
        live.wait_until(lambda: live.server.counters.connections == 0)
    assert watched.num_closed == 0


def test_handler_whose_answer_was_whole_is_not_told() -> None:
    watched = Watched()

    def answers(request: Request) -> None:
        watched(request)
        request.respond(Response(200, b"done"))

    with serving([Route("GET", "/", answers)]) as live:
        client = live.connect()
        assert client.request("GET", "/").body == b"done"
        client.close()
        live.wait_until(lambda: live.server.counters.connections == 0)
    assert watched.num_closed == 0


def test_coroutine_is_cancelled_when_its_client_goes() -> None:
    ends: list[str] = []

    async def waits(_request: Request) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    with serving([Route("GET", "/", waits)]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(asyncio.all_tasks()) > 1)
        client.close()
        live.wait_until(lambda: ends == ["cancelled"])


def test_stream_learns_that_its_client_has_gone() -> None:
    streams: list[Stream] = []

    async def endless(request: Request) -> None:
        streams.append(request.stream(200, b"text/plain"))
        request.on_close(lambda: streams.clear())
        await asyncio.Event().wait()

    with serving([Route("GET", "/", endless)]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(streams) == 1)
        (stream,) = streams
        client.reset()
        live.wait_until(lambda: not streams)
        assert stream.is_closed
        live.call(lambda: stream.write(b"nobody reads this"))
        live.call(stream.drain)


def test_thousand_disconnects_leave_nothing_behind() -> None:
    references: list[weakref.ref[object]] = []
    num_closed = 0

    def never(request: Request) -> None:
        def closed() -> None:
            nonlocal num_closed
            num_closed += 1

        references.append(weakref.ref(closed))
        request.on_close(closed)

    with serving([*ROUTES, Route("POST", "/never", never)]) as live:
        for index in range(1_000):
            client = live.connect()
            client.send(
                b"POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"[: -1 if index % 4 == 0 else None]
            )
            (client.reset if index % 2 else client.close)()
            live.clients.clear()
        live.wait_until(lambda: live.server.counters.connections_total == 1_000)
        live.wait_until(lambda: live.server.counters.connections == 0)
        assert num_closed == len(references)
        gc.collect()
        assert [ref for ref in references if ref() is not None] == []
        assert live.request("GET", "/").body == b"hello"


def drain_in_background(live: Live, timeout_s: float) -> threading.Thread:
    thread = threading.Thread(target=live.call, args=(lambda: live.server.drain(timeout_s),))
    thread.start()
    live.wait_until(lambda: live.server.is_draining)
    return thread


def test_drain_closes_idle_connections_and_finishes_the_others() -> None:
    waiting: list[Request] = []
    with serving([*ROUTES, Route("GET", "/later", waiting.append)]) as live:
        idle, busy, halfway = live.connect(), live.connect(), live.connect()
        assert idle.request("GET", "/").body == b"hello"
        busy.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        halfway.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        live.wait_until(lambda: len(waiting) == 1 and live.server.counters.requests == 3)
        thread = drain_in_background(live, 5.0)
        assert idle.is_closed()
        with pytest.raises(ConnectionRefusedError):
            live.connect()
        halfway.send(b"cd")
        answer = halfway.read()
        assert (answer.body, answer.headers["connection"]) == (b"abcd", "close")
        live.call(lambda: waiting[0].respond(Response(200, b"finished")))
        answer = busy.read()
        assert (answer.body, answer.headers["connection"]) == (b"finished", "close")
        assert busy.is_closed()
        thread.join()


def test_drain_ends_a_stream_and_then_its_connection() -> None:
    streams: list[Stream] = []
    with serving([Route("GET", "/", lambda r: streams.append(r.stream(200, b"text/plain")))]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(streams) == 1)
        thread = drain_in_background(live, 5.0)
        live.call(lambda: streams[0].write(b"last"))
        live.call(streams[0].end)
        assert client.read().body == b"last"
        assert client.is_closed()
        thread.join()


def test_drain_cuts_what_takes_too_long() -> None:
    watched = Watched()
    with serving([Route("GET", "/", watched)], Limits()) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(watched.requests) == 1)
        drain_in_background(live, 0.1).join()
        assert client.is_closed()
        assert watched.num_closed == 1


def test_no_request_is_lost_that_came_before_the_drain() -> None:
    with serving(ROUTES) as live:
        used, fresh = live.connect(), live.connect()
        assert used.request("GET", "/").body == b"hello"

        def drain_with_requests_on_their_way() -> None:
            waiting = live.connect()  # accepted by the system, not by the server
            for client in (used, fresh, waiting):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            live.server.begin_drain()

        live.call(drain_with_requests_on_their_way)
        for client in (used, fresh, live.clients[-1]):
            assert client.read().body == b"hello"
            assert client.is_closed()


def test_writing_to_a_client_that_has_just_gone_is_harmless() -> None:
    streams: list[Stream] = []
    with serving([Route("GET", "/", lambda r: streams.append(r.stream(200, b"text/plain")))]) as live:
        client = live.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: len(streams) == 1)

        def write_after_reset() -> None:
            client.reset()
            for _ in range(100):
                streams[0].write(b"x" * 1000)
            streams[0].end()

        live.call(write_after_reset)
        live.wait_until(lambda: live.server.counters.connections == 0)
