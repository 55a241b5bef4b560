"""How many rows to run together, from how long runs of several sizes took."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SMALL", "best_size", "run_cost"]

SMALL = 8  # rows up to which time grows in a straight line
_MOST_SHARE = 64.0  # of a row: the most that a run is said to cost beside its rows
_NEAR_BEST = 0.98  # of the most rows a second: what a smaller batch must reach to be preferred


def best_size(rows_per_s: Mapping[int, float]) -> int:
    """The smallest batch within a little of the fastest, but never one slower than a single row.

    >>> best_size({1: 536, 2: 664, 4: 790, 8: 872, 16: 903, 32: 888})
    16
    >>> best_size({1: 100, 2: 90, 4: 80})
    1
    """
    enough = _NEAR_BEST * max(rows_per_s.values())
    return min(size for size, speed in rows_per_s.items() if speed >= enough and speed >= rows_per_s[1])


def run_cost(seconds: Mapping[int, float], row_elements: int) -> int:
    """What a run costs beside its rows, in elements: the straight line through two small runs, at no rows.

    >>> run_cost({1: 1.87e-3, 8: 9.17e-3}, 16)
    12
    """
    size = max(size for size in seconds if size <= SMALL)
    if size == 1:
        return 0
    row = (seconds[size] - seconds[1]) / (size - 1)
    share = seconds[1] / row - 1 if row > 0 else _MOST_SHARE
    return int(min(max(0.0, share), _MOST_SHARE) * row_elements)
