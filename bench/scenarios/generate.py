"""Time a text-generating engine as its users see it: chunk by chunk, as it writes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.machine.conditions import Watch
from bench.machine.energy import EnergyMeter
from bench.machine.machine import describe_machine
from bench.scenarios.generation import Generation
from bench.scenarios.prompts import cut_prompts
from bench.scenarios.timing import without_collector
from bench.scenarios.warm_up import settle
from edgesmith.errors import DataError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["GenerationOptions", "measure_generation"]

_MAX_CUT = 64
"""Prompts cut from texts; more requests than that ask the same ones again."""
_OTHER_TEXT = "~"


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How much to generate.

    `GenerationOptions(prompt_tokens=512, max_tokens=128, is_fixed_length=True)` is what llama-bench calls pp512 and
    tg128 at a depth of 512.
    """

    max_tokens: int = 64
    """Of one answer; it may end earlier by itself."""
    prompt_tokens: int | None = None
    """Cut prompts of this many tokens from the texts given; None takes each text as one prompt."""
    is_fixed_length: bool = False
    """Whether an answer that ends before `max_tokens` is left out, and another prompt asked in its place."""
    seconds: float = 60.0
    """Wall time aimed at; the number of requests is fixed from it before the first one is timed."""
    min_requests: int = 20
    max_requests: int = 1000
    warm_up_tokens: int = 8
    max_warm_up_windows: int = 12

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_requests", "warm_up_tokens", "prompt_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")


def measure_generation(
    engine: GenerationEngine,
    prompts: Sequence[str],
    *,
    options: GenerationOptions | None = None,
    artifact_digest: str | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Generation:
    """Time answers one after the other, token by token.

    Every prompt is read anew: before each, the engine answers another text, so that it has nothing left of an earlier
    prompt that begins in the same way. What it reuses all the same, and says so, does not count as read.

    Args:
        engine: Opened with the number of threads that is to be measured.
        prompts: Used in turn, at least one; or texts to cut them from.
        options: How many tokens and requests.
        artifact_digest: Of what the engine runs.
        threads: What the engine was opened with.
        progress: Shows the requests done.

    Raises:
        DataError: There are no prompts, the texts are too short to cut them from, an answer has no tokens at all, or
            most answers end too early.
        UsageError: A prompt does not fit into the model's context.

    Source: MLPerf Inference rules, LLM metrics (TTFT, TPOT); llama-bench of llama.cpp (pp and tg).
    """
    if not prompts:
        raise DataError("no prompts to time", mend="Give a data file with rows.")
    chosen = options or GenerationOptions()
    machine = describe_machine()
    if chosen.prompt_tokens is not None:
        count = min(chosen.max_requests, _MAX_CUT)
        prompts = cut_prompts(engine, prompts, num_tokens=chosen.prompt_tokens, count=count)

    def run_window() -> None:
        _forget(engine)
        for _ in engine.generate(prompts[0], max_tokens=chosen.warm_up_tokens):
            pass

    is_settled, _, _ = settle(run_window, max_windows=chosen.max_warm_up_windows)
    start = time.perf_counter()
    for _ in engine.generate(max(prompts, key=len), max_tokens=chosen.max_tokens):  # makes room for the longest
        pass
    wanted = int(chosen.seconds / (time.perf_counter() - start))
    num_requests = max(chosen.min_requests, min(chosen.max_requests, wanted))
    with Watch() as watch:
        answers, num_discarded = _ask(engine, prompts, num_requests, chosen, progress)
    rows = np.concatenate([answer.rows(index) for index, answer in enumerate(answers)])
    lengths = [engine.count_prompt_tokens(answer.prompt) for answer in answers]
    kind = "real texts" if chosen.prompt_tokens is None else "prompts cut from real texts"
    return Generation(
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=f"{len({answer.prompt for answer in answers})} {kind}, of {min(lengths)} to {max(lengths)} tokens",
        max_tokens=chosen.max_tokens,
        prompt_tokens=np.array(lengths, dtype=np.int64),
        cpu_ns=np.array([answer.cpu_ns for answer in answers], dtype=np.int64),
        first_cpu_ns=np.array([answer.first_cpu_ns for answer in answers], dtype=np.int64),
        request=rows[:, 0],
        at_ns=rows[:, 1],
        tokens=rows[:, 2],
        has_text=rows[:, 3],
        num_discarded=num_discarded,
        num_reused_tokens=sum(answer.num_reused_tokens for answer in answers),
        is_settled=is_settled,
        threads=threads,
        machine=machine,
        conditions=watch.conditions,
        energy_mj=_millijoules_per_token(answers),
    )


def _millijoules_per_token(answers: Sequence[_Answer]) -> float | None:
    """Of the timed answers alone; None where the machine does not say."""
    joules = [answer.joules for answer in answers if answer.joules is not None]
    if len(joules) < len(answers):
        return None
    return 1000 * sum(joules) / sum(answer.num_tokens for answer in answers)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One timed answer."""

    prompt: str
    chunks: list[tuple[int, int, int]]
    """Time since the request began, tokens, whether there is text."""
    cpu_ns: int
    first_cpu_ns: int
    joules: float | None
    """Of the processor while it was written, its prompt included."""
    num_reused_tokens: int
    """Tokens of the prompt that the engine still had from the text before, such as the one that begins every text."""

    @property
    def num_tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.chunks)

    def rows(self, index: int) -> NDArray[np.int64]:
        """The chunks with the request's number before them, of shape [num_chunks, 4]."""
        return np.array([(index, *chunk) for chunk in self.chunks], dtype=np.int64)


def _ask(
    engine: GenerationEngine, prompts: Sequence[str], num_requests: int, chosen: GenerationOptions, progress: Progress
) -> tuple[list[_Answer], int]:
    """As many timed answers as wanted, and how many were left out for ending early."""
    answers: list[_Answer] = []
    num_discarded = 0
    with without_collector(), progress.bar("generate", total=num_requests) as advance:
        for prompt in itertools.cycle(prompts):
            _forget(engine)
            answer = _stream(engine, prompt, chosen.max_tokens)
            if chosen.is_fixed_length and answer.num_tokens < chosen.max_tokens:
                num_discarded += 1
                if num_discarded > max(len(prompts), num_requests):
                    raise DataError(
                        f"{num_discarded} of {num_discarded + len(answers)} answers ended before the "
                        f"{chosen.max_tokens} tokens wanted",
                        mend="Ask for fewer tokens, or give texts that go on, such as a book.",
                    )
                continue
            answers.append(answer)
            advance(1)
            if len(answers) == num_requests:
                break
    return answers, num_discarded


def _stream(engine: GenerationEngine, prompt: str, max_tokens: int) -> _Answer:
    chunks: list[tuple[int, int, int]] = []
    first_cpu_ns = 0
    with EnergyMeter() as energy:
        start_cpu, start = time.process_time_ns(), time.perf_counter_ns()
        for chunk in engine.generate(prompt, max_tokens=max_tokens):
            chunks.append((time.perf_counter_ns() - start, chunk.num_tokens, int(bool(chunk.text))))
            if not first_cpu_ns:
                first_cpu_ns = time.process_time_ns() - start_cpu
        cpu_ns = time.process_time_ns() - start_cpu
    if not chunks:
        raise DataError(f"{engine.name} generated no token for the prompt {prompt[:60]!r}")
    reused = getattr(engine, "num_reused_tokens", 0)
    return _Answer(
        prompt=prompt,
        chunks=chunks,
        cpu_ns=cpu_ns,
        first_cpu_ns=first_cpu_ns,
        joules=energy.joules,
        num_reused_tokens=reused,
    )


def _forget(engine: GenerationEngine) -> None:
    """Let the engine read another text: one that keeps what it read has nothing left of the prompts before."""
    for _ in engine.generate(_OTHER_TEXT, max_tokens=1):
        pass
