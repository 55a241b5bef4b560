"""Artifacts for other servers: a model repository of Triton, manifests of KServe."""

from __future__ import annotations

__all__: list[str] = []
