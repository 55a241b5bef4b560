"""A language model in a real process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgesmith.errors import UnsupportedError, UsageError
from serve.errors import EngineFailedError
from serve.runtime import EngineOptions
from serve.runtime.child_engine import ChildGenerator, open_child
from serve.runtime.child_process import ChildSettings
from serve.runtime.generation import Sampling
from tests.serve.runtime.test_child import wait_until

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc")
OPTIONS = EngineOptions(threads=1, num_context=512)
PROMPT = "Once upon"


@pytest.fixture(scope="module")
def engine(tiny_file: Path) -> Iterator[ChildGenerator]:
    engine = open_child(tiny_file, OPTIONS, label="tiny 1", settings=ChildSettings(first_delay_s=0.01))
    assert isinstance(engine, ChildGenerator)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def here(tiny_file: Path) -> Iterator[Any]:
    from serve.runtime.gguf_engine import LlamaEngine

    with closing(LlamaEngine(tiny_file, OPTIONS)) as engine:
        yield engine


def written(engine: Any, **asked: Any) -> list[Any]:
    return list(engine.generate(PROMPT, **{"max_tokens": 12, **asked}))


@pytest.mark.parametrize(
    "asked", [{}, {"sampling": Sampling(temperature=1.5, seed=7)}, {"grammar": 'root ::= "a" "b"*'}, {"stop": ("e",)}]
)
def test_it_writes_what_the_engine_here_writes(engine: ChildGenerator, here: Any, asked: dict[str, Any]) -> None:
    assert written(engine, **asked) == written(here, **asked)


def test_it_knows_what_the_engine_here_knows(engine: ChildGenerator, here: Any) -> None:
    assert (engine.name, engine.num_vocabulary, engine.context_length) == (
        here.name,
        here.num_vocabulary,
        here.context_length,
    )
    tokens = here.tokenize(PROMPT)
    assert engine.tokenize(PROMPT) == tokens
    assert engine.tokenize(PROMPT, add_special=False) == here.tokenize(PROMPT, add_special=False)
    assert engine.count_prompt_tokens(PROMPT) == len(tokens)
    assert np.array_equal(engine.logits(tokens, first=1), here.logits(tokens, first=1))


def test_what_it_read_is_forgotten_on_demand(engine: ChildGenerator) -> None:
    process = Path(f"/proc/{engine.process.pid}/smaps_rollup")

    def anonymous_kb() -> int:
        return next(int(line.split()[1]) for line in process.read_text().splitlines() if line.startswith("Anonymous:"))

    before = written(engine)
    held = anonymous_kb()
    engine.free_rooms()
    assert anonymous_kb() < held
    assert written(engine) == before


def test_arguments_are_checked_at_once(engine: ChildGenerator) -> None:
    with pytest.raises(UsageError, match="max_tokens is 0"):
        engine.generate(PROMPT, max_tokens=0)
    with pytest.raises(UsageError, match="more together"):
        engine.generate(PROMPT, max_tokens=10_000)
    with pytest.raises(UsageError, match="stop is"):
        engine.generate(PROMPT, max_tokens=3, stop=cast(Any, "e"))
    with pytest.raises((UnsupportedError, UsageError)):
        engine.generate(PROMPT, max_tokens=3, grammar="root ::= [")
    assert written(engine)


def test_an_answer_that_is_given_up_stops_the_engine(engine: ChildGenerator) -> None:
    whole = "".join(chunk.text for chunk in written(engine))
    for _ in range(3):
        answer = engine.generate(PROMPT, max_tokens=400)
        next(answer)
        cast(Any, answer).close()
        assert engine._answer is None
        assert "".join(chunk.text for chunk in written(engine)) == whole


def test_an_answer_ends_when_another_is_begun(engine: ChildGenerator) -> None:
    first = engine.generate(PROMPT, max_tokens=400)
    next(first)
    second = engine.generate(PROMPT, max_tokens=3)
    with pytest.raises(UsageError, match="another text was begun"):
        next(first)
    assert sum(chunk.num_tokens for chunk in second) == 3


def test_a_crash_fails_the_text_that_was_being_written_alone(engine: ChildGenerator) -> None:
    whole = written(engine)
    answer = engine.generate(PROMPT, max_tokens=400)
    next(answer)
    pid = engine.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineFailedError, match=r"SIGKILL|ended while it wrote"):
        list(answer)
    wait_until(lambda: engine.process.pid not in (None, pid))
    assert written(engine) == whole
