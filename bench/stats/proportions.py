"""Two classifiers on the same examples: bounds on how much worse one is, and how many examples that takes.

Only the examples on which the two disagree carry information. Written throughout: `lost` examples are right with
the baseline and wrong with the artifact, `gained` ones the other way round, `drop` = (lost − gained) / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.binomial import binomial_cdf, clopper_pearson, log_factorials, normal_quantile

__all__ = [
    "PairedCounts",
    "bound_drop",
    "mcnemar_p_value",
    "noninferiority_p_value",
    "required_pairs",
    "score_interval",
    "smallest_margin",
]

_NUISANCE_RISK = 1e-4
_NUISANCE_STEPS = 25
_EXACT_UP_TO = 400
"""Disagreements from which on the score bound is used: the two then differ by less than 1 % of their width."""


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """How often two classifiers agreed and disagreed on n examples."""

    num_lost: int
    num_gained: int
    num_pairs: int

    @classmethod
    def of(cls, baseline_right: ArrayLike, artifact_right: ArrayLike) -> Self:
        """Count from two boolean arrays of shape [n]."""
        baseline = np.asarray(baseline_right, dtype=bool)
        artifact = np.asarray(artifact_right, dtype=bool)
        return cls(
            num_lost=int((baseline & ~artifact).sum()),
            num_gained=int((~baseline & artifact).sum()),
            num_pairs=len(baseline),
        )

    @property
    def drop(self) -> float:
        """Accuracy that was lost, in [-1, 1]."""
        return (self.num_lost - self.num_gained) / self.num_pairs

    @property
    def discordance(self) -> float:
        """Share of the examples on which the two differ in being right."""
        return (self.num_lost + self.num_gained) / self.num_pairs

    def swapped(self) -> Self:
        """Give the counts with baseline and artifact exchanged."""
        return type(self)(num_lost=self.num_gained, num_gained=self.num_lost, num_pairs=self.num_pairs)


def _score(lost: ArrayLike, gained: ArrayLike, n: float | NDArray[np.float64], drop: float) -> NDArray[np.float64]:
    """Tango's statistic: how many standard errors the observed drop lies above `drop`."""
    b, c = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    variance = n * (2 * _gained_rate(b, c, n, drop) + drop * (1 - drop))
    distance = b - c - n * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        z = distance / np.sqrt(np.maximum(variance, 0))
    return np.where(distance == 0, 0.0, z)


def _gained_rate(
    b: NDArray[np.float64], c: NDArray[np.float64], n: float | NDArray[np.float64], drop: float
) -> NDArray[np.float64]:
    """Most likely rate of gained examples if the true drop is `drop`: the root of Tango's quadratic."""
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0))
    return np.maximum((root - linear) / (4 * n), max(0.0, -drop))


def score_interval(counts: PairedCounts, confidence: float) -> tuple[float, float]:
    """Bound the drop with Tango's score interval; each bound holds with about `confidence` on its own.

    Args:
        counts: At least one pair.
        confidence: One-sided; 0.975 gives the usual two-sided 95 % interval.

    Returns:
        Lower and upper bound of the drop, in [-1, 1].

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908.
    """
    z = normal_quantile(confidence)

    def upper(of: PairedCounts) -> float:
        low, high = of.drop, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if float(_score(of.num_lost, of.num_gained, of.num_pairs, middle)) > -z:
                low = middle
            else:
                high = middle
        return high

    return -upper(counts.swapped()), upper(counts)


@lru_cache(maxsize=4096)
def noninferiority_p_value(counts: PairedCounts, margin: float) -> float:
    """Probability of evidence this good or better for `drop < margin` if the true drop were `margin`.

    Exact: the largest over all rates of disagreement that the data allow, so that a model which is worse by `margin`
    passes at level alpha with probability at most alpha, for every n.

    Args:
        counts: At least one pair.
        margin: In (-1, 1).

    Source: Hsueh, Liu & Chen, "Unconditional exact tests for equivalence or noninferiority for paired binary
    endpoints", Biometrics 57 (2001), with Tango's statistic; nuisance rate confined as in Berger & Boos, "P values
    maximized over a confidence set for the nuisance parameter", JASA 89 (1994).
    """
    n, discordant = counts.num_pairs, counts.num_lost + counts.num_gained
    low, high = clopper_pearson(discordant, n, 1 - _NUISANCE_RISK)
    floor = max(0.0, -margin)
    start, stop = max(floor, (low - margin) / 2), min((high - margin) / 2, (1 - margin) / 2)
    if stop <= start:
        gained_rates = np.array([start])
    else:  # denser towards the low end, where the p-value changes fastest
        gained_rates = start + (stop - start) * np.linspace(0, 1, _NUISANCE_STEPS) ** 2
    observed = float(_score(counts.num_lost, counts.num_gained, n, margin))
    worst = _largest_tail(n, gained_rates, margin, observed)
    return min(1.0, worst + _NUISANCE_RISK)


def _largest_tail(n: int, gained_rates: NDArray[np.float64], margin: float, observed: float) -> float:
    """Largest probability, over the rates, of a score at most `observed`, summed over all likely counts."""
    spans = [(_likely(n, rate + margin), _likely(n, rate)) for rate in gained_rates.tolist()]
    first_b, first_c = spans[0][0].start, spans[0][1].start  # rates ascend, and their counts with them
    b = np.arange(first_b, spans[-1][0].stop)[:, None]  # lost: [L, 1]
    c = np.arange(first_c, spans[-1][1].stop)[None, :]  # gained: [1, G]
    agree = np.maximum(n - b - c, 0)
    factorials = log_factorials(n)
    log_ways = factorials[n] - factorials[b] - factorials[c] - factorials[agree]
    log_ways[(n - b - c < 0) | (_score(b, c, n, margin) > observed + 1e-9)] = -np.inf
    worst = 0.0
    for gained_rate, (span_b, span_c) in zip(gained_rates.tolist(), spans, strict=True):
        lost_rate = gained_rate + margin
        rows = slice(span_b.start - first_b, span_b.stop - first_b)
        columns = slice(span_c.start - first_c, span_c.stop - first_c)
        log_mass = (
            log_ways[rows, columns]
            + _times_log(b[rows], lost_rate)
            + _times_log(c[:, columns], gained_rate)
            + _times_log(agree[rows, columns], max(0.0, 1 - lost_rate - gained_rate))
        )
        worst = max(worst, float(np.exp(log_mass).sum()))
    return worst


def _likely(n: int, rate: float) -> range:
    """Give the counts that a binomial variable takes but for a chance below 1e-9."""
    spread = 6.5 * math.sqrt(n * rate * (1 - rate)) + (25 if rate > 0 else 0)
    return range(max(0, math.floor(n * rate - spread)), min(n, math.ceil(n * rate + spread)) + 1)


def _times_log(count: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """Give count × ln(rate), with 0 × ln(0) = 0."""
    if rate <= 0:
        return np.where(count == 0, 0.0, -np.inf)
    return np.asarray(count * math.log(rate))


@lru_cache(maxsize=4096)
def bound_drop(counts: PairedCounts, confidence: float) -> tuple[float, float]:
    """Bound the drop; each bound holds with `confidence` on its own.

    Inverts the exact test, or gives the score interval where disagreements are so many that both agree.

    Args:
        counts: At least one pair.
        confidence: One-sided.

    Returns:
        Lower and upper bound of the drop, in [-1, 1].

    Source: see `noninferiority_p_value`.
    """
    if counts.num_lost + counts.num_gained > _EXACT_UP_TO:
        return score_interval(counts, confidence)
    return -_exact_upper(counts.swapped(), confidence), _exact_upper(counts, confidence)


def _exact_upper(counts: PairedCounts, confidence: float) -> float:
    """Smallest margin that the exact test certifies, found from the score bound outwards."""

    def certified(margin: float) -> bool:
        return noninferiority_p_value(counts, margin) <= 1 - confidence

    guess = score_interval(counts, confidence)[1]
    step = max((guess - counts.drop) / 16, 1e-6)
    low, high = guess, guess
    while not certified(high) and high < 1 - 1e-9:
        low, high, step = high, min(high + step, 1 - 1e-9), step * 2
    while low == high or certified(low):
        if low - step <= counts.drop:
            low = counts.drop
            break
        low, high, step = low - step, low, step * 2
    while high - low > max(1e-7, (high - counts.drop) / 2048):
        middle = (low + high) / 2
        if certified(middle):
            high = middle
        else:
            low = middle
    return high


def mcnemar_p_value(num_lost: int, num_gained: int) -> float:
    """Two-sided exact probability of a split this uneven if losing and gaining were equally likely.

    Source: McNemar, Psychometrika 12 (1947), with the binomial distribution instead of the chi-square.

    >>> round(mcnemar_p_value(8, 1), 6)
    0.039062
    """
    return min(1.0, 2 * binomial_cdf(min(num_lost, num_gained), num_lost + num_gained, 0.5))


def required_pairs(
    margin: float, discordance: float, *, confidence: float, drop: float = 0.0, power: float = 0.8
) -> int | None:
    """Examples needed to show that the drop is below (or, if it is above, above) `margin`.

    Args:
        margin: In (0, 1).
        discordance: Expected share of examples on which the two disagree.
        confidence: One-sided.
        drop: The true drop to plan for.
        power: Chance that the data then settle the question.

    Returns:
        The number, never below the one that zero disagreement needs; None if `drop` is the margin itself.

    Source: Nam, "Establishing equivalence of two treatments and sample size requirements in matched-pairs design",
    Biometrics 53 (1997), eq. for the restricted-likelihood test.
    """
    discordance = max(discordance, abs(drop))
    distance = abs(margin - drop)
    if distance < 1e-12:
        return None
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    restricted = _gained_rate(np.array(lost), np.array(gained), 1.0, margin)
    under_null = max(0.0, 2 * float(restricted) + margin * (1 - margin))
    under_truth = max(0.0, discordance - drop**2)
    spread = normal_quantile(confidence) * math.sqrt(under_null) + normal_quantile(power) * math.sqrt(under_truth)
    without_any = math.log(1 - confidence - _NUISANCE_RISK) / math.log1p(-margin) if margin > 0 else 0.0
    return max(math.ceil((spread / distance) ** 2), math.ceil(without_any))


@lru_cache(maxsize=4096)
def smallest_margin(num_pairs: int, discordance: float, *, confidence: float, power: float = 0.8) -> float:
    """Smallest margin that `num_pairs` examples could have certified for an artifact that is no worse.

    Args:
        num_pairs: At least 1.
        discordance: Share of examples on which the two disagree.
        confidence: One-sided.
        power: Chance of certifying it.

    Returns:
        The margin, in (0, 1]: the minimum detectable effect of these data.

    Source: `required_pairs`, solved for the margin.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        needed = required_pairs(middle, discordance, confidence=confidence, power=power) if middle < 1 else 0
        if needed is None or needed > num_pairs:
            low = middle
        else:
            high = middle
    return high
