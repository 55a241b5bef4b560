"""Routes of the Open Inference Protocol: health, metadata, statistics, repository, and no shared memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from edgesmith.errors import UnsupportedError
from serve.errors import MalformedError
from serve.http.message import Request, Response
from serve.http.router import AccessLevel, Route
from serve.json_text import dump_json, parse_json
from serve.protocols.oip import facts
from serve.protocols.oip.infer_route import PROTOCOL, InferRoute
from serve.service import Service

__all__ = ["make_routes"]

_MAX_CONTROL_BYTES = 1 << 20


def make_routes(service: Service) -> list[Route]:
    """All routes of the protocol, for HTTP."""
    handlers = _Handlers(service)
    found = [
        _route("GET", "/v2", handlers.server),
        _route("GET", "/v2/health/live", handlers.live, "open"),
        _route("GET", "/v2/health/ready", handlers.ready, "open"),
        _route("GET", "/v2/models/stats", handlers.statistics),
        _route("POST", "/v2/repository/index", handlers.index),
        _route("POST", "/v2/repository/models/{model}/load", handlers.load, "admin"),
        _route("POST", "/v2/repository/models/{model}/unload", handlers.unload, "admin"),
    ]
    infer = InferRoute(service)
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            _route("GET", model, handlers.metadata),
            _route("GET", f"{model}/ready", handlers.model_ready),
            _route("GET", f"{model}/config", handlers.config),
            _route("GET", f"{model}/stats", handlers.statistics),
            Route("POST", f"{model}/infer", infer, "user", PROTOCOL, error_body),
        ]
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        for region in ("", "/region/{region}"):
            found += [
                _route("GET", f"/v2/{kind}{region}/status", handlers.no_regions),
                _route("POST", f"/v2/{kind}{region}/unregister", handlers.no_regions),
            ]
        found.append(_route("POST", f"/v2/{kind}/region/{{region}}/register", handlers.refuse_region))
    return found


def error_body(status: int, reason: str, message: str) -> Response:
    """An error as the protocol has it."""
    del reason
    return Response(status, dump_json({"error": message}))


def _route(method: str, pattern: str, handler: Callable[[Request], Any], access: AccessLevel = "user") -> Route:
    return Route(method, pattern, handler, access, PROTOCOL, error_body, _MAX_CONTROL_BYTES)


def _answer(request: Request, value: Any, status: int = 200) -> None:
    request.respond(Response(status, dump_json(value)))


class _Handlers:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.about = dump_json(facts.server_metadata())

    def server(self, request: Request) -> None:
        request.respond(Response(200, self.about))

    def live(self, request: Request) -> None:
        _answer(request, {"live": True})

    def ready(self, request: Request) -> None:
        is_ready = facts.is_ready(self.service)
        _answer(request, {"ready": is_ready}, 200 if is_ready else 503)

    def model_ready(self, request: Request) -> None:
        name, version = _names(request)
        is_ready = facts.is_model_ready(self.service, name, version)
        _answer(request, {"name": name, "ready": is_ready}, 200 if is_ready else 503)

    def metadata(self, request: Request) -> None:
        _answer(request, facts.model_metadata(self.service, *_names(request)))

    def config(self, request: Request) -> None:
        _answer(request, facts.model_config(self.service, *_names(request)))

    def statistics(self, request: Request) -> None:
        name, version = request.params.get("model"), request.params.get("version")
        _answer(request, {"model_stats": facts.model_statistics(self.service, name, version)})

    def index(self, request: Request) -> None:
        is_ready_only = self._object(request).get("ready", False)
        if type(is_ready_only) is not bool:
            raise MalformedError("ready is true or false")
        is_ready_only |= parse_qs(request.query).get("ready") == ["true"]
        _answer(request, facts.list_index(self.service, is_ready_only=is_ready_only))

    async def load(self, request: Request) -> None:
        name = request.params["model"]
        facts.check_load_parameters(name, self._parameters(request))
        await self.service.repository.load(name)
        _answer(request, {"name": name, "load": True})

    async def unload(self, request: Request) -> None:
        name = request.params["model"]
        facts.check_load_parameters(name, ())
        self._parameters(request)  # `unload_dependents` has none here
        await self.service.repository.unload(name)
        _answer(request, {"name": name, "unload": True})

    def no_regions(self, request: Request) -> None:
        """There are never any: the list is empty, and taking them away is done at once."""
        _answer(request, [] if request.method == "GET" else {})

    def refuse_region(self, request: Request) -> Awaitable[None] | None:
        del request
        raise UnsupportedError(
            "this server maps no memory of its clients", mend="Send tensors with the request, best as binary."
        )

    def _object(self, request: Request) -> Mapping[str, Any]:
        if len(request.body) == 0:
            return {}
        value = parse_json(request.body, max_depth=self.service.limits.max_json_depth)
        if not isinstance(value, dict):
            raise MalformedError("the body is no JSON object")
        return value

    def _parameters(self, request: Request) -> Mapping[str, Any]:
        parameters = self._object(request).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise MalformedError("the parameters are no object")
        return parameters


def _names(request: Request) -> tuple[str, str | None]:
    return request.params["model"], request.params.get("version")
