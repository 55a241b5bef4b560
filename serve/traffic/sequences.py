"""Confidence sequences: intervals that hold at every moment at once, so that one may look as often as one likes.

Observations are in [0, 1], harm being large, and only their number and sum are kept. Against every mean `mu` that an
arm might have, one bets by a mixture of all bets, weighted by a Beta distribution. Had the arm that mean, the winnings
would be a martingale that begins at 1, so that they ever reach 1/alpha with a chance of alpha at most (Ville); means
against which they have are left out. Winnings against a pair of means, one of each of two arms, are multiplied, which
is again such a martingale, and an interval for the difference is the range of the pairs that are left. That is
narrower than two intervals at half of alpha each.

Source: Howard, Ramdas, McAuliffe & Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of
Statistics 2021 (the mixture for bounded observations); Waudby-Smith & Ramdas, Estimating means of bounded random
variables by betting, JRSS B 2023 (bets); Turner, Ly & Grünwald, Generic E-variables for exact sequential k-sample
tests, 2024 (products over arms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Sums", "difference_interval", "log_winnings", "mean_interval"]

_PRIOR = (0.5, 10.0)
"""Of the Beta mixture. Harm is rare; what the choice costs and gains is in tools/simulate_canary.py."""
_HALVINGS = 60


@dataclass(slots=True)
class Sums:
    """What is kept of an arm's observations.

    Attributes:
        num: How many.
        total: Their sum; each is in [0, 1].
    """

    num: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """Their mean; None without any."""
        return self.total / self.num if self.num else None


def _log_mixture(sums: Sums) -> float:
    a, b = _PRIOR
    rest = sums.num - sums.total
    return (
        math.lgamma(sums.total + a) - math.lgamma(a) + math.lgamma(rest + b) - math.lgamma(b)
        + math.lgamma(a + b) - math.lgamma(sums.num + a + b)
    )  # fmt: skip


def _log_likelihood(sums: Sums, mean: float) -> float:
    rest = sums.num - sums.total
    if (mean <= 0 and sums.total > 0) or (mean >= 1 and rest > 0):
        return -math.inf
    harm = sums.total * math.log(mean) if sums.total > 0 else 0.0
    return harm + (rest * math.log1p(-mean) if rest > 0 else 0.0)


def log_winnings(sums: Sums, mean: float) -> float:
    """Logarithm of what betting against this mean has made of 1.

    >>> round(log_winnings(Sums(100, 50.0), 0.1), 1)
    47.9
    """
    return _log_mixture(sums) - _log_likelihood(sums, mean)


def _raised(sums: Sums, pull: float) -> float:
    """The mean above the observed one where the log winnings grow by `pull` for each unit of it."""
    if sums.num == 0:
        return 1.0
    # pull · mu² + (num − pull) · mu − total = 0, written so that nothing cancels
    lead = sums.num - pull
    root = math.sqrt(lead * lead + 4 * pull * sums.total)
    mean = 2 * sums.total / (lead + root) if lead > 0 else (root - lead) / (2 * pull)
    return min(max(mean, sums.total / sums.num), 1.0)


def _lowered(sums: Sums, pull: float) -> float:
    """The mean below the observed one where the log winnings fall by `pull` for each unit of it."""
    return 1.0 - _raised(Sums(sums.num, sums.num - sums.total), pull)


def _upper_difference(high: Sums, low: Sums, limit: float) -> float:
    """The largest difference of the means of two arms that the winnings against the pair leave, below `limit`.

    At the largest difference the winnings rise with one mean as fast as they rise with the other's fall: one number,
    the pull, gives both means, and the winnings grow with it.
    """
    mixture = _log_mixture(high) + _log_mixture(low)

    def winnings(pull: float) -> float:
        return mixture - _log_likelihood(high, _raised(high, pull)) - _log_likelihood(low, _lowered(low, pull))

    begin, end = -20.0, math.log(4.0 * (high.num + low.num) + 4.0) + 20.0
    if winnings(math.exp(end)) < limit:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (begin + end) / 2
        begin, end = (middle, end) if winnings(math.exp(middle)) < limit else (begin, middle)
    pull = math.exp(end)
    return _raised(high, pull) - _lowered(low, pull)


def difference_interval(arm: Sums, control: Sums, alpha: float) -> tuple[float, float]:
    """A confidence sequence's interval for the arm's mean less the control's.

    Args:
        arm: Of the one arm.
        control: Of the other.
        alpha: How often the interval may miss the difference at any moment of all time; both ends together.

    Returns:
        Both ends, in [-1, 1].

    >>> [round(end, 3) for end in difference_interval(Sums(1000, 100.0), Sums(1000, 10.0), 0.05)]
    [0.054, 0.131]
    """
    limit = -math.log(alpha)
    return -_upper_difference(control, arm, limit), _upper_difference(arm, control, limit)


def mean_interval(sums: Sums, alpha: float) -> tuple[float, float]:
    """A confidence sequence's interval for one arm's mean, in [0, 1]."""
    limit, nothing = -math.log(alpha), Sums()
    # Without observations the other arm's mean is 1 or 0 for free: only this one's is bounded.
    return 1.0 - _upper_difference(nothing, sums, limit), _upper_difference(sums, nothing, limit)
