"""What a loss may be that no example has met: resampling shows only the losses that are among the examples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.stats.confusion import CLASS_METRICS, losses_per_row
from edgesmith.tasks import TASKS, Example

__all__ = ["Unseen"]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """The rows on which a metric's hidden loss may be largest.

    If answers change for the worse in a share s of `num_rows` rows, none of them is seen with probability
    (1 − s)^num_rows ≤ e^(−s · num_rows). So however the changes are spread over the classes, those that are not seen
    stand, with the asked confidence, for fewer than −ln(1 − confidence) of these rows: the rule of three. What that
    many rows can cost the metric is the hidden loss.
    """

    what: str
    """Which rows, such as `class 'sport'`."""
    num_rows: int
    weight: float
    """The most that the metric loses for each unit of the share."""

    @classmethod
    def of(cls, evaluation: Evaluation, metric: str) -> Unseen:
        """Find the rows that decide a metric over classes.

        What a changed answer costs follows from the metric's derivative: a macro recall hangs on the class with the
        fewest rows, a macro precision on the one that is answered most rarely, since every wrong answer of that name
        counts there too. A metric that is not known here is taken to hang on the smallest class alone.
        """
        known = TASKS[evaluation.task].metrics.get(metric) if evaluation.task in TASKS else None
        if known is not None and known.ratio is not None:
            examples = [Example("", target=target) for target in evaluation.targets]
            return cls._of_ratio(known.ratio(evaluation.predictions, examples)[:, 1])
        rows = Counter(evaluation.targets)
        if metric not in CLASS_METRICS or evaluation.confusion is None:
            smallest = min(rows, key=lambda target: (rows[target], str(target)))
            return cls(what=f"class {_name(evaluation, smallest)}", num_rows=rows[smallest], weight=1.0)
        losses = losses_per_row(metric, evaluation.confusion)
        if metric == "mcc":
            largest = max(rows, key=lambda target: (rows[target], str(target)))
            outside = len(evaluation.targets) - rows[largest]
            what = f"all classes but {_name(evaluation, largest)}"
            return cls(what=what, num_rows=outside, weight=float(losses.max()) * outside)
        worst = max(rows, key=lambda target: (losses[int(target or 0)], -rows[target]))
        weight = float(losses.max()) * rows[worst]
        return cls(what=f"class {_name(evaluation, worst)}", num_rows=rows[worst], weight=weight)

    @classmethod
    def _of_ratio(cls, parts: NDArray[np.float64]) -> Unseen:
        """Rows that take part in a ratio by what is counted in each, such as entities or words.

        A row that has most of it weighs most: where all that was right in it turns wrong, the metric loses its part.
        """
        total = float(parts.sum())
        weight = len(parts) * float(parts.max()) / total if total else 1.0
        return cls(what="any kind", num_rows=len(parts), weight=weight)

    def bound(self, confidence: float) -> float:
        """Bound the loss that may be hidden, in the metric's unit, at most 1."""
        if self.num_rows == 0:
            return 1.0
        return min(1.0, -math.log(1 - confidence) * self.weight / self.num_rows)

    def required_rows(self, margin: float, confidence: float) -> int | None:
        """Fewest such rows that certify the margin if no loss is seen; None if no number does."""
        return math.ceil(-math.log(1 - confidence) * self.weight / margin) if margin > 0 else None


def _name(evaluation: Evaluation, target: float | str | None) -> str:
    return repr(evaluation.labels[int(target or 0)]) if evaluation.labels else str(target)
