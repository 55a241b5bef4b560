"""OpenAI's HTTP interface: models, completions, chat completions and embeddings, for its clients unmodified."""

from __future__ import annotations

from serve.http.router import Route
from serve.protocols.openai.chat import chat
from serve.protocols.openai.completions import complete
from serve.protocols.openai.embeddings import embed
from serve.protocols.openai.handling import make_route
from serve.protocols.openai.listing import list_models, show_model
from serve.service import Service

__all__ = ["routes"]

_MAX_TEXTS_BYTES = 8 << 20


def routes(service: Service) -> list[Route]:
    """The routes below `/v1`."""
    return [
        make_route(service, "GET", "/v1/models", list_models),
        make_route(service, "GET", "/v1/models/{model}", show_model),
        make_route(service, "POST", "/v1/completions", complete),
        make_route(service, "POST", "/v1/chat/completions", chat),
        make_route(service, "POST", "/v1/embeddings", embed, max_body_bytes=_MAX_TEXTS_BYTES),
    ]
