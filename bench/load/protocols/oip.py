"""Open Inference Protocol v2 over HTTP: what KServe, Triton and our own server speak.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md and extension_binary_data.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from numpy.typing import NDArray

from bench.load.plan import LoadPlan
from bench.load.probe import Server
from bench.load.protocols.base import AnswerError, Header, check_status, read_json_object
from bench.load.protocols.oip_inputs import read_batches
from bench.load.protocols.tensors import (
    DTYPES,
    TensorSpec,
    check_tensor_bytes,
    check_tensor_json,
    tensor_bytes,
    tensor_list,
)
from bench.load.target import Target, make_request
from edgesmith.errors import ServerError, UnsupportedError, UsageError

__all__ = ["OipChecker", "is_oip_path", "prepare_oip"]

_MODEL = re.compile(r"(?P<server>.*/v2)/models/(?P<name>[^/]+)(/versions/[^/]+)?")
_JSON_BYTES = "inference-header-content-length"
_BINARY = "binary_tensor_data"

Arrays = Mapping[str, NDArray[Any]]


def is_oip_path(path: str) -> bool:
    """Whether a path can only be one of this protocol."""
    return "/v2/models/" in path or path.endswith(("/infer", "/v2"))


def prepare_oip(plan: LoadPlan, server: Server, path: str) -> Target:
    """Read the model's metadata and make the requests.

    Args:
        plan: The load.
        server: To ask.
        path: Of the model, with `/infer` or without.

    Raises:
        ServerError: The server does not have the model or says nothing of its inputs.
        UsageError: The data do not fit the inputs.
        UnsupportedError: The model has a type of tensor that cannot be sent.
        DataError: The data file is damaged.
    """
    model_path = _model_path(path, plan.model)
    metadata = _read_metadata(server, model_path)
    inputs, outputs = _specs(metadata, "inputs"), _specs(metadata, "outputs")
    matched = _MODEL.fullmatch(model_path)
    about = server.get(matched["server"]) if matched else None
    extensions = about.value.get("extensions", []) if about is not None and about.is_ok else []
    is_binary = plan.binary if plan.binary is not None else _BINARY in extensions
    batches = read_batches(plan, inputs)
    infer_path = model_path + "/infer"
    requests = tuple(
        _make_request(plan, server, infer_path, inputs, arrays, is_binary=is_binary) for arrays in batches.arrays
    )
    said = dict(about.value) if about is not None and about.is_ok else {}
    return Target(
        protocol="oip",
        address=server.address,
        path=infer_path,
        requests=requests,
        num_rows=tuple(len(next(iter(arrays.values()))) for arrays in batches.arrays),
        contract={"outputs": [[spec.name, spec.datatype, list(spec.shape)] for spec in outputs]},
        payload=f"{batches.description}, {'binary tensors' if is_binary else 'JSON'}",
        server={
            "name": str(said.get("name", "")),
            "version": str(said.get("version", "")),
            "model": str(metadata.get("name", "")),
            "platform": str(metadata.get("platform", "")),
        },
        notes=batches.notes,
    )


def _model_path(path: str, model: str | None) -> str:
    path = path.removesuffix("/infer")
    if path.endswith("/v2"):
        if model is None:
            raise UsageError(f"{path}: names no model", mend="Name it: …/v2/models/NAME, or with --model.")
        return f"{path}/models/{quote(model, safe='')}"
    return path


def _read_metadata(server: Server, path: str) -> Mapping[str, Any]:
    found = server.get(path)
    if not found.is_ok:
        said = found.value.get("error") if isinstance(found.value, dict) else None
        raise ServerError(
            f"{server.address.base}: {found.summary}{f' ({said})' if said else ''}; the model's metadata are there in "
            "the Open Inference Protocol",
            mend="Check the model's name in the URL: …/v2/models/NAME.",
        )
    metadata: Mapping[str, Any] = found.value
    return metadata


def _specs(metadata: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
    entries = metadata.get(key)
    try:
        if not isinstance(entries, list) or not entries:
            raise TypeError(f"{key} is {entries!r}")  # noqa: TRY301
        specs = tuple(
            TensorSpec(str(entry["name"]), str(entry["datatype"]), tuple(int(size) for size in entry["shape"]))
            for entry in entries
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(
            f"the model's metadata have no usable {key} ({error})",
            mend="Give OpenAI's base (…/v1) if the server speaks that.",
        ) from error
    for spec in specs:
        if spec.datatype not in DTYPES:
            raise UnsupportedError(f"{key}: {spec.summary}: tensors of {spec.datatype} are not supported")
    return specs


def _make_request(
    plan: LoadPlan, server: Server, path: str, inputs: Sequence[TensorSpec], arrays: Arrays, *, is_binary: bool
) -> bytes:
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for spec in inputs:
        array = arrays[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype}
        if is_binary:
            blobs.append(tensor_bytes(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = tensor_list(array)
        entries.append(entry)
    message: dict[str, Any] = {"inputs": entries}
    if not is_binary:
        body = json.dumps(message, allow_nan=False).encode()
        return make_request(server.address, path, body, content_type="application/json", headers=plan.headers)
    message["parameters"] = {"binary_data_output": True}
    head = json.dumps(message).encode()
    return make_request(
        server.address,
        path,
        head + b"".join(blobs),
        content_type="application/octet-stream",
        headers={**plan.headers, "Inference-Header-Content-Length": str(len(head))},
    )


class OipChecker:
    """Checks answers: each output of the metadata, of its type and shape, with as many rows as were asked.

    Args:
        contract: The target's.
        num_rows: Of each request.
    """

    def __init__(self, contract: Mapping[str, Any], num_rows: Sequence[int]) -> None:
        self.outputs = tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in contract["outputs"])
        self.num_rows = num_rows

    def open_stream(self, index: int) -> None:
        """Give None: answers come in one piece."""
        del index

    def check(self, index: int, status: int, header: Header, body: bytes) -> None:
        """Check one answer; see `Checker`."""
        check_status(status, body)
        json_bytes = header(_JSON_BYTES)
        if json_bytes is None:
            message, rest = read_json_object(body), b""
        else:
            if not isinstance(json_bytes, str) or not json_bytes.isdigit() or int(json_bytes) > len(body):
                raise AnswerError("wrong answer", f"{_JSON_BYTES}: {json_bytes} of a body of {len(body)} bytes")
            message, rest = read_json_object(body[: int(json_bytes)]), body[int(json_bytes) :]
        outputs = message.get("outputs")
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            raise AnswerError("wrong answer", f"no outputs: {str(message)[:200]}")
        by_name = {output.get("name"): output for output in outputs}
        blobs = _split(outputs, rest)
        for spec in self.outputs:
            if spec.name not in by_name:
                there = ", ".join(map(str, by_name)) or "none"
                raise AnswerError("wrong answer", f"the output {spec.name!r} is missing; there: {there}")
            if spec.name in blobs:
                check_tensor_bytes(spec, self.num_rows[index], by_name[spec.name], blobs[spec.name])
            else:
                check_tensor_json(spec, self.num_rows[index], by_name[spec.name])


def _split(outputs: Sequence[Mapping[str, Any]], rest: bytes) -> dict[str, bytes]:
    """Cut the bytes behind the JSON into those of each output that says how many are its own."""
    blobs: dict[str, bytes] = {}
    begin = 0
    for output in outputs:
        parameters = output.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - begin:
            raise AnswerError("wrong answer", f"binary_data_size {size!r}, and {len(rest) - begin} bytes are left")
        blobs[str(output.get("name"))] = rest[begin : begin + size]
        begin += size
    if begin != len(rest):
        raise AnswerError("wrong answer", f"{len(rest) - begin} bytes behind the last output")
    return blobs
