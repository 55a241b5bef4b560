"""Intervals for figures over a text's tokens. Those of one window share its words: windows are what is independent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.stats.binomial import clopper_pearson, t_quantile
from bench.stats.resampling import Bounds, bootstrap_mean

__all__ = ["MIN_BOUNDED", "Estimate", "bound_mean", "clustered_share", "token_error"]

Floats = NDArray[np.float64]

_LEAST_EFFECT = 2.0
"""The least that tokens are discounted by where their own clustering is not seen."""
MIN_BOUNDED = 8
"""Fewer windows bound nothing."""
_NUM_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure over the scored tokens of a text."""

    value: float
    error: float | None = None
    """What llama.cpp's perplexity tool prints after ±: a standard error for tokens that were independent."""
    lower: float | None = None
    """Bounds for other windows of such text; None where the windows are too few to say."""
    upper: float | None = None
    confidence: float = 0.975
    """Of each bound on its own."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"value": self.value, "error": self.error, "lower": self.lower, "upper": self.upper}


def token_error(values: NDArray[np.floating[Any]]) -> float:
    """Standard error of a mean for independent tokens.

    Source: llama.cpp, tools/perplexity/perplexity.cpp, `mean_and_uncertainty`: √((mean of squares − squared mean) /
    (n − 1)), and 0 for at most 10 tokens.
    """
    n = values.size
    return math.sqrt(float(values.var(dtype=np.float64)) / (n - 1)) if n > 10 else 0.0


def bound_mean(values: NDArray[np.floating[Any]], *, confidence: float) -> Bounds | None:
    """Bound a mean over tokens, each window counting as one observation.

    Student's t over the windows' means, and a bootstrap-t that follows their skewness: the wider of the two on each
    side, both widened where neighbouring windows are alike.

    Args:
        values: One a token, of shape [num_windows, num_scored].
        confidence: Of each bound on its own.

    Returns:
        The mean with its bounds, or None with fewer than `MIN_BOUNDED` windows.

    Source: Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015), on
    skewed means; dependence as of an autoregression of order one: Law & Kelton, Simulation Modeling and Analysis.
    """
    means = values.mean(axis=1, dtype=np.float64)
    n, mean = len(means), float(means.mean())
    if n < MIN_BOUNDED:
        return None
    error = float(means.std(ddof=1)) / math.sqrt(n)
    reach = t_quantile(confidence, n - 1) * error
    drawn = bootstrap_mean(means, confidence=confidence, num_resamples=_NUM_DRAWS)
    width = math.sqrt(_inflation(means))
    return Bounds(
        estimate=mean,
        lower=mean - width * max(reach, mean - drawn.lower),
        upper=mean + width * max(reach, drawn.upper - mean),
        confidence=confidence,
    )


def _inflation(means: Floats) -> float:
    """How many times the variance of their mean is that of independent ones, from how alike neighbours are."""
    n = len(means)
    centred = means - means.mean()
    spread = float(centred @ centred)
    if spread <= 0:
        return 1.0
    alike = float(centred[1:] @ centred[:-1]) / spread + 1 / n  # the estimate's own bias is −1/n
    bounded = min(max(alike, 0.0), 0.9)
    return (1 + bounded) / (1 - bounded)


def clustered_share(
    happened: NDArray[np.bool_], *, confidence: float, like: NDArray[np.floating[Any]] | None = None
) -> Bounds | None:
    """Bound a share of tokens, with the exact binomial bounds of as many independent ones as they are worth.

    What they are worth is found from how much the windows differ. Where none happened, or all, that says nothing:
    then it is found from `like`, and never taken for better than half of them. Without that, windows are counted, for
    another one may have it at every token.

    Args:
        happened: One a token, of shape [num_windows, num_scored].
        confidence: Of each bound on its own.
        like: A figure of each token that clusters as what happens does, such as its divergence; of the same shape.

    Returns:
        The share with its bounds, or None with fewer than `MIN_BOUNDED` windows.

    Source: Korn & Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", Survey Methodology 24 (1998).
    """
    num_windows, size = happened.shape
    if num_windows < MIN_BOUNDED:
        return None
    shares = happened.mean(axis=1)
    share, n = float(shares.mean()), num_windows * size
    correction = (t_quantile(confidence, num_windows - 1) / t_quantile(confidence, n - 1)) ** 2
    if 0 < share < 1:
        worth = math.floor(n / max(1.0, _design_effect(happened) * correction))
    elif like is not None and float(like.var()) > 0:
        worth = max(num_windows, math.floor(n / max(_LEAST_EFFECT, _design_effect(like) * correction)))
    else:
        worth = num_windows
    worth = max(1, worth)
    lower, _ = clopper_pearson(math.floor(share * worth), worth, 2 * confidence - 1)
    _, upper = clopper_pearson(math.ceil(share * worth), worth, 2 * confidence - 1)
    return Bounds(estimate=share, lower=min(lower, share), upper=max(upper, share), confidence=confidence)


def _design_effect(values: NDArray[Any]) -> float:
    """How many times larger the variance of the mean is than if the tokens of a window were independent."""
    means = values.mean(axis=1, dtype=np.float64)
    independent = float(values.var(dtype=np.float64)) / values.shape[1]
    effect: float = means.var(ddof=1) * _inflation(means) / independent
    return effect
