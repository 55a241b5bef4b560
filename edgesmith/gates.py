"""What a release must reach: the `gates:` part of a recipe, or a file of its own.

Only the limits are here. `bench.gate` judges evidence against them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["AccuracyGate", "Gates", "LatencyGate", "SizeGate", "SpeedGate"]

Confidence = Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Limit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class AccuracyGate(_Limit):
    """The artifact may be worse than the baseline by at most `max_drop`, shown on the same examples."""

    metric: str | None = None
    """A metric of the task; the task's main one when left out."""
    max_drop: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    """The largest loss that may ship, in the metric's own unit: 0.01 is one point of accuracy."""
    confidence: Confidence = 0.95
    """Of the one-sided bound on the loss: a model that is worse by `max_drop` passes with 1 − confidence."""


class SizeGate(_Limit):
    """How large the artifact may be."""

    max_mb: Positive | None = None
    """Largest size in megabytes of 1,000,000 bytes."""
    min_reduction: Positive | None = None
    """How many times smaller than the baseline it must be: 3.9 is 3.9× smaller."""
    of: Literal["model", "artifact"] = "model"
    """What is counted: the files with graph and weights, or all that ships (tokenizer, labels, …)."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_mb is None and self.min_reduction is None:
            raise ValueError("a size gate needs max_mb or min_reduction")
        return self


class LatencyGate(_Limit):
    """A percentile of the time that requests take on this machine."""

    scenario: Literal["single"] = "single"
    """`single`: one client, whose next request starts when the last one is answered."""
    percentile: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] = 99
    """Which percentile, in per cent."""
    max_ms: Positive
    """The most that the percentile may be, in milliseconds."""
    confidence: Confidence = 0.99
    """Of the bound on the percentile."""


class SpeedGate(_Limit):
    """How many times less CPU time a request must take than with the baseline, both run in turns."""

    min_speedup: Positive
    """2.0 means at most half of the baseline's CPU time."""
    confidence: Confidence = 0.95
    """Of the one-sided bound on the ratio."""


class Gates(_Limit):
    """All gates of a release; those that are left out are not judged."""

    accuracy: AccuracyGate | None = None
    """How much worse than the baseline the answers may be."""
    size: SizeGate | None = None
    """How large the files may be."""
    latency: LatencyGate | None = None
    """How long a request may take."""
    speed: SpeedGate | None = None
    """How much faster than the baseline it must be."""

    @property
    def are_set(self) -> bool:
        """Whether there is anything to judge."""
        return any(limit is not None for limit in (self.accuracy, self.size, self.latency, self.speed))

    @property
    def absolute(self) -> Gates:
        """The gates that need no baseline: for an artifact that is its own."""
        size = self.size if self.size and self.size.max_mb is not None else None
        return Gates(size=size and size.model_copy(update={"min_reduction": None}), latency=self.latency)
