"""Routes of the server itself: the page, its figures, metrics, the description of the interface, health."""

from __future__ import annotations

__all__: list[str] = []
