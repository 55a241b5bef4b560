"""Latencies that depend on each other, for simulations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter


def queue_ms(rng: np.random.Generator, n: int, load: float) -> NDArray[np.float64]:
    """Times from arrival to answer in a queue with Poisson arrivals and one server of 1 ms (M/D/1), in balance."""
    num_before = int(20 / (1 - load) ** 2)
    steps = 1 - rng.exponential(1 / load, n + num_before)
    walk = np.concatenate(([0.0], np.cumsum(steps[1:])))
    return np.asarray((walk - np.minimum.accumulate(walk) + 1)[num_before:])


def moody_ms(rng: np.random.Generator, n: int, correlation: float) -> NDArray[np.float64]:
    """Lognormal times whose logarithms are an autoregression of standard deviation 1 around 0."""
    noise = lfilter([1], [1, -correlation], rng.normal(size=n + 500))[500:]
    return np.asarray(np.exp(noise * np.sqrt(1 - correlation**2)))
