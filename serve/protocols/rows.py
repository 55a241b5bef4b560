"""Texts and pictures through a graph: prepared, cut into pieces that it runs at a time, and put together again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError
from edgesmith.tasks import Example, ImageClassification, Task, TokenClassification
from serve.errors import NotReadyError, RequestError, TooLargeError
from serve.http.message import Request
from serve.models.graph_model import GraphModel
from serve.models.job import Job
from serve.models.text_model import TextModel
from serve.protocols.identity import sticky_key
from serve.protocols.workers import workers
from serve.service import Service

__all__ = ["Call", "ClientGoneError", "Input", "choose_model", "run_inputs", "task_of"]

Result = TypeVar("Result")
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Input: TypeAlias = "Example | str | tuple[str, str] | bytes | bytearray | memoryview"
"""A text, a pair of texts, or a picture's file, as the model's task takes them."""

_NUM_AT_ONCE = 2  # pieces of one request in the queue, so that a large one leaves room for others
_MAX_SWAPS = 3
_SHORT_CHARS = 2000  # so many are tokenized in about the time that a change of threads takes
_MAX_CHARS = 1 << 18
"""Of one text, and of texts that are tokenized together, which takes some 170 bytes a character and a microsecond."""


class ClientGoneError(RequestError):
    """Nobody waits for the answer any more."""

    status = 499
    reason = "client_gone"


class _SwappedError(Exception):
    """The model was replaced after the request had been prepared for it."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks, of whom, and by what protocol."""

    service: Service
    request: Request
    protocol: str
    identity: str
    name: str
    version: str | None = None


def choose_model(call: Call) -> GraphModel | TextModel:
    """The model that will answer, as traffic shares requests where none names a version.

    Raises:
        RequestError: There is none, or it is not ready.
    """
    return call.service.choose(call.name, call.version, sticky_key(call.request))


def task_of(model: GraphModel) -> Task:
    """What prepares a model's inputs and reads its outputs.

    Raises:
        UnsupportedError: It has nothing of the kind.
    """
    task = model.task
    if task is None:
        raise UnsupportedError(
            f"the model {model.name!r} has no task that turns texts or pictures into its tensors",
            mend=f"Send tensors: POST /v2/models/{model.name}/infer.",
        )
    return task


async def run_inputs(
    call: Call,
    model: GraphModel,
    inputs: Sequence[Input],
    reduce: Callable[[Task, Arrays, Arrays, Sequence[Input]], Sequence[Result]],
) -> tuple[GraphModel, list[Result]]:
    """Answer all inputs of a request by one version of a model.

    Args:
        call: The request.
        model: From `choose_model`.
        inputs: At least one.
        reduce: Task, outputs, the arrays they are of, and inputs → one result for each of these inputs.

    Returns:
        The model that answered, which is another one where it was replaced meanwhile, and the results in order.

    Raises:
        RequestError: It cannot be taken, or failed.
        EdgesmithError: An input is not what the task takes.
    """
    for _ in range(_MAX_SWAPS):
        run = _Run(call, model, task_of(model), inputs, reduce)
        try:
            return model, await run.answer()
        except _SwappedError:
            found = call.service.model(call.name, model.version)
            if not isinstance(found, GraphModel):
                break
            model = found
        finally:
            run.close()
    raise NotReadyError(f"the model {call.name!r} is being replaced", mend="Try again in a second.")


@dataclass(slots=True)
class _Run(Generic[Result]):
    """One request's way through one model."""

    call: Call
    model: GraphModel
    task: Task
    inputs: Sequence[Input]
    reduce: Callable[[Task, Arrays, Arrays, Sequence[Input]], Sequence[Result]]
    jobs: set[Job] = field(default_factory=set)
    is_gone: bool = False
    is_first: bool = True
    """Whether no job of the request has been counted yet."""
    _waiting: set[asyncio.Future[None]] = field(default_factory=set)

    async def answer(self) -> list[Result]:
        """Run piece after piece, two at a time."""
        self.call.request.on_close(self._leave)
        results: dict[int, Result] = {}
        pieces = self._pieces()
        if len(pieces) == 1:  # the usual case, without further asyncio tasks
            await self._run_piece(pieces[0], results)
            return [results[index] for index in range(len(self.inputs))]
        room = asyncio.Semaphore(_NUM_AT_ONCE)

        async def run_piece(piece: Sequence[int]) -> None:
            async with room:
                await self._run_piece(piece, results)

        tasks = [asyncio.create_task(run_piece(piece)) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()  # they hold an error that holds this frame
        return [results[index] for index in range(len(self.inputs))]

    def _pieces(self) -> list[list[int]]:
        """Places of the inputs that run together: no more than the model takes, of similar length."""
        if isinstance(self.task, ImageClassification):  # bounded by their bytes and pixels
            return [[index] for index in range(len(self.inputs))]
        lengths = [_length(given) for given in self.inputs]
        size = max(1, self.model.max_batch_size)
        pieces: list[list[int]] = []
        num_chars = 0
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            if lengths[index] > _MAX_CHARS:
                raise TooLargeError(
                    f"text {index} has {lengths[index]:,} characters; at most {_MAX_CHARS:,} are taken",
                    mend="Cut it: the model looks at some hundred words.",
                )
            num_chars += lengths[index]
            if not pieces or len(pieces[-1]) == size or num_chars > _MAX_CHARS:
                pieces.append([])
                num_chars = lengths[index]
            pieces[-1].append(index)
        return pieces

    async def _run_piece(self, piece: Sequence[int], results: dict[int, Result]) -> None:
        if self.is_gone:
            raise ClientGoneError("the client has gone")
        given = [self.inputs[index] for index in piece]
        arrays = await self._encode(given)
        outputs = await self._infer(arrays)
        reduced = await self._reduce(given, arrays, outputs)
        results |= zip(piece, reduced, strict=True)

    async def _encode(self, given: list[Any]) -> Arrays:
        task = self.task
        if isinstance(task, ImageClassification):
            return await workers().run(lambda: task.encode(given))
        if sum(map(_length, given)) <= _SHORT_CHARS:
            return task.encode(given)
        return await workers().run(lambda: task.encode(given))

    async def _reduce(self, given: list[Any], arrays: Arrays, outputs: Arrays) -> Sequence[Result]:
        # Where its entities stand in a text is found by splitting it again, which takes as long as encoding it.
        if isinstance(self.task, TokenClassification) and sum(map(_length, given)) > _SHORT_CHARS:
            return await workers().run(lambda: self.reduce(self.task, outputs, arrays, given))
        return self.reduce(self.task, outputs, arrays, given)

    async def _infer(self, arrays: Arrays) -> Arrays:
        if self.is_gone:
            raise ClientGoneError("the client has gone")
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call = self.call

        def done(_: Job) -> None:  # holds nothing of the request: a model may keep its last job until the next one
            if not finished.done():
                finished.set_result(None)

        num_rows = len(next(iter(arrays.values())))
        job = Job(arrays=arrays, done=done, num_rows=num_rows, received_ns=call.request.received_ns)
        answering = call.service.infer(
            call.name,
            self.model.version,
            job,
            protocol=call.protocol,
            key=sticky_key(call.request),
            request_id=call.identity,
            is_chosen=call.version is None,
            counts=self.is_first,
        )
        self.is_first = False
        self.jobs.add(job)
        if answering is not self.model:
            job.is_cancelled = True
            raise _SwappedError
        self._waiting.add(finished)
        await finished
        self._waiting.discard(finished)
        self.jobs.discard(job)
        if self.is_gone:
            raise ClientGoneError("the client has gone")
        try:
            if job.error is not None:
                raise job.error
            assert job.outputs is not None
            return job.outputs
        finally:
            del job  # which holds the error that holds this frame

    def _leave(self) -> None:
        """The client has gone: what has not begun is not begun."""
        self.is_gone = True
        for job in self.jobs:
            job.is_cancelled = True
        for finished in self._waiting:
            if not finished.done():
                finished.set_result(None)

    def close(self) -> None:
        """Drop what is still queued, after a failure or at the end."""
        self.call.request.on_close(None)
        for job in self.jobs:
            job.is_cancelled = True


def _length(given: Input) -> int:
    match given:
        case Example():
            return len(given.text) + len(given.text_pair or "")
        case (str(first), str(second)):
            return len(first) + len(second)
        case _:
            return len(given)
