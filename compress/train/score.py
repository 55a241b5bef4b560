"""How good a model is, with how much of that is chance: what decides which weights are kept."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Score"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure on held-out rows.

    Few rows give a coarse figure: one row of sixty is more than a point of accuracy. Weights that were better by one
    row at an early evaluation would be kept before better ones. Within the noise, what is finer decides.

    Source: the one-standard-error rule; Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3.
    """

    metric: float
    noise: float = 0.0
    """Standard error of the metric on so many rows; 0 where every difference counts."""
    distance: float = 0.0
    """What decides between equals: lower is better."""

    def is_better(self, kept: Score, top: float, *, higher_is_better: bool) -> bool:
        """Whether to keep these weights instead.

        Args:
            kept: Of the weights that are kept now.
            top: The best metric of all evaluations so far.
            higher_is_better: Of the metric.
        """
        sign = 1.0 if higher_is_better else -1.0
        if sign * (self.metric - top) > self.noise:
            return True
        is_equal = sign * (top - self.metric) <= self.noise
        if not is_equal:
            return False
        if sign * (top - kept.metric) > self.noise:  # a new top has left the kept ones behind
            return True
        if self.noise == 0.0 and self.metric != kept.metric:
            return sign * (self.metric - kept.metric) > 0
        return self.distance < kept.distance
