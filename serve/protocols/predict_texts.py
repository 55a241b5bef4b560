"""Language models behind `/predict`: each row is a text to go on with, or a conversation to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgesmith.errors import EdgesmithError
from edgesmith.tasks import Prediction
from serve.errors import EngineFailedError, MalformedError, TooLargeError
from serve.models.job import GenerationJob
from serve.models.text_model import TextModel
from serve.protocols.identity import sticky_key
from serve.protocols.predict_rows import PredictRow
from serve.protocols.rows import Call, ClientGoneError
from serve.protocols.text_models import make_vectors, prepare_prompts
from serve.runtime.generation import Sampling, TextChunk

__all__ = ["Writing", "generate_rows", "read_writing"]

DEFAULT_MAX_TOKENS = 128
_MOST_CHARS_PER_TOKEN = 256
_COLUMNS = ("text", "prompt", "messages")


@dataclass(frozen=True, slots=True)
class Writing:
    """How an answer is to be written."""

    max_tokens: int
    sampling: Sampling


async def generate_rows(call: Call, model: TextModel, rows: Sequence[PredictRow], writing: Writing) -> list[Prediction]:
    """Write an answer to each row, one row after the other; or make a vector of it, where the model does only that.

    Args:
        call: The request.
        model: From `choose_model`.
        rows: Texts, or objects with one of the columns `text`, `prompt` and `messages`.
        writing: From `read_writing`.

    Returns:
        `text`, `finish_reason` and `num_tokens` of each, or `embedding`.

    Raises:
        EdgesmithError: A row is not what it should be, or the model failed.
    """
    try:
        model, prompts = await prepare_prompts(call, model, lambda one: _prompts(one, rows))
    except EdgesmithError as error:
        call.service.failed(call.name, call.protocol, error, received_ns=call.request.received_ns)
        raise
    if not model.can_generate:
        _, vectors, _ = await make_vectors(call, model, prompts)
        return [{"embedding": vector.tolist()} for vector in vectors]
    return [await _generate(call, model, prompt, writing, counts=index == 0) for index, prompt in enumerate(prompts)]


def _prompts(model: TextModel, rows: Sequence[PredictRow]) -> list[str]:
    _check_sizes(model, rows)
    return [_prompt(model, row, number) for number, row in enumerate(rows, start=1)]


def _check_sizes(model: TextModel, rows: Sequence[PredictRow]) -> None:
    """Refuse what no context holds before it is split into tokens."""
    most = model.context_length * _MOST_CHARS_PER_TOKEN
    for number, row in enumerate(rows, start=1):
        if (num_chars := len(str(row))) > most:
            raise TooLargeError(
                f"row {number} has {num_chars:,} characters; the model takes {model.context_length} tokens",
                mend="Shorten it.",
            )


def read_writing(options: Mapping[str, str], most: int) -> Writing:
    """How an answer is to be written.

    Args:
        options: `max_tokens`, `temperature` and `seed`, of the query.
        most: Tokens of one answer on this server.

    Raises:
        MalformedError: An option is no number, or out of its range.
        UsageError: As above, of sampling.
    """
    try:
        max_tokens = int(options.get("max_tokens", min(DEFAULT_MAX_TOKENS, most)))
        temperature, seed = float(options.get("temperature", 0)), int(options.get("seed", 0))
    except ValueError as error:
        raise MalformedError(f"an option is no number: {error}") from error
    if not 1 <= max_tokens <= most:
        raise MalformedError(f"max_tokens is {max_tokens}; it must be from 1 to {most}")
    return Writing(max_tokens, Sampling(temperature=temperature, seed=seed, is_repeatable="seed" in options))


def _prompt(model: TextModel, row: PredictRow, number: int) -> str:
    match row:
        case str():
            return row
        case {"messages": list(messages)} if all(_is_message(message) for message in messages):
            return model.chat_prompt(messages)
        case {"text": str(text)} | {"prompt": str(text)}:
            return text
    raise MalformedError(
        f"row {number} has none of the columns {', '.join(_COLUMNS)}",
        mend='Send a text, {"text": "…"}, or {"messages": [{"role": "user", "content": "…"}]}.',
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


async def _generate(call: Call, model: TextModel, prompt: str, writing: Writing, *, counts: bool) -> Prediction:
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    texts: list[str] = []

    def take(chunk: TextChunk) -> None:
        texts.append(chunk.text)

    def done(_: GenerationJob) -> None:
        if not finished.done():
            finished.set_result(None)

    job = GenerationJob(
        prompt=prompt,
        max_tokens=writing.max_tokens,
        on_chunk=take,
        done=done,
        received_ns=call.request.received_ns,
        sampling=writing.sampling,
    )

    if call.request.is_closed:
        raise ClientGoneError("the client has gone")
    call.request.on_close(partial(_leave, job, finished))
    try:
        call.service.generate(
            call.name,
            model.version,
            job,
            protocol=call.protocol,
            key=sticky_key(call.request),
            request_id=call.identity,
            is_chosen=call.version is None,
            counts=counts,
        )
        await finished
    except BaseException:
        job.is_cancelled = True
        raise
    finally:
        call.request.on_close(None)
    try:
        if job.error is not None:
            raise job.error.with_traceback(None)  # whose frames hold the job that holds the error
        if job.finish_reason is None:
            raise EngineFailedError("the answer was dropped before it ended")
        return {"text": "".join(texts), "finish_reason": job.finish_reason, "num_tokens": job.num_tokens}
    finally:
        del job  # which holds the error that holds this frame


def _leave(job: GenerationJob, finished: asyncio.Future[None]) -> None:
    """The client has gone."""
    job.is_cancelled = True
    if not finished.done():
        finished.set_exception(ClientGoneError("the client has gone"))
        finished.exception()  # looked at, so that nothing is logged where nobody waits for it
