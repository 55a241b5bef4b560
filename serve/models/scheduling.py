"""What a scheduler does with one job, call or error; no state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from edgesmith.errors import EdgesmithError
from serve.errors import EngineFailedError
from serve.models.job import GenerationJob
from serve.runtime.text_writer import TextRequest

__all__ = ["answer_call", "known_error", "request_of"]

_LOG = logging.getLogger(__name__)


def request_of(job: GenerationJob) -> TextRequest:
    """A job as a writer takes it."""
    return TextRequest(
        prompt=job.prompt, max_tokens=job.max_tokens, sampling=job.sampling, stop=job.stop, grammar=job.grammar,
        json_schema=job.json_schema, num_logprobs=job.num_logprobs,
    )  # fmt: skip


def answer_call(function: Callable[[], Any], future: Future[Any]) -> None:
    """Call a function and have its future told."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - told to whoever asked, whatever it is
        future.set_exception(error)


def known_error(error: BaseException) -> EdgesmithError:
    """An error that a client may read; others are logged."""
    if isinstance(error, EdgesmithError):
        return error
    _LOG.error("an engine's failure", exc_info=error)
    return EngineFailedError("the engine failed; the server's log has the cause")
