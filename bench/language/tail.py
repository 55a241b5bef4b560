"""The divergence beyond the likeliest tokens, from a sample of them: exact for near models, and no leak is missed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.stats.binomial import t_quantile

__all__ = ["MAX_RATIO", "Divergence", "mend_leaks"]

MAX_RATIO = 16.0
"""Ratio of two probabilities above which the control variate is cut."""
_ALARM = 1e-3
"""Probability to see a leak in a text without one: of all windows' own tests, and of that of all others together."""
_ROUNDING = 1e-6
"""Of logarithms kept in float32."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What one pass gives of KL(p ‖ q) for some rows, each of shape [B].

    With R the probability of the rest and w = q / p within the rest, of the tokens drawn from the stored rest p:
    `kld` takes for KL within the rest the mean of min(w, c) − 1 − ln w, and `lack` is R · mean of 1 − min(w, c).
    """

    kld: Floats
    lack: Floats
    rest: Floats
    """R, of the stored distribution."""


def mend_leaks(kld: NDArray[Any], lack: NDArray[Any], rest: NDArray[Any]) -> Floats:
    """Add the divergence of what the artifact expects beyond the likeliest tokens and no draw has met.

    The mean of −ln w over the draws is unbiased and has light tails, but is of first order: of no use for models that
    differ by 1e-6 nats. Less the control variate 1 − w, whose expectation is 0, it is of second order: but where the
    artifact holds a rare token for likely, that expectation is 0 only through draws of that token, which never come.
    Cut at w ≤ c the variate is bounded, its mean is the probability that leaked to tokens of a ratio above c, and the
    draws of different rows are independent: so whether it is more than 0 is tested, for each window by itself and for
    all other windows together. Where it is, it is given back. A leak within the noise of the draws is not seen: of all
    windows together that is about three standard errors of the first order, 1 % of the divergence of a Q4_K_M.

    Args:
        kld: Of `Divergence`, of shape [W, S].
        lack: Likewise.
        rest: Likewise.

    Returns:
        Divergences, of shape [W, S]; what is given back is spread in proportion to the rest.

    Source: control variates, Owen, Monte Carlo theory, methods and examples (2013), 8.9.
    """
    found = np.array(kld, dtype=np.float64)
    is_told = np.array([_is_leak(one, _ALARM / len(lack)) for one in lack])
    for window in np.flatnonzero(is_told):
        found[window] += _spread(lack[window], rest[window])
    others = ~is_told
    if others.any() and _is_leak(lack[others], _ALARM):
        found[others] += _spread(lack[others], rest[others])
    return found


def _is_leak(lack: NDArray[Any], alarm: float) -> bool:
    values = lack.astype(np.float64).reshape(-1)
    if values.size < 2:
        return False
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return bool(values.mean() > max(t_quantile(1 - alarm, values.size - 1) * error, _ROUNDING))


def _spread(lack: NDArray[Any], rest: NDArray[Any]) -> Floats:
    shares = rest.astype(np.float64)
    return np.asarray(shares * (lack.sum(dtype=np.float64) / shares.sum()))
