"""Run an engine until it runs at one speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.scenarios.inputs import Inputs

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["settle", "warm_up"]

_AGREEMENT = 1.05
_WINDOW_REQUESTS = 16


def settle(run_window: Callable[[], None], *, max_windows: int) -> tuple[bool, int, float]:
    """Run the same work in windows until three in a row took the same CPU time within 5 %.

    Returns:
        Whether they did, the number of windows run, and the seconds that the last one took.
    """
    taken: list[int] = []
    seconds = 0.0
    for _ in range(max_windows):
        start, start_cpu = time.perf_counter(), time.process_time_ns()
        run_window()
        taken.append(max(1, time.process_time_ns() - start_cpu))
        seconds = time.perf_counter() - start
        if len(taken) >= 3 and max(taken[-3:]) <= _AGREEMENT * min(taken[-3:]):
            return True, len(taken), seconds
    return False, len(taken), seconds


def warm_up(engine: Engine, inputs: Inputs, *, max_windows: int) -> tuple[bool, int, float]:
    """Run the same requests in windows until three in a row took the same CPU time within 5 %.

    Returns:
        Whether they did, the number of requests made, and the seconds that one takes.
    """
    window = inputs.arrays[:_WINDOW_REQUESTS]

    def run_window() -> None:
        for arrays in window:
            engine.run(arrays)

    is_settled, num_windows, seconds = settle(run_window, max_windows=max_windows)
    return is_settled, num_windows * len(window), seconds / len(window)
