#!/usr/bin/env python3
"""Measure how often a canary is stopped that should not be, and how soon one that should.

    python tools/simulate_canary.py [--trials 1000] [--requests 10000] [--share 0.1] [--seed 0]

Versions whose failure rates are known answer drawn requests, and somebody looks after every one of them. The joint
sequence is what the server uses; beside it the same evidence judged by an interval for each arm, by an empirical
Bernstein sequence for the inverse-probability-weighted difference, and by a z-test looked at daily or at every request.
With sticky keys the requests of one key are alike: the server counts the first of each, and a table shows what counting
all of them would do. Prints three Markdown tables.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.traffic import sequences

Floats = NDArray[np.float64]
_LAST = 10**9
_DAYS = 30
_CHUNK = 50
"""Trials at a time."""
_GOLDEN = (math.sqrt(5) - 1) / 2

Stop: TypeAlias = "Callable[[Run, float, float], NDArray[np.int64]]"
"""A run, a margin and alpha → the request after which each trial was stopped."""

_LOG_FACTORS = np.vectorize(math.lgamma, otypes=[float])


@dataclass(frozen=True, kw_only=True)
class Run:
    """Drawn requests of many trials, each array of shape [trials, requests].

    Attributes:
        is_canary: Who answered.
        harm: Whether it failed.
        share: Of the canary.
        is_counted: Whether it has a part in the comparison; None where all have.
    """

    is_canary: NDArray[np.bool_]
    harm: NDArray[np.bool_]
    share: float
    is_counted: NDArray[np.bool_] | None = None

    def counts(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Number and harms of the canary, then of the control, after every request."""
        ours, harm = self.is_canary, self.harm
        counted = np.ones_like(ours) if self.is_counted is None else self.is_counted
        return tuple(  # type: ignore[return-value]
            np.cumsum(flags & counted, axis=1, dtype=np.float64) for flags in (ours, ours & harm, ~ours, ~ours & harm)
        )


def draw(rng: np.random.Generator, trials: int, requests: int, share: float, control: Floats, canary: Floats) -> Run:
    """Draw requests; rates are given for every request, so that they may change in time."""
    is_canary = rng.random((trials, requests)) < share
    harm = rng.random((trials, requests)) < np.where(is_canary, canary, control)
    return Run(is_canary=is_canary, harm=harm, share=share)


def draw_keyed(
    rng: np.random.Generator, trials: int, requests: int, share: float, *, keys: int, factor: float, is_first: bool
) -> Run:
    """Draw requests of clients with sticky keys: a few send most of them, and each has a harm rate of its own.

    Args:
        rng: Draws.
        trials: How many.
        requests: Of each trial.
        share: Of the keys that the canary gets.
        keys: How many.
        factor: Of the canary's harm rates to the control's, which are 10 % in the mean.
        is_first: Whether the first request of each key alone is counted.
    """
    sizes = 1 / np.arange(1, keys + 1)
    rates = rng.beta(0.5, 4.5, (trials, keys))
    arms = rng.random((trials, keys)) < share
    chosen = rng.choice(keys, (trials, requests), p=sizes / sizes.sum())
    is_canary = np.take_along_axis(arms, chosen, axis=1)
    rate = np.take_along_axis(rates, chosen, axis=1) * np.where(is_canary, factor, 1.0)
    counted = np.zeros((trials, requests), bool)
    for flags, row in zip(counted, chosen, strict=True):
        flags[np.unique(row, return_index=True)[1]] = True
    harm = rng.random((trials, requests)) < rate
    return Run(is_canary=is_canary, harm=harm, share=share, is_counted=counted if is_first else None)


class Winnings:
    """`sequences.log_winnings` of one arm, for arrays; a table stands for the factorials."""

    def __init__(self, num: Floats, total: Floats) -> None:
        a, b = sequences._PRIOR
        steps = np.arange(int(num.max()) + 1, dtype=np.float64)
        of_total, of_rest, of_num = (_LOG_FACTORS(steps + offset) for offset in (a, b, a + b))
        begin = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        self.total, self.rest = total, num - total
        self.mixture = of_total[total.astype(int)] + of_rest[self.rest.astype(int)] - of_num[num.astype(int)] + begin

    def at(self, mean: Floats, chosen: NDArray[np.int64]) -> Floats:
        """Log winnings of the chosen entries against means in (0, 1)."""
        total, rest = self.total[chosen], self.rest[chosen]
        return self.mixture[chosen] - total * np.log(mean) - rest * np.log1p(-mean)


def joint_stop(run: Run, margin: float, alpha: float) -> NDArray[np.int64]:
    """First request after which the server's sequence proves a regression, of each trial."""
    shape = run.harm.shape
    num, total, other_num, other_total = (counts.ravel() for counts in run.counts())
    canary, control = Winnings(num, total), Winnings(other_num, other_total)
    limit = -math.log(alpha)
    pooled = (total + other_total + 0.5) / (num + other_num + 1.0)
    everything = np.arange(num.size)
    # What is won against one point of the null bounds what is won against all of it.
    at = np.clip(pooled - margin * num / (num + other_num), 1e-9, 1 - margin - 1e-9)
    is_open = control.at(at, everything) + canary.at(at + margin, everything) >= limit
    is_open &= total * other_num > (other_total + margin * other_num) * num
    chosen = np.flatnonzero(is_open)
    low, high = np.full(chosen.size, 1e-9), np.full(chosen.size, 1 - margin - 1e-9)
    for _ in range(60):
        a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        is_left = control.at(a, chosen) + canary.at(a + margin, chosen) < (
            control.at(b, chosen) + canary.at(b + margin, chosen)
        )
        low, high = np.where(is_left, low, a), np.where(is_left, b, high)
    middle = (low + high) / 2
    is_proven = np.zeros(num.size, bool)
    is_proven[chosen] = control.at(middle, chosen) + canary.at(middle + margin, chosen) >= limit
    return first(is_proven.reshape(shape))


def separate_stop(run: Run, margin: float, alpha: float) -> NDArray[np.int64]:
    """The same winnings, made an interval for each arm at half of alpha."""
    shape = run.harm.shape
    num, total, other_num, other_total = (counts.ravel() for counts in run.counts())
    canary, control, limit = Winnings(num, total), Winnings(other_num, other_total), -math.log(alpha / 2)
    everything = np.arange(num.size)

    def bound(arm: Winnings, begin: Floats, end: Floats) -> Floats:
        for _ in range(40):  # between the observed mean and the end of its range
            middle = (begin + end) / 2
            is_inside = arm.at(np.clip(middle, 1e-12, 1 - 1e-12), everything) < limit
            begin, end = np.where(is_inside, middle, begin), np.where(is_inside, end, middle)
        return begin

    mean, other = total / np.maximum(num, 1), other_total / np.maximum(other_num, 1)
    return first((bound(canary, mean, mean * 0) - bound(control, other, other * 0 + 1) > margin).reshape(shape))


def weighted_stop(run: Run, margin: float, alpha: float) -> NDArray[np.int64]:
    """An empirical Bernstein sequence for the inverse-probability-weighted difference, one-sided.

    Source: Waudby-Smith & Ramdas 2023, theorem 2 (predictable plug-in).
    """
    scale = 1 / run.share + 1 / (1 - run.share)
    x = np.where(run.is_canary, run.harm / run.share, -1.0 * run.harm / (1 - run.share))
    x = (x + 1 / (1 - run.share)) / scale  # in [0, 1]
    times = np.arange(1, x.shape[1] + 1)
    mean = (0.5 + np.cumsum(x, axis=1)) / (times + 1)
    spread = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (times + 1)
    before = np.concatenate([np.full((len(x), 1), 0.25), spread[:, :-1]], axis=1)
    guess = np.concatenate([np.full((len(x), 1), 0.5), mean[:, :-1]], axis=1)
    bet = np.minimum(np.sqrt(2 * math.log(1 / alpha) / (before * times * np.log1p(times))), 0.5)
    psi = (-np.log1p(-bet) - bet) / 4
    low = (np.cumsum(bet * x, axis=1) - math.log(1 / alpha) - np.cumsum(4 * (x - guess) ** 2 * psi, axis=1)) / (
        np.cumsum(bet, axis=1)
    )
    return first(low * scale - 1 / (1 - run.share) > margin)


def z_stop(run: Run, margin: float, alpha: float, *, every: int) -> NDArray[np.int64]:
    """A two-sided z-test for the difference, looked at again and again."""
    num, total, other_num, other_total = run.counts()
    one, other = total / np.maximum(num, 1), other_total / np.maximum(other_num, 1)
    pooled = (total + other_total) / (num + other_num)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(num, 1) + 1 / np.maximum(other_num, 1)))
    is_proven = np.abs(one - other - margin) > normal_quantile(1 - alpha / 2) * np.maximum(spread, 1e-12)
    looks = np.zeros(num.shape[1], bool)
    looks[every - 1 :: every] = True
    return first(is_proven & looks & (num >= 1) & (other_num >= 1))


def normal_quantile(probability: float) -> float:
    """Of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def first(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Position of the first true of each row, from 1; `_LAST` where there is none."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1) + 1, _LAST)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("trials", 1000), ("requests", 10000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--share", type=float, default=0.1, help="of the canary")
    parser.add_argument("--alpha", type=float, default=0.05)
    given = parser.parse_args()
    flat = np.ones(given.requests)
    outage = np.where((np.arange(given.requests) // 500) % 4 == 3, 0.2, 0.01)
    day = max(given.requests // _DAYS, 1)
    sequences_ = {
        "joint sequence (the server's)": joint_stop,
        "an interval for each arm": separate_stop,
        "empirical Bernstein, weighted": weighted_stop,
    }
    tests = {
        f"z-test on each of {_DAYS} days": partial(z_stop, every=day),
        "z-test at every request": partial(z_stop, every=1),
    }
    print(f"{given.trials} trials, {given.share:.0%} to the canary, alpha {given.alpha}, looked at after every request")
    print(f"\nStopped within {given.requests:,} requests though no worse, margin 0:\n")
    truths = {"both 1 %": flat * 0.01, "both 10 %": flat * 0.1, "outages of both": outage}
    cells = [Cell(title, rate, rate, 0.0) for title, rate in truths.items()]
    tabulate(cells, sequences_ | tests, given, lambda stops: f"{(stops < _LAST).mean():.1%}")
    tabulate_keyed(given)
    print("\nRequests until stopped, both arms together: median (90th percentile):\n")
    longer = np.ones(4 * given.requests)
    cells = [
        Cell(f"1 % → {rate:.0%}, margin {margin:.1%}", longer * 0.01, longer * rate, margin)
        for rate in (0.03, 0.10)
        for margin in (0.0, 0.005)
    ]
    given.trials = max(given.trials // 4, 1)
    tabulate(cells, sequences_, given, describe)


@dataclass(frozen=True, kw_only=False)
class Cell:
    """A truth and a margin."""

    title: str
    control: Floats
    canary: Floats
    margin: float


def describe(stops: NDArray[np.int64]) -> str:
    """Median and 90th percentile of when trials were stopped."""
    shown = [f"{value:,}" if value < _LAST else "later" for value in np.quantile(stops, [0.5, 0.9], method="higher")]
    return f"{shown[0]} ({shown[1]})"


def tabulate_keyed(given: argparse.Namespace) -> None:
    """Print a Markdown table of what is counted by the number of keys, with the server's sequence."""
    print(f"\nThe same with sticky keys, harm 10 %, of each key another; stopped in {given.requests:,} requests:\n")
    print("| keys | truth | all requests count | the first of each key |\n| --- | --- | --- | --- |")
    for keys in (200, 2000, 20000):
        for factor, margin, title in ((1.0, 0.0, "no worse, margin 0"), (1.0, 0.02, "no worse, margin 2.0%"),
                                      (3.0, 0.02, "three times, margin 2.0%")):  # fmt: skip
            shown = []
            for is_first in (False, True):
                rng, stopped = np.random.default_rng((given.seed, keys)), 0
                for _ in range(given.trials // _CHUNK or 1):
                    run = draw_keyed(
                        rng, _CHUNK, given.requests, given.share, keys=keys, factor=factor, is_first=is_first
                    )
                    stopped += int((joint_stop(run, margin, given.alpha) < _LAST).sum())
                shown.append(f"{stopped / (max(given.trials // _CHUNK, 1) * _CHUNK):.1%}")
            print(f"| {keys:,} | {title} | {' | '.join(shown)} |", flush=True)


def tabulate(
    cells: Sequence[Cell], methods: Mapping[str, Stop], given: argparse.Namespace, show: Callable[[Any], str]
) -> None:
    """Print a Markdown table of methods by cells."""
    stops: dict[str, list[NDArray[np.int64]]] = {}
    for index, cell in enumerate(cells):
        rng = np.random.default_rng((given.seed, index))
        parts = [_CHUNK] * (given.trials // _CHUNK) + [given.trials % _CHUNK or _CHUNK][: given.trials % _CHUNK != 0]
        for size in parts:
            run = draw(rng, size, len(cell.control), given.share, cell.control, cell.canary)
            for method, stop in methods.items():
                stops.setdefault(f"{method}/{index}", []).append(stop(run, cell.margin, given.alpha))
    print(f"| method | {' | '.join(cell.title for cell in cells)} |\n| --- {'| --- ' * len(cells)}|")
    for method in methods:
        texts = [show(np.concatenate(stops[f"{method}/{index}"])) for index in range(len(cells))]
        print(f"| {method} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
