"""How far an artifact may be from its reference, by the precision of its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesmith.errors import UsageError

__all__ = ["TOLERANCES", "Tolerance", "tolerance_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits; None where a figure is reported but not judged.

    Attributes:
        max_abs_scaled: Largest difference of any output element, in units of the largest reference output
            (at least 1).
        relative_error: Length of the difference over the length of the reference, over all vectors.
        min_top1_agreement_decided: Share of rows whose best label is the reference's, or one to which the reference
            gives at most `tie` less probability (logits).
        tie: Labels whose probabilities differ by less are undecided.
        max_mean_kl: Mean divergence of the label probabilities, in nats (logits).
        max_kl: Largest divergence of one row, in nats (logits).
        min_cosine: Smallest cosine of one row (embeddings).
        min_mean_cosine: Mean cosine (embeddings).
    """

    max_abs_scaled: float | None = None
    relative_error: float | None = None
    min_top1_agreement_decided: float | None = None
    tie: float = 0.0
    max_mean_kl: float | None = None
    max_kl: float | None = None
    min_cosine: float | None = None
    min_mean_cosine: float | None = None


TOLERANCES: Mapping[str, Tolerance] = {
    # The same arithmetic in another order: a few units in the last place for each of some dozen layers.
    "fp32": Tolerance(
        max_abs_scaled=1e-4,
        relative_error=3e-5,
        min_top1_agreement_decided=1.0,
        tie=1e-4,
        max_mean_kl=1e-7,
        max_kl=1e-6,
        min_cosine=0.999999,
        min_mean_cosine=0.999999,
    ),
    # 11 bits of mantissa: about 1e-3 a layer, adding up like a random walk.
    "fp16": Tolerance(
        max_abs_scaled=2e-2,
        relative_error=1e-2,
        min_top1_agreement_decided=0.99,
        tie=0.01,
        max_mean_kl=1e-3,
        max_kl=1e-2,
        min_cosine=0.999,
        min_mean_cosine=0.9999,
    ),
    # 8 bits: MiniLM keeps a cosine of 0.991 in its worst row with dynamic ranges and of 0.999 with ranges from
    # real rows; a classifier made of it keeps a divergence of 0.001 on average and of 0.03 in its worst row.
    # Min-max ranges over outliers give 0.93, a layer that should have stayed in float 0.3: both are refused.
    "int8": Tolerance(
        relative_error=0.25,
        min_top1_agreement_decided=0.97,
        tie=0.05,
        max_mean_kl=0.01,
        max_kl=0.3,
        min_cosine=0.98,
        min_mean_cosine=0.99,
    ),
}
"""Limits by precision, as a manifest names it."""


def tolerance_for(precision: str) -> Tolerance:
    """The limits of a precision.

    Raises:
        UsageError: There are none for it.
    """
    if precision not in TOLERANCES:
        raise UsageError(
            f"there are no verification limits for the precision {precision!r}",
            mend=f"Use one of {', '.join(TOLERANCES)}, or give limits of your own.",
        )
    return TOLERANCES[precision]
