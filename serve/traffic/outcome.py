"""What became of a request, as far as versions are compared and recorded by it: figures and labels, never texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serve.errors import DeadlineError, describe_failure
from serve.models.job import GenerationJob, Job

__all__ = ["MAX_ID", "Outcome", "bounded_id", "outcome_of", "refusal"]

MAX_ID = 128
"""Characters of an id that are recorded; a longer one is not remembered for feedback."""

_MAX_LOGITS = 1024
"""Elements that are kept until a line is written."""
# Refusals that say nothing about the version: the client's own fault.
_BLAMELESS_BELOW = 500


@dataclass(slots=True, eq=False)
class Outcome:
    """What became of one request.

    Attributes:
        request_id: As the client was told it.
        is_ok: Whether it was answered.
        duration_ns: From the request's last byte to the end of its answer.
        reason: Why it was not answered, as metrics name it; empty if it was.
        status: Of HTTP.
        queue_ns: How long it waited for the engine.
        num_rows: Rows of a graph's batch.
        num_tokens: Tokens that a language model wrote; None of a graph.
        logits: What a graph gave, of shape [rows, labels], where it is small; looked at later, in another thread.
        labels: Names of the columns of `logits`.
        is_cancelled: The client had gone, so that the answer says nothing.
        is_own_deadline: It was late by the deadline that the client itself had set.
        unit: Stands for the key that gave the request its version: requests of one key are not independent.
    """

    request_id: str
    is_ok: bool
    duration_ns: int
    reason: str = ""
    status: int = 200
    queue_ns: int = 0
    num_rows: int = 1
    num_tokens: int | None = None
    logits: NDArray[Any] | None = None
    labels: Sequence[str] | None = None
    is_cancelled: bool = False
    is_own_deadline: bool = False
    unit: int | None = None

    @property
    def is_fault(self) -> bool:
        """Whether the version, or the server, failed the client."""
        return not self.is_ok and self.status >= _BLAMELESS_BELOW and not self.is_own_deadline

    @property
    def is_evidence(self) -> bool:
        """Whether it says anything about the version: all does but what the client spoiled or left."""
        return not self.is_cancelled and (self.is_ok or self.is_fault)


def outcome_of(
    job: Job | GenerationJob, request_id: str, labels: Sequence[str] | None = None, *, key: str | None = None
) -> Outcome:
    """What became of a job whose `done` is being called.

    Args:
        job: With `finished_ns`, and `outputs` or `error`.
        request_id: As the client was told it.
        labels: Of the model's task, where it has any.
        key: Gave the request its version, if it had one.
    """
    status, reason = 200, ""
    if job.error is not None:
        status, reason, _ = describe_failure(job.error)
    said = Outcome(
        bounded_id(request_id),
        job.error is None,
        max(job.finished_ns - job.received_ns, 0),
        reason,
        status,
        max(job.started_ns - job.received_ns, 0) if job.started_ns else 0,
        labels=labels,
        is_cancelled=job.is_cancelled,
        is_own_deadline=job.is_own_deadline and isinstance(job.error, DeadlineError),
        unit=_unit(key),
    )
    if isinstance(job, Job):
        said.num_rows, said.logits = job.num_rows, _small_logits(job.outputs)
    else:
        said.num_tokens = job.num_tokens
    return said


def refusal(error: BaseException, request_id: str, *, key: str | None = None) -> Outcome:
    """What became of a request that never was a job: a full queue, a version that is not ready."""
    status, reason, _ = describe_failure(error)
    return Outcome(bounded_id(request_id), False, 0, reason, status, unit=_unit(key))


def bounded_id(request_id: str) -> str:
    """A request's id as it is kept, longer than `MAX_ID` if it was: clients could fill the memory with their ids."""
    return request_id if len(request_id) <= MAX_ID else request_id[:MAX_ID] + "…"


def _unit(key: str | None) -> int | None:
    # Python's hash is keyed anew in each process: no client can aim at another's.
    return None if key is None else hash(key)


def _small_logits(outputs: Mapping[str, NDArray[Any]] | None) -> NDArray[Any] | None:
    logits = None if outputs is None else outputs.get("logits")
    return logits if logits is not None and logits.ndim == 2 and logits.size <= _MAX_LOGITS else None
