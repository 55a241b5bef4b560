"""Time a text-generating engine as its users see it: chunk by chunk, as it writes."""

from __future__ import annotations

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
from bench.scenarios.timing import without_collector
from bench.scenarios.warm_up import settle
from edgesmith.errors import DataError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["GenerationOptions", "measure_generation"]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How much to generate."""

    max_tokens: int = 64
    """Of one answer; it may end earlier by itself."""
    seconds: float = 60.0
    """Wall time aimed at; the number of requests is fixed from it before the first one is timed."""
    min_requests: int = 20
    max_requests: int = 1000
    warm_up_tokens: int = 8
    max_warm_up_windows: int = 12

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_requests", "warm_up_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


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

    Args:
        engine: Opened with the number of threads that is to be measured.
        prompts: Used in turn, at least one.
        options: How many tokens and requests.
        artifact_digest: Of what the engine runs.
        threads: What the engine was opened with.
        progress: Shows the requests done.

    Raises:
        DataError: There are no prompts, or an answer has no tokens at all.
        UsageError: A prompt does not fit into the model's context.

    Source: MLPerf Inference rules, LLM metrics (TTFT, TPOT).
    """
    if not prompts:
        raise DataError("no prompts to time", mend="Give a data file with rows.")
    chosen = options or GenerationOptions()
    machine = describe_machine()

    def run_window() -> None:
        for _ in engine.generate(prompts[0], max_tokens=chosen.warm_up_tokens):
            pass

    is_settled, _, _ = settle(run_window, max_windows=chosen.max_warm_up_windows)
    start = time.perf_counter()
    for _ in engine.generate(prompts[0], max_tokens=chosen.max_tokens):
        pass
    wanted = int(chosen.seconds / (time.perf_counter() - start))
    num_requests = max(chosen.min_requests, min(chosen.max_requests, wanted))
    lengths = [engine.count_prompt_tokens(prompt) for prompt in prompts[:num_requests]]
    asked = [index % len(prompts) for index in range(num_requests)]
    with Watch() as watch, EnergyMeter() as energy:
        rows, cpu_ns = _stream(engine, [prompts[index] for index in asked], chosen.max_tokens, progress)
    return Generation(
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=f"{len(lengths)} real texts of {min(lengths)} to {max(lengths)} tokens",
        max_tokens=chosen.max_tokens,
        prompt_tokens=np.array([lengths[index] for index in asked], dtype=np.int64),
        cpu_ns=cpu_ns,
        request=rows[:, 0],
        at_ns=rows[:, 1],
        tokens=rows[:, 2],
        has_text=rows[:, 3],
        is_settled=is_settled,
        threads=threads,
        machine=machine,
        conditions=watch.conditions,
        energy_mj=energy.per_request_mj(int(rows[:, 2].sum())),
    )


def _stream(
    engine: GenerationEngine, prompts: Sequence[str], max_tokens: int, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of (request, time, tokens, whether there is text), and the CPU time of each request."""
    rows: list[tuple[int, int, int, int]] = []
    cpu_ns = np.empty(len(prompts), dtype=np.int64)
    with without_collector():
        for index, prompt in enumerate(progress.track(prompts, "generate")):
            before = len(rows)
            start_cpu, start = time.process_time_ns(), time.perf_counter_ns()
            for chunk in engine.generate(prompt, max_tokens=max_tokens):
                rows.append((index, time.perf_counter_ns() - start, chunk.num_tokens, int(bool(chunk.text))))  # noqa: PERF401 (an append each, as it comes)
            cpu_ns[index] = time.process_time_ns() - start_cpu
            if len(rows) == before:
                raise DataError(f"{engine.name} generated no token for the prompt {prompt[:60]!r}")
    return np.array(rows, dtype=np.int64), cpu_ns
