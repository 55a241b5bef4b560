"""Open Inference Protocol v2 over HTTP, as KServe's and Triton's clients speak it.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
docs/protocol.
"""

from __future__ import annotations

from serve.http.router import Route
from serve.service import Service

__all__ = ["routes"]


def routes(service: Service) -> list[Route]:
    """All routes of the protocol."""
    from serve.protocols.oip.oip_routes import make_routes

    return make_routes(service)
