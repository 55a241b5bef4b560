"""One request's answers while they are written: jobs in, one JSON object or a stream of events out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from serve.errors import EngineFailedError
from serve.http.failures import tell_failure
from serve.http.message import Response, Stream
from serve.json_text import dump_json
from serve.models.job import GenerationJob
from serve.models.text_model import TextModel
from serve.protocols.identity import answer_headers, sticky_key
from serve.protocols.openai.errors import error_object
from serve.protocols.openai.forms import Form, usage_object
from serve.protocols.openai.options import Wanted
from serve.protocols.rows import Call, ClientGoneError
from serve.runtime.generation import Sampling, TextChunk, TokenLogprob

__all__ = ["answer"]

_NO_CACHE = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_NUM_SEEDS = 2**32 - 1


@dataclass(slots=True, eq=False)
class _Choice:
    job: GenerationJob | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_done: bool = False


async def answer(
    call: Call, model: TextModel, prompts: Sequence[str], max_tokens: Sequence[int], wanted: Wanted, form: Form
) -> None:
    """Generate all choices for all prompts, and send them.

    Args:
        call: The request, which is answered here.
        model: The version that answers.
        prompts: As the model reads them.
        max_tokens: Of an answer to each.
        wanted: How.
        form: The route's.

    Raises:
        RequestError: It cannot be taken, or it failed before anything was sent.
        EdgesmithError: A setting or prompt does not fit the model.
    """
    writing = _Writing(call, model, wanted, form)
    try:
        writing.begin(prompts, max_tokens)
        await writing.finished
        writing.send()
    except BaseException:
        writing.leave()
        raise
    finally:
        call.request.on_close(None)
        writing.choices.clear()  # they hold jobs that hold `writing`
        del writing  # which holds the error that holds this frame


class _Writing:
    """The choices of one request."""

    def __init__(self, call: Call, model: TextModel, wanted: Wanted, form: Form) -> None:
        self.call = call
        self.model = model
        self.wanted = wanted
        self.form = form
        self.choices: list[_Choice] = []
        self.num_prompts = 0
        self.stream: Stream | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.frame: dict[str, Any] = {
            "id": form.prefix + secrets.token_hex(12),
            "object": form.piece_kind if wanted.is_stream else form.kind,
            "created": int(time.time()),
            "model": call.name,
            "system_fingerprint": "fp_" + model.artifact.digest.removeprefix("sha256:")[:12],
        }

    def begin(self, prompts: Sequence[str], max_tokens: Sequence[int]) -> None:
        """Hand over a job for each choice. All are of one version, whatever traffic says of the next request."""
        call, wanted = self.call, self.wanted
        call.request.on_close(self.leave)
        self.num_prompts = len(prompts)
        for prompt, most in zip(prompts, max_tokens, strict=True):
            for choice_of_prompt in range(wanted.num_choices):
                index = len(self.choices)
                choice = _Choice()
                self.choices.append(choice)
                choice.job = GenerationJob(
                    prompt=prompt,
                    max_tokens=most,
                    on_chunk=partial(self._take, index),
                    done=partial(self._done, index),
                    received_ns=call.request.received_ns,
                    sampling=_reseeded(wanted, choice_of_prompt),
                    stop=wanted.stop,
                    grammar=wanted.grammar,
                    json_schema=wanted.json_schema,
                    num_logprobs=wanted.num_logprobs,
                )
                call.service.generate(
                    call.name,
                    self.model.version,
                    choice.job,
                    protocol=call.protocol,
                    key=sticky_key(call.request),
                    request_id=call.identity,
                    is_chosen=call.version is None,
                    counts=index == 0,
                )

    def leave(self) -> None:
        """Nobody wants the answer any more: write no further token."""
        for choice in self.choices:
            if choice.job is not None and not choice.is_done:
                choice.job.is_cancelled = True
        if not self.finished.done():
            self.finished.set_exception(ClientGoneError("the client has gone"))
            self.finished.exception()  # looked at, so that nothing is logged where nobody waits for it

    def _take(self, index: int, chunk: TextChunk) -> None:
        if self.finished.done():
            return
        choice = self.choices[index]
        if not self.wanted.is_stream:
            choice.texts.append(chunk.text)
            choice.logprobs.extend(chunk.logprobs)
            return
        if self.stream is None:
            self._open_stream()
        if chunk.text or chunk.logprobs:
            self._write([self.form.piece(index, chunk.text, chunk.logprobs)])

    def _done(self, index: int, job: GenerationJob) -> None:
        if self.finished.done():
            return
        self.choices[index].is_done = True
        if job.error is not None or job.finish_reason is None:
            error = job.error or EngineFailedError("the answer was dropped before it ended")
            self._fail(error.with_traceback(None))  # whose frames hold the job that holds the error
            return
        if self.wanted.is_stream:
            if self.stream is None:
                self._open_stream()
            self._write([self.form.last(index, job.finish_reason)])
        if all(one.is_done for one in self.choices):
            self.finished.set_result(None)

    def _open_stream(self) -> None:
        """Begin to answer with the first token, so that what fails before it still has a status of its own."""
        headers = (*answer_headers(self.call.identity, self.model), *_NO_CACHE)
        self.stream = self.call.request.stream(200, b"text/event-stream; charset=utf-8", headers)
        for index in range(len(self.choices)):
            if (first := self.form.first(index)) is not None:
                self._write([first])

    def _write(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> None:
        assert self.stream is not None
        event = self.frame | {"choices": choices}
        if self.wanted.has_usage:
            event["usage"] = usage
        self.stream.write(b"data: " + dump_json(event) + b"\n\n")
        if self.stream.is_closed:
            self.leave()

    def _fail(self, error: BaseException) -> None:
        """One choice failed, and so the request: before the first token by its status, later by an event."""
        if self.stream is None:
            for choice in self.choices:
                if choice.job is not None and not choice.is_done:
                    choice.job.is_cancelled = True
            self.finished.set_exception(error)
            return
        status, reason, message = tell_failure(error)
        self.stream.write(b"data: " + dump_json(error_object(status, reason, message)) + b"\n\n")
        self.stream.end()
        self.leave()

    def send(self) -> None:
        """All is there: end the stream, or answer."""
        usage = self._usage()
        if self.stream is not None:
            if self.wanted.has_usage:
                self._write([], usage)
            self.stream.write(b"data: [DONE]\n\n")
            self.stream.end()
            return
        choices = [
            self.form.whole(index, "".join(choice.texts), choice.logprobs, _reason(choice))
            for index, choice in enumerate(self.choices)
        ]
        body = dump_json(self.frame | {"choices": choices, "usage": usage})
        self.call.request.respond(Response(body=body, headers=answer_headers(self.call.identity, self.model)))

    def _usage(self) -> dict[str, Any]:
        """A prompt is counted once, however many answers there are to it.

        Of answers every token is counted that was generated, as OpenAI bills them: the one that ends a text too, which
        has no text and so stands in no log-probabilities, and those that a stop string cuts off.
        """
        jobs = [choice.job for choice in self.choices if choice.job is not None]
        prompts = jobs[:: self.wanted.num_choices]
        return usage_object(
            sum(job.num_prompt_tokens for job in prompts),
            sum(job.num_tokens for job in jobs),
            sum(job.num_reused_tokens for job in prompts),
        )


def _reason(choice: _Choice) -> str:
    assert choice.job is not None
    assert choice.job.finish_reason is not None
    return choice.job.finish_reason


def _reseeded(wanted: Wanted, index: int) -> Sampling:
    """Choices of one prompt are drawn with seeds of their own, or they would all be the same."""
    if index == 0:
        return wanted.sampling
    return replace(wanted.sampling, seed=(wanted.sampling.seed + index) % _NUM_SEEDS)
