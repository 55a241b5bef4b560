"""Routes of the server itself: the page and its figures, metrics, the description of the interface, health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve.http.message import Handler, Request, Response
from serve.http.router import Route
from serve.json_text import dump_json
from serve.live import LiveFigures
from serve.metrics import content_type
from serve.model_facts import list_models
from serve.page import build_page
from serve.protocols.oip.facts import is_ready

if TYPE_CHECKING:
    from serve.service import Service

__all__ = ["routes"]

_NO_STORE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


def routes(service: Service, others: Sequence[Route] = (), *, has_page: bool = True) -> list[Route]:
    """The routes of the server itself.

    Args:
        service: What they tell of.
        others: All other routes of the server, which the OpenAPI document describes along with these.
        has_page: Whether there is a page at `/`.
    """
    figures = LiveFigures(service)
    found = [
        Route("GET", "/metrics", _metrics(service)),
        Route("GET", "/live.json", _json(figures.read)),
        Route("GET", "/models.json", _json(lambda: {"models": list_models(service)})),
        Route("GET", "/healthz", _health(service), access="open"),
    ]
    if has_page:
        found.append(Route("GET", "/", _page, access="open"))
    found.append(Route("GET", "/openapi.json", _openapi(service, others, found)))
    return found


def _page(request: Request) -> None:
    page = build_page()
    etag = page.etag.encode()
    headers = (
        (b"etag", etag),
        # Asked for again each time, so that a newer server's page is seen at once; mostly answered by 304.
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", page.policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    )
    known = [one.strip().removeprefix(b"W/") for one in (request.header(b"if-none-match") or b"").split(b",")]
    is_known = etag in known or b"*" in known
    html = b"text/html; charset=utf-8"
    request.respond(Response(304 if is_known else 200, b"" if is_known else page.body, html, headers))


def _metrics(service: Service) -> Handler:
    def answer(request: Request) -> None:
        accept = (request.header(b"accept") or b"").decode("latin-1")
        body = service.metrics.render(accept)
        request.respond(Response(200, body, content_type(accept).encode(), (*_NO_STORE, (b"vary", b"accept"))))

    return answer


def _json(read: Any) -> Handler:
    def answer(request: Request) -> None:
        request.respond(Response(200, dump_json(read()), headers=_NO_STORE))

    return answer


def _health(service: Service) -> Handler:
    def answer(request: Request) -> None:
        ready = is_ready(service)
        request.respond(Response(200 if ready else 503, dump_json({"ready": ready}), headers=_NO_STORE))

    return answer


def _openapi(service: Service, others: Sequence[Route], own: list[Route]) -> Handler:
    written: list[bytes] = []  # once, when it is first asked for

    def answer(request: Request) -> None:
        if not written:
            from serve.openapi import describe

            config = service.config
            document = describe(
                [*others, *own],
                limits=config.limits,
                has_keys=bool(config.api_keys),
                has_admin=config.admin_token is not None,
            )
            written.append(dump_json(document))
        request.respond(Response(200, written[0], headers=((b"cache-control", b"no-cache"), _NO_STORE[1])))

    return answer
