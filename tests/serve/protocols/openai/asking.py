"""Requests and answers of OpenAI's routes, without its client."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.load.protocols.events import EventParser
from tests.serve.protocols.oip.serving import Answer, Serving


def post(serving: Serving, path: str, body: Any, **headers: str) -> Answer:
    """Send JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return serving.ask(path, data, **({"content_type": "application/json"} | headers))


def value_of(serving: Serving, path: str, **body: Any) -> Any:
    """What a request that goes well is answered."""
    answer = post(serving, path, body)
    assert answer.status == 200, answer.body
    return answer.value


def error_of(serving: Serving, path: str, status: int, body: Any) -> dict[str, Any]:
    """What a request that is refused is told."""
    answer = post(serving, path, body)
    assert answer.status == status, answer.body
    error: dict[str, Any] = answer.value["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(answer: Answer) -> list[Any]:
    """The objects of a stream, which must end as it should."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = EventParser().feed(answer.body)
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def open_stream(serving: Serving, path: str, body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Send a request, and read no more than its head."""
    connection = http.client.HTTPConnection(*serving.http.address, timeout=30)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection, connection.getresponse()


def pieces(events: list[Any], index: int = 0) -> Iterator[Any]:
    """The pieces of one choice."""
    for event in events:
        for choice in event["choices"]:
            if choice["index"] == index:
                yield choice
