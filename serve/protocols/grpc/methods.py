"""The methods of `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serve.errors import RequestError
from serve.http.router import AccessLevel
from serve.models.job import Job
from serve.protocols.grpc.conversion import make_message, read_message
from serve.protocols.grpc.messages import DATA_TYPES, message_class
from serve.protocols.oip import facts
from serve.protocols.oip.described import describe_model, split_name
from serve.protocols.oip.infer_route import choose_view, is_long
from serve.protocols.oip.inference import deadline_of
from serve.protocols.oip.text_view import TextView
from serve.service import Service

__all__ = ["METHODS", "PROTOCOL", "Call", "Method"]

PROTOCOL = "grpc"


@dataclass(slots=True)
class Call:
    """One call of a method.

    Attributes:
        service: Where the models are.
        message: The request.
        received_ns: When it was there.
        deadline_ns: When the client no longer waits; None if it does not say.
        key: Requests of one key go to one version.
        version: Set to the version that answered.
    """

    service: Service
    message: Any
    received_ns: int
    deadline_ns: int | None = None
    key: str | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Method:
    """A method.

    Attributes:
        handle: Makes the response.
        access: Who may call it.
    """

    handle: Callable[[Call], Awaitable[Any]]
    access: AccessLevel = "user"


async def _server_live(call: Call) -> Any:
    del call
    return message_class("ServerLiveResponse")(live=True)


async def _server_ready(call: Call) -> Any:
    return message_class("ServerReadyResponse")(ready=facts.is_ready(call.service))


async def _model_ready(call: Call) -> Any:
    ready = facts.is_model_ready(call.service, call.message.name, call.message.version or None)
    return message_class("ModelReadyResponse")(ready=ready)


async def _server_metadata(call: Call) -> Any:
    del call
    return message_class("ServerMetadataResponse")(**facts.server_metadata())


async def _model_metadata(call: Call) -> Any:
    said = facts.model_metadata(call.service, call.message.name, call.message.version or None)
    return message_class("ModelMetadataResponse")(**said)


async def _model_config(call: Call) -> Any:
    config = facts.model_config(call.service, call.message.name, call.message.version or None)
    for tensor in config["input"]:
        tensor |= {"data_type": DATA_TYPES.get(tensor["data_type"], 0), "format": 0}
    for tensor in config["output"]:
        tensor["data_type"] = DATA_TYPES.get(tensor["data_type"], 0)
    return message_class("ModelConfigResponse")(config=config)


async def _model_statistics(call: Call) -> Any:
    message = call.message
    said = facts.model_statistics(call.service, message.name or None, message.version or None)
    known = message_class("ModelStatistics").DESCRIPTOR.fields_by_name
    stats = [{key: value for key, value in one.items() if key in known} for one in said]
    return message_class("ModelStatisticsResponse")(model_stats=stats)


async def _repository_index(call: Call) -> Any:
    found = facts.list_index(call.service, is_ready_only=call.message.ready)
    return message_class("RepositoryIndexResponse")(models=found)


def _model_to_change(call: Call) -> str:
    """Give the name of a model to load or unload, which KServe's clients put where Triton's put the repository's."""
    name: str = call.message.model_name or call.message.repository_name
    facts.check_load_parameters(name, call.message.parameters.keys())
    return name


async def _load(call: Call) -> Any:
    await call.service.repository.load(_model_to_change(call))
    return message_class("RepositoryModelLoadResponse")()


async def _unload(call: Call) -> Any:
    await call.service.repository.unload(_model_to_change(call))
    return message_class("RepositoryModelUnloadResponse")()


async def _model_infer(call: Call) -> Any:
    service, message = call.service, call.message
    name, is_named = split_name(message.model_name)
    version = message.model_version or None
    view: TextView | None = None
    has_pairs = False
    try:
        inference = read_message(message, service.limits)
        arrays: Mapping[str, NDArray[Any]] = inference.arrays
        if is_named or inference.outputs is not None or TextView.takes(arrays):
            described = describe_model(service.model(name, version))
            view = choose_view(described, inference, name, is_named=is_named)
        if view is not None:
            examples = view.examples(arrays)
            has_pairs = examples[0].text_pair is not None
            encode = view.task.encode
            arrays = await asyncio.to_thread(encode, examples) if is_long(examples) else encode(examples)
    except Exception as error:
        service.failed(name, PROTOCOL, error, received_ns=call.received_ns)
        raise
    deadlines = [at for at in (call.deadline_ns, deadline_of(call.received_ns, inference.timeout_us)) if at is not None]
    outputs, labels = await _run(call, name, version, arrays, min(deadlines, default=None), inference.id)
    told: Mapping[str, NDArray[Any]] = outputs
    if view is not None:
        told = await asyncio.to_thread(view.tell, outputs, arrays, has_pairs=has_pairs)
    return make_message(message.model_name, call.version, inference, told, labels)


async def _run(
    call: Call,
    name: str,
    version: str | None,
    arrays: Mapping[str, NDArray[Any]],
    deadline_ns: int | None,
    request_id: str,
) -> tuple[Mapping[str, NDArray[Any]], Any]:
    """Have a graph run, and give its outputs and the names of its classes."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(job: Job) -> None:
        del job
        if not ended.done():
            ended.set_result(None)

    first = next(iter(arrays.values()))
    job = Job(arrays, finish, first.shape[0] if first.ndim else 1, call.received_ns, deadline_ns)
    model = call.service.infer(name, version, job, protocol=PROTOCOL, key=call.key, request_id=request_id)
    call.version = model.version
    try:
        await ended
    except asyncio.CancelledError:  # the client has gone
        job.is_cancelled = True
        raise
    if job.error is not None or job.outputs is None:
        raise job.error or RequestError("the request was dropped")
    return job.outputs, describe_model(model).labels


METHODS: Mapping[str, Method] = {
    "ServerLive": Method(_server_live, "open"),
    "ServerReady": Method(_server_ready, "open"),
    "ModelReady": Method(_model_ready),
    "ServerMetadata": Method(_server_metadata),
    "ModelMetadata": Method(_model_metadata),
    "ModelConfig": Method(_model_config),
    "ModelStatistics": Method(_model_statistics),
    "ModelInfer": Method(_model_infer),
    "RepositoryIndex": Method(_repository_index),
    "RepositoryModelLoad": Method(_load, "admin"),
    "RepositoryModelUnload": Method(_unload, "admin"),
}
"""Name → method. Those for shared memory, streams and settings are UNIMPLEMENTED."""
