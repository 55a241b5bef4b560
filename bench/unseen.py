"""What a loss may be that no example has met: resampling shows only the losses that are among the examples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from bench.accuracy import Evaluation

__all__ = ["Unseen"]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """The rows on which a metric's hidden loss may be largest.

    If answers change for the worse in a share s of `num_rows` rows, none of them is seen with probability
    (1 − s)^num_rows ≤ e^(−s · num_rows). So whatever is not seen stays, with the asked confidence, below
    −ln(1 − confidence) / num_rows: the rule of three, however the changes are spread over the classes.
    """

    what: str
    """Which rows, such as `class 'sport'`."""
    num_rows: int
    weight: float
    """The most that the metric loses for each unit of the share."""

    @classmethod
    def of(cls, evaluation: Evaluation, metric: str) -> Unseen:
        """Find the rows that decide a metric over classes.

        A macro mean over L classes loses at most 1 / L of the share of the smallest class: to recall directly, and
        to precision and F1 no more. Matthews' correlation loses about the changed share of the rows outside the
        largest class; any other metric is taken to hang on the smallest class alone.
        """
        rows = Counter(evaluation.targets)
        ordered = sorted(rows, key=lambda target: (rows[target], str(target)))
        names = [
            repr(evaluation.labels[int(target or 0)]) if evaluation.labels else str(target)
            for target in (ordered[0], ordered[-1])
        ]
        if metric == "mcc":
            outside = len(evaluation.targets) - rows[ordered[-1]]
            return cls(what=f"all classes but {names[1]}", num_rows=outside, weight=1.0)
        weight = 1 / len(rows) if metric.endswith("_macro") else 1.0
        return cls(what=f"class {names[0]}", num_rows=rows[ordered[0]], weight=weight)

    def bound(self, confidence: float) -> float:
        """Bound the loss that may be hidden, in the metric's unit, at most 1."""
        if self.num_rows == 0:
            return 1.0
        return min(1.0, -math.log(1 - confidence) * self.weight / self.num_rows)

    def required_rows(self, margin: float, confidence: float) -> int | None:
        """Fewest such rows that certify the margin if no loss is seen; None if no number does."""
        return math.ceil(-math.log(1 - confidence) * self.weight / margin) if margin > 0 else None
