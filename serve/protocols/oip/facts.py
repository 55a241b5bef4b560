"""What the protocol says of a server and its models, as JSON-able values; gRPC fills its messages from the same.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
docs/protocol/extension_model_configuration.md, extension_statistics.md and extension_model_repository.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from edgesmith import __version__
from edgesmith.errors import UnsupportedError
from serve.errors import ModelNotFoundError, NotReadyError, RequestError
from serve.models.graph_model import GraphModel
from serve.models.repository import IndexEntry
from serve.protocols.oip.described import TEXT_SUFFIX, Described, Model, describe_model, split_name
from serve.protocols.oip.tensors import Tensor
from serve.service import Service

__all__ = [
    "check_load_parameters",
    "find_model",
    "is_model_ready",
    "is_ready",
    "list_index",
    "model_config",
    "model_metadata",
    "model_statistics",
    "server_metadata",
]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "edgesmith", "version": __version__, "extensions": list(EXTENSIONS)}


def is_ready(service: Service) -> bool:
    """Whether requests are welcome: every model that the server was started with answers now."""
    return not service.is_draining and service.repository.all_ready()


def find_model(service: Service, name: str, version: str | None) -> tuple[Model, Described, bool]:
    """Give a model, its description, and whether it was asked for by its name for texts.

    Raises:
        RequestError: There is none, or it is not ready.
    """
    own, is_text = split_name(name)
    model = service.model(own, version or None)
    described = describe_model(model)
    if is_text and described.text is None:
        raise ModelNotFoundError(f"{own} has no task that takes texts", mend=f"Ask for {own}.")
    return model, described, is_text


def is_model_ready(service: Service, name: str, version: str | None) -> bool:
    """Whether a model answers.

    Raises:
        ModelNotFoundError: There is none.
    """
    try:
        model, _, _ = find_model(service, name, version)
    except NotReadyError:
        return False
    return service.repository.is_ready(model.name, version or None)


def model_metadata(service: Service, name: str, version: str | None) -> dict[str, Any]:
    """Versions, platform and tensors of a model.

    Raises:
        RequestError: There is none, or it is not ready.
    """
    model, described, is_text = find_model(service, name, version)
    inputs, outputs = _tensors(described, is_text=is_text)
    return {
        "name": name,
        "versions": [version] if version else list(service.repository.versions(model.name)),
        "platform": _platform(model, described, is_text=is_text),
        "inputs": [_tensor(tensor) for tensor in inputs],
        "outputs": [_tensor(tensor) for tensor in outputs],
    }


def model_config(service: Service, name: str, version: str | None) -> dict[str, Any]:
    """The part of Triton's model configuration that says something here.

    Raises:
        RequestError: There is none, or it is not ready.
    """
    model, described, is_text = find_model(service, name, version)
    inputs, outputs = _tensors(described, is_text=is_text)
    optional = described.text.optional_inputs if is_text and described.text is not None else ()
    # With batching, Triton puts the rows before dims that cannot be empty: what has only rows cannot be told so.
    is_batched = described.is_batched and all(len(one.shape) > 1 for one in (*inputs, *optional, *outputs))
    max_batch_size = described.max_batch_size if is_batched else 0
    config: dict[str, Any] = {
        "name": name,
        "platform": _platform(model, described, is_text=is_text),
        "backend": described.backend,
        "version_policy": {"all": {}},
        "max_batch_size": max_batch_size,
        "input": [
            _config_tensor(tensor, is_batched=is_batched) | {"format": "FORMAT_NONE", "optional": tensor in optional}
            for tensor in (*inputs, *optional)
        ],
        "output": [_config_tensor(tensor, is_batched=is_batched) | {"label_filename": ""} for tensor in outputs],
    }
    if max_batch_size > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": model.spec.max_queue_delay_us}
    return config


def model_statistics(service: Service, name: str | None, version: str | None) -> list[dict[str, Any]]:
    """Counts and times of one model, of one of its versions, or of all models.

    Raises:
        RequestError: There is none, or it is not ready.
    """
    repository = service.repository
    if name is None:
        wanted = [(entry.name, entry.version) for entry in repository.index() if entry.state == "READY"]
    else:
        model, _, _ = find_model(service, name, version)
        wanted = [(model.name, one) for one in ([version] if version else repository.versions(model.name))]
    return [
        {"name": one, "version": number, **repository.get(one, number).stats.snapshot(), "memory_usage": []}
        for one, number in wanted
    ]


def list_index(service: Service, *, is_ready_only: bool) -> list[dict[str, str]]:
    """Every version of every model and its state, and what else could be loaded.

    Models that take texts stand there under both names.

    Raises:
        StorageError: The repository's folder cannot be read.
    """
    found: list[dict[str, str]] = []
    for entry in service.repository.index():
        if is_ready_only and entry.state != "READY":
            continue
        found.append(_index_entry(entry, entry.name))
        if entry.state == "READY" and _takes_texts(service, entry):
            found.append(_index_entry(entry, entry.name + TEXT_SUFFIX))
    if not is_ready_only:
        found += [_index_entry(entry, entry.name) for entry in service.repository.not_loaded()]
    return found


def check_load_parameters(name: str, parameters: Iterable[str]) -> None:
    """Refuse to load what the server was not started with.

    Raises:
        ModelNotFoundError: The name can be none of a model.
        UnsupportedError: The request brings files or a configuration.
    """
    if not _NAME.fullmatch(name):
        raise ModelNotFoundError(f"there can be no model {name[:80]!r}")
    for parameter in parameters:
        if parameter == "config" or parameter.startswith("file:"):
            raise UnsupportedError(
                f"the parameter {parameter[:80]!r} brings a model with the request",
                mend="Models come from where the server was started with, and no other place.",
            )


def _takes_texts(service: Service, entry: IndexEntry) -> bool:
    try:
        return describe_model(service.model(entry.name, entry.version)).text is not None
    except RequestError:
        return False


def _index_entry(entry: IndexEntry, name: str) -> dict[str, str]:
    return {"name": name, "version": entry.version, "state": entry.state, "reason": entry.reason}


def _tensors(described: Described, *, is_text: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    if is_text and described.text is not None:
        return described.text.inputs, described.text.outputs
    return described.inputs, described.outputs


def _platform(model: Model, described: Described, *, is_text: bool) -> str:
    if is_text and isinstance(model, GraphModel) and model.task is not None:
        return f"edgesmith_{model.task.name}"
    return described.platform


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _config_tensor(tensor: Tensor, *, is_batched: bool) -> dict[str, Any]:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = tensor.shape[1:] if is_batched else tensor.shape
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(dims) or [1]}
