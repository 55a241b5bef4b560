"""Many connections on one thread by epoll: closed loops and open ones, at some 20 µs of this process a request."""

from __future__ import annotations

import random
import select
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from serve_bench.wire import read_head

__all__ = ["LOST", "REFUSED", "Outcomes", "Swarm"]

LOST, REFUSED, UNANSWERED = 0, -1, -2
"""Status of a request whose connection ended before its answer, that found no listener, and that was given up."""


@dataclass
class Outcomes:
    """What became of requests, in the order in which they ended. All times are of `time.monotonic_ns`."""

    due_ns: array[int] = field(default_factory=lambda: array("q"))
    sent_ns: array[int] = field(default_factory=lambda: array("q"))
    done_ns: array[int] = field(default_factory=lambda: array("q"))
    status: array[int] = field(default_factory=lambda: array("i"))
    begin_ns: int = 0
    end_ns: int = 0

    def count(self, *statuses: int) -> int:
        """Requests with one of these statuses."""
        return sum(status in statuses for status in self.status)

    def latencies_ms(self, status: int, *, is_from_due: bool = True) -> list[float]:
        """From the intended or the real sending to the last byte, sorted."""
        begins = self.due_ns if is_from_due else self.sent_ns
        return sorted(
            (done - begin) / 1e6
            for begin, done, one in zip(begins, self.done_ns, self.status, strict=True)
            if one == status
        )

    def rate(self, status: int, begin_ns: int, end_ns: int) -> float:
        """Answers with a status per second of a window."""
        hits = sum(
            one == status and begin_ns <= done < end_ns for done, one in zip(self.done_ns, self.status, strict=True)
        )
        return hits / ((end_ns - begin_ns) / 1e9)


class _Line:
    """A connection."""

    __slots__ = ("due_ns", "is_busy", "need", "out", "received", "sent_ns", "socket", "status", "will_close")

    def __init__(self, plug: socket.socket) -> None:
        self.socket = plug
        self.is_busy = False
        self.out: memoryview | None = None
        self.received = bytearray()
        self.need = -1
        self.status = 0
        self.will_close = False
        self.due_ns = self.sent_ns = 0


class Swarm:
    """Connections to one server.

    Args:
        port: On loopback.
        on_answer: Called with the status and body of each answer.
    """

    def __init__(self, port: int, on_answer: Callable[[int, bytes], None] | None = None) -> None:
        self.port = port
        self.outcomes = Outcomes()
        self.max_in_flight = 0
        self._on_answer = on_answer
        self._epoll = select.epoll()
        self._lines: dict[int, _Line] = {}
        self._free: list[_Line] = []
        self._num_busy = 0

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._lines)

    def closed(self, requests: Sequence[bytes], connections: int, seconds: float) -> Outcomes:
        """Keep `connections` requests in flight for a time; the last ones are waited for."""
        self.outcomes = found = Outcomes(begin_ns=time.monotonic_ns())
        end = found.begin_ns + int(seconds * 1e9)
        index = 0
        while True:
            now = time.monotonic_ns()
            if now < end:
                while self._num_busy < connections and self._send(requests[index % len(requests)], now):
                    index += 1
            elif not self._num_busy:
                break
            self._turn(0.05)
        found.end_ns = end
        return found

    def open(
        self,
        requests: Sequence[bytes],
        rate: float,
        seconds: float,
        *,
        seed: int = 0,
        wait_s: float = 30.0,
        between: Callable[[float], None] | None = None,
    ) -> Outcomes:
        """Send at random times at a mean rate, whatever the answers do.

        Args:
            requests: Sent in turn.
            rate: Per second.
            seconds: How long.
            seed: Of the times.
            wait_s: For the last answers.
            between: Called on each turn with the seconds since the begin.
        """
        self.outcomes = found = Outcomes(begin_ns=time.monotonic_ns())
        times, index = _times(found.begin_ns, rate, seconds, seed), 0
        due = next(times, None)
        found.end_ns = found.begin_ns + int(seconds * 1e9)
        give_up = found.end_ns + int(wait_s * 1e9)
        while due is not None or self._num_busy:
            now = time.monotonic_ns()
            while due is not None and due <= now:
                if not self._send(requests[index % len(requests)], due):
                    self._note(due, now, now, REFUSED)
                index += 1
                due = next(times, None)
            if now > give_up:
                for line in [line for line in self._lines.values() if line.is_busy]:
                    self._note(line.due_ns, line.sent_ns, now, UNANSWERED)
                    self._drop(line)
                break
            if between is not None:
                between((now - found.begin_ns) / 1e9)
            self._turn(min(0.02, max(0.0, ((due or now + 20_000_000) - now) / 1e9)))
        return found

    def close(self) -> None:
        """Close all connections."""
        for line in list(self._lines.values()):
            self._drop(line)
        self._epoll.close()

    def _send(self, request: bytes, due: int) -> bool:
        line = self._take()
        if line is None:
            return False
        line.is_busy, line.need = True, -1
        line.received.clear()
        line.due_ns, line.sent_ns = due, time.monotonic_ns()
        self._num_busy += 1
        self.max_in_flight = max(self.max_in_flight, self._num_busy)
        line.out = memoryview(request)
        self._flush(line)
        return True

    def _take(self) -> _Line | None:
        while self._free:
            line = self._free.pop()
            try:
                line.socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return line
            except OSError:
                pass
            self._drop(line)  # it was closed while nothing was asked
        try:
            plug = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        except OSError:
            return None
        plug.setblocking(False)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = self._lines[plug.fileno()] = _Line(plug)
        self._epoll.register(plug.fileno(), select.EPOLLIN)
        return line

    def _flush(self, line: _Line) -> None:
        assert line.out is not None
        try:
            sent = line.socket.send(line.out)
        except BlockingIOError:
            sent = 0
        except OSError:
            line.out = None
            return  # the reading side tells what there is to tell
        if sent == len(line.out):
            line.out = None
            self._epoll.modify(line.socket.fileno(), select.EPOLLIN)
        else:
            line.out = line.out[sent:]
            self._epoll.modify(line.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _turn(self, timeout_s: float) -> None:
        for descriptor, events in self._epoll.poll(timeout_s):
            line = self._lines.get(descriptor)
            if line is None:
                continue
            if events & select.EPOLLOUT and line.out is not None:
                self._flush(line)
            if events & ~select.EPOLLOUT:
                self._receive(line)

    def _receive(self, line: _Line) -> None:
        try:
            data = line.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if line.is_busy:
                self._note(line.due_ns, line.sent_ns, time.monotonic_ns(), LOST)
            self._drop(line)
            return
        received = line.received
        received += data
        if line.need < 0:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            line.status, size, line.will_close = read_head(bytes(received[:end]))
            line.need = end + 4 + max(size, 0)
        if len(received) >= line.need:
            self._finish(line)

    def _finish(self, line: _Line) -> None:
        self._note(line.due_ns, line.sent_ns, time.monotonic_ns(), line.status)
        if self._on_answer is not None:
            self._on_answer(line.status, bytes(line.received[line.received.find(b"\r\n\r\n") + 4 :]))
        if line.will_close:
            self._drop(line)
            return
        line.is_busy = False
        self._num_busy -= 1
        self._free.append(line)

    def _drop(self, line: _Line) -> None:
        if self._lines.pop(line.socket.fileno(), None) is None:
            return
        if line.is_busy:
            self._num_busy -= 1
            line.is_busy = False
        elif line in self._free:
            self._free.remove(line)
        line.socket.close()

    def _note(self, due: int, sent: int, done: int, status: int) -> None:
        found = self.outcomes
        found.due_ns.append(due)
        found.sent_ns.append(sent)
        found.done_ns.append(done)
        found.status.append(status)


def _times(begin: int, rate: float, seconds: float, seed: int) -> Iterator[int]:
    generator, at = random.Random(seed), 0.0
    while (at := at + generator.expovariate(rate)) < seconds:
        yield begin + int(at * 1e9)
