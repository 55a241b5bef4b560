"""Feedback on answers, and shares changed while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.config import Limits
from serve.errors import MalformedError, ModelNotFoundError
from serve.http.message import Request, Response
from serve.http.router import Route
from serve.json_text import dump_json, parse_json
from serve.traffic.traffic import Traffic

__all__ = ["routes"]

_MAX_BODY_BYTES = 64 << 10
_MEND_FEEDBACK = 'Send {"id": "…", "correct": true}, or {"id": "…", "score": 0.8} with a score from 0 to 1.'


def routes(traffic: Traffic, limits: Limits) -> list[Route]:
    """The routes of traffic.

    `POST /v2/models/{model}/feedback` takes `{"id": …, "correct": true}` or `{"id": …, "score": 0.8}`;
    `GET /v2/models/{model}/traffic` shows shares and comparisons; `POST` to it, by an admin, takes
    `{"weights": {"1": 95, "2": 5}}`.
    """

    def feedback(request: Request) -> None:
        name, body = request.params["model"], _object(request, limits)
        request_id, score = _judgement(body)
        version = traffic.feedback(name, request_id, score)
        if version is None:
            raise ModelNotFoundError(
                f"no request {request_id[:80]!r} to {name} waits for feedback",
                mend="Send it once, soon after the answer, with the id that the answer's x-request-id has.",
            )
        request.respond(Response(body=dump_json({"id": request_id, "version": version})))

    def show(request: Request) -> None:
        request.respond(Response(body=dump_json(_state(traffic, request.params["model"]))))

    def change(request: Request) -> None:
        name, weights = request.params["model"], _object(request, limits).get("weights")
        if not isinstance(weights, dict):
            raise MalformedError("the body has no weights", mend='Send {"weights": {"1": 95, "2": 5}}.')
        _state(traffic, name)  # a model without any has none to change
        traffic.set_split(name, weights)
        request.respond(Response(body=dump_json(_state(traffic, name))))

    pattern = "/v2/models/{model}"
    return [
        Route("POST", f"{pattern}/feedback", feedback, protocol="traffic", max_body_bytes=_MAX_BODY_BYTES),
        Route("GET", f"{pattern}/traffic", show, protocol="traffic"),
        Route("POST", f"{pattern}/traffic", change, "admin", protocol="traffic", max_body_bytes=_MAX_BODY_BYTES),
    ]


def _object(request: Request, limits: Limits) -> Mapping[str, Any]:
    body = parse_json(request.body, max_depth=limits.max_json_depth)
    if not isinstance(body, dict):
        raise MalformedError(f"the body is a {type(body).__name__}, not an object")
    return body


def _judgement(body: Mapping[str, Any]) -> tuple[str, float]:
    """Id and score of a feedback."""
    request_id, correct, score = body.get("id"), body.get("correct"), body.get("score")
    if not isinstance(request_id, str) or not request_id:
        raise MalformedError("the feedback has no id", mend=_MEND_FEEDBACK)
    if unknown := sorted(body.keys() - {"id", "correct", "score"}):
        raise MalformedError(f"the feedback has an unknown field {unknown[0]!r}", mend=_MEND_FEEDBACK)
    if isinstance(correct, bool) and score is None:
        return request_id, float(correct)
    # A NaN is in no range.
    if correct is None and isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
        return request_id, float(score)
    raise MalformedError("the feedback has no judgement, or two, or one out of range", mend=_MEND_FEEDBACK)


def _state(traffic: Traffic, name: str) -> dict[str, Any]:
    arms, shadow = traffic.models.get(name), traffic.shadows.get(name)
    versions = list(arms.arms) if arms is not None else []
    versions += [shadow.version] if shadow is not None else []
    if not versions:
        raise ModelNotFoundError(f"{name} shares no traffic among versions")
    return {"model": name, "versions": {version: traffic.report(name, version) for version in versions}}
