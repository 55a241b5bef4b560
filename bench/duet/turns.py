"""Time engines in turns, in several sessions: in each of them every engine is opened afresh."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.scenarios.inputs import Arrays, Inputs
from bench.scenarios.timing import without_collector
from bench.scenarios.warm_up import warm_up
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Advance, Progress

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["DuetOptions", "OpenEngine", "Plan", "Turns", "plan_sessions", "take_turns"]

OpenEngine = Callable[[], "Engine"]

_WARM_REQUESTS = 8
_TURN_SECONDS = 0.01
_MAX_TURN_REQUESTS = 256
_LONG_REQUEST_SECONDS = 0.05
_SPREAD_RATIO = 4.0
"""Spread of one pair's log ratio over that of the sessions; 2 to 6 was seen on shared machines."""
_MIN_PAIRS, _MAX_PAIRS = 4, 96


@dataclass(frozen=True, kw_only=True)
class DuetOptions:
    """How long to compare. What is left open follows from the time that opening and a request take."""

    seconds: float = 20.0
    """Wall time aimed at, opening and warm-up included: no session is begun that would usually end later."""
    min_sessions: int = 6
    max_sessions: int = 400
    session_pairs: int | None = None
    """Pairs of turns in a session."""
    turn_requests: int | None = None
    """Requests of a turn, one by default for a model that takes 10 ms; all engines get the same ones."""
    max_warm_up_windows: int = 40

    def __post_init__(self) -> None:
        if not math.isfinite(self.seconds) or self.seconds <= 0:
            raise UsageError(f"a comparison of {self.seconds:g} seconds", mend="Give a positive number of seconds.")
        if not 1 <= self.min_sessions <= self.max_sessions:
            raise UsageError(f"{self.min_sessions} to {self.max_sessions} sessions: the least must not be the most")
        for name in ("session_pairs", "turn_requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each session of a comparison times."""

    session_pairs: int
    turn_requests: int
    refill_requests: int
    """Untimed requests at the start of a turn, which refill the caches that another engine took."""
    session_seconds: float
    """Wall time of a session."""
    seconds: float
    """Wall time of the fewest sessions that are wanted, with what has gone by."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Times of every engine's turns; each of the engines had the same requests."""

    cpu_ns: NDArray[np.int64]
    """CPU time of this process, all threads, of shape [engine, pair]."""
    wall_ns: NDArray[np.int64]
    session: NDArray[np.int64]
    """In which session a pair was timed, from 0 on, of shape [pair]."""
    turn_requests: int
    is_settled: bool
    """Whether every engine ran at one speed before the first turn."""


def take_turns(
    openers: Sequence[OpenEngine], inputs: Inputs, options: DuetOptions, progress: Progress = SILENT
) -> Turns:
    """Time engines turn by turn, and open all of them afresh several times.

    Two sessions of the very same file differ for as long as they are open (0.3 to 2.3 % of the CPU time was seen):
    where their memory lies is chance. Only opening them again averages that. The order of the turns and the order
    of opening go through all permutations, so that no engine profits from its place.

    Args:
        openers: Each opens one engine, all with the same number of threads.
        inputs: The requests, used in turn.
        options: How long.
        progress: Shows the pairs done.

    Raises:
        UsageError: There are no inputs.

    Source: Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013 (repeat the highest level that
    varies); Bulej et al., "Duet benchmarking", ICPE 2020 (turns).
    """
    if not inputs.arrays:
        raise UsageError("no inputs to time", mend="Give a data file with rows.")
    orders = _orders(len(openers))
    begin = time.perf_counter()
    with progress.bar("compare speed", total=round(options.seconds, 1)) as add:
        advance = _in_tenths(add)
        plan, is_settled, first = _first_session(openers, inputs, options, progress)
        times = [first]
        done = time.perf_counter() - begin
        advance(done)
        session_seconds = [plan.session_seconds]
        while len(times) < options.max_sessions:
            if len(times) >= options.min_sessions and done + np.mean(session_seconds) > options.seconds:
                break
            with _opened(openers, orders[len(times) % len(orders)]) as engines:
                for engine in engines:
                    for arrays in inputs.arrays[:_WARM_REQUESTS]:
                        engine.run(arrays)
                times.append(_time_session(engines, inputs.arrays, plan, len(times)))
            session_seconds.append(time.perf_counter() - begin - done)
            done += session_seconds[-1]
            advance(session_seconds[-1])
    by_engine = np.moveaxis(np.concatenate(times), 0, 1)  # [engine, pair, (CPU, wall)]
    return Turns(
        cpu_ns=by_engine[..., 0],
        wall_ns=by_engine[..., 1],
        session=np.repeat(np.arange(len(times)), plan.session_pairs),
        turn_requests=plan.turn_requests,
        is_settled=is_settled,
    )


def _in_tenths(add: Advance) -> Advance:
    """Report whole tenths of seconds only; what is left over is reported with what comes next."""
    done, reported = 0.0, 0

    def advance(seconds: float) -> None:
        nonlocal done, reported
        done += seconds
        tenths = math.floor(10 * done + 1e-6)
        if tenths > reported:
            add((tenths - reported) / 10)
            reported = tenths

    return advance


def _first_session(
    openers: Sequence[OpenEngine], inputs: Inputs, options: DuetOptions, progress: Progress
) -> tuple[Plan, bool, NDArray[np.int64]]:
    """Warm the engines up until they run at one speed, see how long everything takes, and time them."""
    begin = time.perf_counter()
    opened: list[float] = []

    def timed(opener: OpenEngine) -> Engine:
        start = time.perf_counter()
        engine = opener()
        opened.append(time.perf_counter() - start)
        return engine

    with _opened([partial(timed, opener) for opener in openers], _orders(len(openers))[0]) as engines:
        open_seconds = float(np.median(opened)) * len(opened)  # the very first one also imports the library
        warmed = [warm_up(engine, inputs, max_windows=options.max_warm_up_windows) for engine in engines]
        spent = time.perf_counter() - begin
        plan = plan_sessions([seconds for _, _, seconds in warmed], open_seconds, spent, options)
        if plan.seconds > 1.5 * options.seconds:
            progress.note(
                f"comparing takes about {plan.seconds:.3g} s, not {options.seconds:g} s: fewer turns say too little"
            )
        return plan, all(settled for settled, _, _ in warmed), _time_session(engines, inputs.arrays, plan, 0)


def plan_sessions(
    request_seconds: Sequence[float], open_seconds: float, spent_seconds: float, options: DuetOptions
) -> Plan:
    """Divide the time between sessions and the pairs of turns in them.

    Args:
        request_seconds: Wall time of a request of each engine.
        open_seconds: Wall time of opening all of them.
        spent_seconds: Wall time that has gone by already.
        options: What was asked for.

    Source: Kalibera & Jones (2013), section 6: the best number of repetitions of a level is the square root of the
    ratio of costs times the ratio of variances.
    """
    per_request = sum(request_seconds)
    slowest = max(max(request_seconds), 1e-9)
    turn_requests = options.turn_requests or min(_MAX_TURN_REQUESTS, max(1, round(_TURN_SECONDS / slowest)))
    refill_requests = 1 if slowest < _LONG_REQUEST_SECONDS else 0
    pair_seconds = max(per_request * (turn_requests + refill_requests), 1e-9)
    fresh_seconds = open_seconds + per_request * _WARM_REQUESTS
    left = max(0.0, options.seconds - spent_seconds)
    best = round(_SPREAD_RATIO * math.sqrt(fresh_seconds / pair_seconds))
    affordable = int((left / options.min_sessions - fresh_seconds) / pair_seconds)
    pairs = options.session_pairs or max(_MIN_PAIRS, min(_MAX_PAIRS, affordable, max(12, best)))
    session_seconds = fresh_seconds + pairs * pair_seconds
    return Plan(
        session_pairs=pairs,
        turn_requests=turn_requests,
        refill_requests=refill_requests,
        session_seconds=session_seconds,
        seconds=spent_seconds + options.min_sessions * session_seconds - fresh_seconds,
    )


def _orders(num_engines: int) -> list[tuple[int, ...]]:
    """All orders of the engines, each followed by its reverse: A B, B A."""
    every = list(permutations(range(num_engines)))
    forward = [order for order in every if order <= order[::-1]]
    return [order for one in forward for order in dict.fromkeys((one, one[::-1]))]


@contextmanager
def _opened(openers: Sequence[OpenEngine], order: Sequence[int]) -> Iterator[list[Engine]]:
    """Open engines in an order; give them as they are numbered, and close them all whatever happens."""
    with ExitStack() as stack:
        engines: dict[int, Engine] = {}
        for which in order:
            engines[which] = openers[which]()
            stack.callback(engines[which].close)
        yield [engines[which] for which in range(len(openers))]


def _time_session(engines: Sequence[Engine], arrays: Sequence[Arrays], plan: Plan, session: int) -> NDArray[np.int64]:
    """Time one session's turns: nanoseconds of shape [pair, engine, (CPU, wall)]."""
    orders = _orders(len(engines))
    times = np.empty((plan.session_pairs, len(engines), 2), dtype=np.int64)
    with without_collector():
        for index in range(plan.session_pairs):
            pair = session * plan.session_pairs + index
            first = pair * plan.turn_requests
            requests = [arrays[(first + i) % len(arrays)] for i in range(plan.turn_requests)]
            for which in orders[pair % len(orders)]:
                engine = engines[which]
                for request in requests[: plan.refill_requests]:
                    engine.run(request)
                start_cpu, start = time.process_time_ns(), time.perf_counter_ns()
                for request in requests:
                    engine.run(request)
                wall_ns = time.perf_counter_ns() - start
                times[index, which] = max(1, time.process_time_ns() - start_cpu), max(1, wall_ns)
    return times
