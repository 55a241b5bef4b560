"""Open-loop load tests of servers, by Locust: arrivals that no slow answer can hold up, failures counted as slow.

What runs a load is imported when it is asked for: a gate that only reads a result need not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.load.plan import LoadPlan
from bench.load.result import Failure, LoadResult
from bench.load.schedule import Segment, Shape, constant, ramp, soak, spike, steps

if TYPE_CHECKING:
    from bench.load.run import run_load, run_worker
    from bench.load.search import RateSearch, SearchOptions, find_rate

__all__ = [
    "Failure",
    "LoadPlan",
    "LoadResult",
    "RateSearch",
    "SearchOptions",
    "Segment",
    "Shape",
    "constant",
    "find_rate",
    "ramp",
    "run_load",
    "run_worker",
    "soak",
    "spike",
    "steps",
]

_LATER = {
    "run_load": "bench.load.run",
    "run_worker": "bench.load.run",
    "RateSearch": "bench.load.search",
    "SearchOptions": "bench.load.search",
    "find_rate": "bench.load.search",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
