"""Work on its way through a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from serve.runtime.generation import GREEDY, FinishReason, Sampling, TextChunk

__all__ = ["GenerationJob", "Job"]


@dataclass(slots=True, eq=False)
class Job:
    """One request to a graph. Made, cancelled and told the outcome on the loop's thread.

    Attributes:
        arrays: By input name; the first axis of each is the batch.
        done: Called once, on the loop's thread, with this job, whose `outputs` or `error` is then set.
        deadline_ns: On `time.monotonic_ns`; answered with an error at it, whether begun or not. None waits for ever.
        is_own_deadline: The request stated it, so that being late says nothing about the model.
        is_told_at_once: `done` may be called before `submit` returns, where the run is brief and nothing else waits.
        is_cancelled: The client has gone: set it, and the job is dropped if it is not begun yet.
        num_rows: Length of the first axis.
        received_ns: When the request was there.
        started_ns: When the engine began with it; 0 before.
        finished_ns: When the engine was done; 0 before.
        batch_rows: Rows of the batch that it was run in, its own included.
        outputs: By output name, its own rows alone.
        error: Why there are no outputs.
    """

    arrays: Mapping[str, NDArray[Any]]
    done: Callable[[Job], None]
    num_rows: int
    received_ns: int
    deadline_ns: int | None = None
    is_told_at_once: bool = False
    is_own_deadline: bool = False
    is_cancelled: bool = False
    started_ns: int = 0
    finished_ns: int = 0
    batch_rows: int = 0
    outputs: dict[str, NDArray[Any]] | None = None
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class GenerationJob:
    """One request to a language model. Made, cancelled and told of every piece on the loop's thread.

    Attributes:
        prompt: Text as the model reads it.
        on_chunk: Called on the loop's thread with each piece, in order.
        done: Called once after the last piece, with this job; `finish_reason` or `error` is then set.
        is_own_deadline: As of `Job`.
        num_logprobs: None for none, else how many likely tokens are named beside each one chosen; 0 names none.
        is_cancelled: Set it, and no further token is made.
        num_prompt_tokens: Set when the prompt was split.
        num_reused_tokens: Of them, those that were still known from an earlier text.
        num_tokens: Generated so far.
        first_ns: When the first token was there; 0 before.
    """

    prompt: str
    max_tokens: int
    on_chunk: Callable[[TextChunk], None]
    done: Callable[[GenerationJob], None]
    received_ns: int
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    num_logprobs: int | None = None
    deadline_ns: int | None = None
    is_own_deadline: bool = False
    is_cancelled: bool = False
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_tokens: int = 0
    started_ns: int = 0
    first_ns: int = 0
    finished_ns: int = 0
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)
