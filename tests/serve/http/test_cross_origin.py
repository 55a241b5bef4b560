"""Web pages of listed origins can talk to the server as browsers want it; all others cannot."""

from __future__ import annotations

import pytest

from serve.access import Access
from serve.config import Limits
from serve.http.message import Request
from serve.http.router import Route
from tests.serve.http.harness import ROUTES, serving

PAGE = "https://page.example"


def tell(request: Request) -> None:
    stream = request.stream(200, b"text/event-stream")
    stream.write(b"data: 1\n\n")
    stream.end()


def fail(_request: Request) -> None:
    raise ValueError("no")


MORE = (*ROUTES, Route("GET", "/events", tell), Route("GET", "/fail", fail), Route("POST", "/admin", fail, "admin"))


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        "access-control-request-private-network": "true",
    }


def test_a_preflight_of_a_listed_page_is_granted() -> None:
    access = Access.for_host("127.0.0.1", api_keys=["k"], allowed_origins=[PAGE])
    with serving(MORE, access=access) as live:
        answer = live.request("OPTIONS", "/echo", headers=preflight(PAGE))
    assert answer.status == 204
    granted = {name: value for name, value in answer.headers.items() if name.startswith("access-control-allow-")}
    assert granted == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "options, post",
        "access-control-allow-headers": "authorization,content-type,x-stainless-os",
        "access-control-allow-private-network": "true",
    }
    assert answer.headers["vary"] == "origin"
    assert int(answer.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize("listed", [[], [PAGE]])
def test_other_pages_are_granted_nothing(listed: list[str]) -> None:
    with serving(MORE, access=Access.for_host("127.0.0.1", allowed_origins=listed)) as live:
        for origin in ("https://other.example", "null", PAGE + ".other.example"):
            for method, path in (("OPTIONS", "/echo"), ("GET", "/"), ("GET", "/events")):
                answer = live.request(method, path, headers=preflight(origin))
                assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("POST", "/echo", 200), ("GET", "/events", 200), ("GET", "/fail", 500), ("GET", "/no", 404)],
)
def test_answers_and_errors_can_be_read_by_a_listed_page(method: str, path: str, status: int) -> None:
    with serving(MORE, access=Access(origins=[PAGE + "/"])) as live:
        client = live.connect()
        body = b"x" if method == "POST" else b""
        for _ in range(2):  # the second one is known by its head
            answer = client.request(method, path, body, {"origin": PAGE})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in client.request(method, path, body).headers


def test_refusals_can_be_read_by_a_listed_page() -> None:
    with serving(MORE, Limits(max_body_bytes=200_000), Access(api_keys=["k"], origins=[PAGE])) as live:
        for path, size, key, status in (
            ("/echo", 10, "", 401),
            ("/echo", 100_000, "", 401),
            ("/echo", 300_000, "k", 413),
            ("/admin", 1, "k", 403),
        ):
            answer = live.request("POST", path, bytes(size), {"origin": PAGE, "x-api-key": key})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, PAGE)
