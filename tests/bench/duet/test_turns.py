from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.duet.turns import DuetOptions, OpenEngine, Plan, Turns, plan_sessions, take_turns
from bench.scenarios.inputs import Inputs, encode_inputs
from edgesmith.artifact import Signature
from edgesmith.errors import UsageError
from edgesmith.progress import Advance, Progress
from serve.runtime import Engine, open_engine
from tests.bench.conftest import News


class Logged:
    """A real engine that writes down what is asked of it."""

    def __init__(self, engine: Engine, which: int, log: list[tuple[str, int, int]], inputs: Inputs) -> None:
        self.engine, self.which, self.log = engine, which, log
        self.number = {id(arrays): index for index, arrays in enumerate(inputs.arrays)}
        log.append(("open", which, 0))

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def signature(self) -> Signature:
        return self.engine.signature

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.log.append(("run", self.which, self.number[id(arrays)]))
        return self.engine.run(arrays)

    def close(self) -> None:
        self.log.append(("close", self.which, 0))
        self.engine.close()


def openers(news: News, inputs: Inputs, log: list[tuple[str, int, int]]) -> list[OpenEngine]:
    def opener(which: int) -> OpenEngine:
        return lambda: Logged(open_engine((news.exact, news.coarse, news.exact)[which]), which, log, inputs)

    return [opener(which) for which in range(3)]


@pytest.fixture(scope="module")
def inputs(news: News) -> Inputs:
    return encode_inputs(news.task, news.examples[:5])


SIX = DuetOptions(seconds=0.01, min_sessions=6, max_sessions=6, session_pairs=6, turn_requests=2, max_warm_up_windows=3)


@pytest.fixture(scope="module")
def logged(news: News, inputs: Inputs) -> tuple[Turns, list[tuple[str, int, int]]]:
    log: list[tuple[str, int, int]] = []
    return take_turns(openers(news, inputs, log), inputs, SIX), log


def test_times_have_an_entry_for_every_engine_and_pair(logged: tuple[Turns, list[tuple[str, int, int]]]) -> None:
    turns, _ = logged
    assert turns.cpu_ns.shape == turns.wall_ns.shape == (3, 36)
    assert turns.cpu_ns.min() > 0
    assert turns.wall_ns.min() > 0
    assert Counter(turns.session.tolist()) == dict.fromkeys(range(6), 6)


def test_every_session_opens_every_engine_afresh_and_closes_it(
    logged: tuple[Turns, list[tuple[str, int, int]]],
) -> None:
    _, log = logged
    opened: set[int] = set()
    for event, which, _ in log:
        if event == "open":
            assert which not in opened
            opened.add(which)
        elif event == "close":
            opened.remove(which)
        else:
            assert which in opened
    assert not opened
    assert Counter(which for event, which, _ in log if event == "open") == {0: 6, 1: 6, 2: 6}


def test_every_engine_is_opened_at_every_place_equally_often(
    logged: tuple[Turns, list[tuple[str, int, int]]],
) -> None:
    _, log = logged
    order = [which for event, which, _ in log if event == "open"]
    for place in range(3):
        assert Counter(order[place::3]) == {0: 2, 1: 2, 2: 2}


def test_in_each_session_every_engine_takes_every_place_equally_often_with_the_same_requests(
    logged: tuple[Turns, list[tuple[str, int, int]]],
) -> None:
    _, log = logged
    timed_requests = 6 * 3 * (1 + 2)  # pairs, engines, refill and two requests
    closes = [index for index, (event, _, _) in enumerate(log) if event == "close"][::3]
    for end in closes:
        turns = np.array([entry[1:] for entry in log[end - timed_requests : end]]).reshape(6, 3, 3, 2)
        assert all(event == "run" for event, _, _ in log[end - timed_requests : end])
        engines, requests = turns[..., 0], turns[..., 1]  # [pair, place, request of the turn]
        assert (engines == engines[..., :1]).all()
        for place in range(3):
            assert Counter(engines[:, place, 0].tolist()) == {0: 2, 1: 2, 2: 2}
        assert (requests == requests[:, :1]).all()
        assert (requests[..., 0] == requests[..., 1]).all()  # the refill is the first request
        assert (engines[1::2, :, 0] == engines[::2, ::-1, 0]).all()  # A B, then B A


def test_all_inputs_are_used(logged: tuple[Turns, list[tuple[str, int, int]]], inputs: Inputs) -> None:
    _, log = logged
    assert {number for event, _, number in log if event == "run"} == set(range(len(inputs.arrays)))


def test_engines_are_closed_when_one_cannot_be_opened_or_run(news: News, inputs: Inputs) -> None:
    log: list[tuple[str, int, int]] = []
    first, second, _ = openers(news, inputs, log)

    def broken() -> Engine:
        raise UsageError("cannot be opened")

    with pytest.raises(UsageError, match="cannot be opened"):
        take_turns((first, second, broken), inputs, SIX)
    assert [entry[0] for entry in log] == ["open", "open", "close", "close"]
    log.clear()
    wrong = Inputs(arrays=({"input_ids": np.zeros((1, 2), np.int64)},), description="too few inputs")
    with pytest.raises(UsageError):
        take_turns([lambda: open_engine(news.exact)], wrong, SIX)


def test_a_run_that_cannot_be_as_short_as_asked_says_so(news: News, inputs: Inputs) -> None:
    class Notes(Progress):
        notes: tuple[str, ...] = ()

        def note(self, text: str) -> None:
            self.notes += (text,)

    notes = Notes()
    take_turns([lambda: open_engine(news.exact)], inputs, replace(SIX, seconds=1e-6), notes)
    assert len(notes.notes) == 1
    assert "not 1e-06 s" in notes.notes[0]


times = st.floats(1e-6, 20.0)


@given(st.lists(times, min_size=1, max_size=3), times, times, st.floats(0.1, 600))
def test_a_plan_fits_its_time_unless_it_is_the_least_there_is(
    requests: list[float], opening: float, spent: float, seconds: float
) -> None:
    options = DuetOptions(seconds=seconds)
    plan = plan_sessions(requests, opening, spent, options)
    assert 4 <= plan.session_pairs <= 96
    assert 1 <= plan.turn_requests <= 256
    if plan.session_pairs > 4:
        assert plan.seconds <= max(seconds, spent) * 1.0001


def test_turns_are_short_for_slow_models_and_long_for_fast_ones() -> None:
    def plan(request_seconds: float) -> Plan:
        return plan_sessions([request_seconds] * 3, 0.1, 0.5, DuetOptions())

    assert [plan(seconds).turn_requests for seconds in (1.0, 0.02, 0.004, 0.0001, 1e-7)] == [1, 1, 2, 100, 256]
    assert plan(1.0).refill_requests == 0
    assert plan(0.004).refill_requests == 1


def test_models_that_open_slowly_get_more_pairs_for_each_opening() -> None:
    quick, slow = (plan_sessions([0.004] * 3, opening, 1.0, DuetOptions(seconds=60)) for opening in (0.05, 3.0))
    assert slow.session_pairs > 2 * quick.session_pairs


def test_seconds_are_reported_in_whole_tenths(news: News, inputs: Inputs) -> None:
    reported: list[float] = []

    class Kept(Progress):
        def bar(self, description: str, total: float | None = None) -> AbstractContextManager[Advance]:
            del description, total
            return nullcontext(reported.append)

    options = DuetOptions(seconds=0.5, min_sessions=4, session_pairs=4, max_warm_up_windows=3)
    begin = time.perf_counter()
    take_turns([lambda: open_engine(news.exact)] * 2, inputs, options, Kept())
    assert all(amount == round(amount, 1) and amount > 0 for amount in reported)
    assert 0 < sum(reported) <= time.perf_counter() - begin


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"seconds": 0.0}, "0 seconds"), ({"seconds": float("nan")}, "nan"), ({"min_sessions": 0}, "0 to 400"),
     ({"min_sessions": 9, "max_sessions": 8}, "9 to 8"), ({"turn_requests": 0}, "turn_requests is 0"),
     ({"session_pairs": -1}, "session_pairs is -1")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DuetOptions(**wrong)
