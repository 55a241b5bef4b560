"""The OpenAPI 3.1 document of the routes that are really there."""

from __future__ import annotations

from serve.openapi.document import describe, missing_operations

__all__ = ["describe", "missing_operations"]
