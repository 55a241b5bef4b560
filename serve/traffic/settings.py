"""How versions of a model are compared while they answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgesmith.errors import UsageError

__all__ = ["TrafficSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """Margins, levels and limits of traffic between versions."""

    alpha: float = 0.05
    """How often a version that is no worse than the margins may be stopped, over all outcomes and for ever."""
    failure_margin: float = 0.005
    """How many more requests may fail, as a share, before it is a regression."""
    slow_margin: float = 0.02
    """How many more requests may be slower than `slo_ms`, as a share."""
    feedback_margin: float = 0.02
    """How much worse the mean feedback may be, on its scale from 0 to 1."""
    slo_ms: float | None = None
    """An answer that takes longer is a slow one; None does not watch how long answers take."""
    stops: bool = True
    """Whether a proven regression takes the version's share away."""
    salt: str = "edgesmith"
    """Of the hash that gives a key its version: equal salts agree on it, on every server."""
    shadow_share: float = 1.0
    """Of the requests that a shadow gets a copy of."""
    max_shadow_pending: int = 64
    """Copies that may be under way; further requests are not copied."""
    max_recent: int = 16384
    """Requests that feedback can still be given on."""
    max_keys: int = 65536
    """Keys that are remembered to have been counted. Of a model with more, a key may count again, after as many others;
    with so many it matters no more how one of them is."""
    max_record_bytes: int = 256 << 20
    """A recording of this size is renamed to `….1`, over an older one, and begun again."""

    def __post_init__(self) -> None:
        for name in ("failure_margin", "slow_margin", "feedback_margin", "shadow_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be from 0 to 1")
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"alpha is {self.alpha}; it must be above 0 and below 0.5")
        if self.slo_ms is not None and not (math.isfinite(self.slo_ms) and self.slo_ms > 0):
            raise UsageError(f"slo_ms is {self.slo_ms}; it must be above 0")
        for name in ("max_shadow_pending", "max_recent", "max_keys", "max_record_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
