"""The methods of `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from serve.errors import RequestError
from serve.http.router import AccessLevel
from serve.models.job import Job
from serve.protocols.grpc.conversion import make_message, read_message
from serve.protocols.grpc.messages import DATA_TYPES, message_class
from serve.protocols.oip import facts
from serve.protocols.oip.described import describe_model, split_name
from serve.protocols.oip.inference import Inference, deadline_of
from serve.protocols.oip.preparation import Asked, Prepared
from serve.protocols.workers import workers
from serve.service import Service

__all__ = ["METHODS", "PROTOCOL", "Call", "Method"]

PROTOCOL = "grpc"

_MAX_CONTENTS_ON_LOOP = 1 << 18


@dataclass(slots=True)
class Call:
    """One call of a method.

    Attributes:
        service: Where the models are.
        message: The request.
        received_ns: When it was there.
        deadline_ns: When the client no longer waits; None if it does not say.
        key: Requests of one key go to one version.
        request_id: What the request is called where its message does not say; set to what that says.
        version: Set to the version that answered.
    """

    service: Service
    message: Any
    received_ns: int
    deadline_ns: int | None = None
    key: str | None = None
    request_id: str = ""
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
    try:
        inference = await _read(message, service)
        call.request_id = inference.id or call.request_id
        asked = Asked(service, name, is_named, message.model_version or None, call.key, inference)
        prepared = None if asked.is_plain else await asked.finish(asked.prepare())
    except Exception as error:
        service.failed(name, PROTOCOL, error, received_ns=call.received_ns)
        raise
    outputs, labels = await _run(call, asked, prepared)
    if prepared is not None and prepared.view is not None:
        tell = partial(prepared.view.tell, outputs, prepared.arrays, prepared.examples)
        outputs = await asyncio.to_thread(tell)
    return make_message(message.model_name, call.version, inference, outputs, labels)


async def _read(message: Any, service: Service) -> Inference:
    """Read a request: raw tensors here, values one by one on another thread where they are many."""
    if message.raw_input_contents or message.ByteSize() <= _MAX_CONTENTS_ON_LOOP:
        return read_message(message, service.limits)
    return await workers().run(partial(read_message, message, service.limits))


async def _run(call: Call, asked: Asked, prepared: Prepared | None) -> tuple[Mapping[str, NDArray[Any]], Sequence[str]]:
    """Have a graph run, and give its outputs and the names of its classes."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(job: Job) -> None:
        del job
        if not ended.done():
            ended.set_result(None)

    arrays = asked.inference.arrays if prepared is None else prepared.arrays
    first = next(iter(arrays.values()))
    own = (call.deadline_ns, deadline_of(call.received_ns, asked.inference.timeout_us))
    deadline_ns = min((at for at in own if at is not None), default=None)
    job = Job(
        arrays,
        finish,
        first.shape[0] if first.ndim else 1,
        call.received_ns,
        deadline_ns,
        is_own_deadline=deadline_ns is not None,
    )
    try:
        model = call.service.infer(
            asked.name,
            asked.version if prepared is None else prepared.model.version,
            job,
            protocol=PROTOCOL,
            key=call.key,
            request_id=call.request_id,
            is_chosen=asked.version is None,
        )
        call.version = model.version
        await ended
        if job.error is not None or job.outputs is None:
            raise job.error or RequestError("the request was dropped")
        return job.outputs, describe_model(model).labels
    except asyncio.CancelledError:  # the client has gone
        job.is_cancelled = True
        raise
    finally:
        del job  # its error knows this frame: together they would stay until Python looks for cycles


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
