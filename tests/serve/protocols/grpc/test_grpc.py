"""The gRPC server, called with our own messages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.errors import UsageError
from serve.access import Access
from serve.config import Limits, ModelSpec, ServerConfig
from serve.errors import (
    DeadlineError,
    EngineFailedError,
    ForbiddenError,
    MalformedError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    TooLargeError,
    UnauthorizedError,
)
from serve.protocols.grpc import GrpcServer
from serve.protocols.grpc.conversion import read_message
from serve.protocols.grpc.messages import message_class
from serve.protocols.grpc.status import status_of
from serve.protocols.oip.tensors import DATATYPES, bytes_of_array
from tests.serve.protocols.oip.conftest import TOKEN
from tests.serve.protocols.oip.serving import Serving
from tests.serve.protocols.oip.test_http import values_of

Code = grpc.StatusCode
ADMIN = (("authorization", f"Bearer {TOKEN}"),)


class Client:
    """Calls methods by name."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=options)

    def __call__(self, method: str, metadata: Any = None, timeout: float = 30.0, **fields: Any) -> Any:
        request = message_class(f"{method}Request")(**fields)
        return self.send(method, request.SerializeToString(), metadata, timeout)

    def send(self, method: str, data: bytes, metadata: Any = None, timeout: float = 30.0) -> Any:
        call = self.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return message_class(f"{method}Response").FromString(call(data, timeout=timeout, metadata=metadata))

    def refuse(self, method: str, code: grpc.StatusCode, metadata: Any = None, **fields: Any) -> str:
        """Call what must fail with this code, and give the message."""
        with pytest.raises(grpc.RpcError) as caught:
            self(method, metadata, **fields)
        error: Any = caught.value
        assert error.code() is code, error.details()
        return str(error.details())


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    made = Client(serving.grpc_address)
    yield made
    made.channel.close()


def tensor(name: str, datatype: str, array: Any, **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": array.shape} | fields


ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
AFFINE: dict[str, Any] = {
    "model_name": "affine",
    "inputs": [tensor("x", "FP32", ROW)],
    "raw_input_contents": [ROW.tobytes()],
}
CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}


def test_every_datatype_goes_through_raw_unchanged(client: Client) -> None:
    arrays = {datatype: values_of(datatype) for datatype in DATATYPES}
    answer = client(
        "ModelInfer",
        model_name="identity",
        id="r",
        inputs=[tensor(datatype.lower(), datatype, array) for datatype, array in arrays.items()],
        raw_input_contents=[bytes(bytes_of_array(array)) for array in arrays.values()],
    )
    assert (answer.model_name, answer.model_version, answer.id) == ("identity", "1", "r")
    assert [output.datatype for output in answer.outputs] == list(DATATYPES)
    assert list(answer.raw_output_contents) == [bytes(bytes_of_array(array)) for array in arrays.values()]


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_are_read_like_raw_ones(datatype: str) -> None:
    array = values_of(datatype)
    values = [text.encode() for text in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
    entry = tensor("a", datatype, array, contents={CONTENTS[datatype]: values})
    found = read_message(message_class("ModelInferRequest")(inputs=[entry]), Limits()).arrays["a"]
    assert found.dtype == DATATYPES[datatype]
    np.testing.assert_array_equal(found, array)


def test_version_parameters_and_classification_are_obeyed(client: Client) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"Shares fell."]}}
    wish = {"name": "scores", "parameters": {"classification": {"int64_param": 2}}}
    answer = client("ModelInfer", model_name="news:text", model_version="1", inputs=[text], outputs=[wish])
    assert (answer.model_name, answer.model_version) == ("news:text", "1")
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 2])
    assert client("ModelInfer", model_name="news", inputs=[text]).model_version == "2"
    parameters = {"timeout": {"int64_param": 1}}
    late = {"inputs": [text | {"contents": {"bytes_contents": [b"goal " * 5000]}}], "parameters": parameters}
    client.refuse("ModelInfer", Code.DEADLINE_EXCEEDED, model_name="news", **late)


@pytest.mark.parametrize(
    ("method", "code"), [("RepositoryModelLoad", Code.UNAUTHENTICATED), ("Nothing", Code.UNIMPLEMENTED)]
)
def test_who_may_not_call_is_told_before_any_message_is_sent(
    client: Client, method: str, code: grpc.StatusCode
) -> None:
    refused = threading.Event()

    def messages() -> Iterator[bytes]:
        refused.wait(10)
        yield b""

    call = client.channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
    ended = call.future(messages(), timeout=20)
    try:
        error: Any = ended.exception(timeout=5)
    finally:
        refused.set()
    assert error.code() is code


def test_metadata_say_what_http_says(serving: Serving, client: Client) -> None:
    for name in ("news", "news:text", "fixed"):
        said = serving.ask(f"/v2/models/{name}").value
        found = client("ModelMetadata", name=name)
        assert list(found.versions) == said["versions"]
        for role in ("inputs", "outputs"):
            ours = [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in getattr(found, role)
            ]
            assert ours == said[role]
    assert client("ServerMetadata").extensions == serving.ask("/v2").value["extensions"]
    index = client("RepositoryIndex", ready=True).models
    assert {one.name for one in index} >= {"news", "news:text"}


def test_config_statistics_and_health_are_told(client: Client) -> None:
    config = client("ModelConfig", name="affine").config
    assert (config.name, config.backend, list(config.input[0].dims)) == ("affine", "onnxruntime", [4])
    assert config.version_policy.HasField("all")
    before = client("ModelStatistics", name="affine").model_stats[0].inference_count
    client("ModelInfer", **AFFINE)
    assert client("ModelStatistics", name="affine").model_stats[0].inference_count == before + 1
    assert client("ServerLive").live
    assert client("ServerReady").ready
    assert client("ModelReady", name="affine").ready
    client.refuse("ModelReady", Code.NOT_FOUND, name="nothing")


def test_models_are_changed_by_the_admin_only(client: Client) -> None:
    client.refuse("RepositoryModelUnload", Code.UNAUTHENTICATED, model_name="image")
    client("RepositoryModelUnload", ADMIN, model_name="image")
    assert not client("ModelReady", name="image").ready
    client.refuse("ModelInfer", Code.UNAVAILABLE, **AFFINE | {"model_name": "image"})
    client.refuse("RepositoryModelLoad", Code.NOT_FOUND, ADMIN, model_name="../image")
    config = {"config": {"string_param": json.dumps({})}}
    client.refuse("RepositoryModelLoad", Code.INVALID_ARGUMENT, ADMIN, model_name="image", parameters=config)
    client("RepositoryModelLoad", ADMIN, repository_name="image")  # as KServe's clients place it
    assert client("ModelReady", name="image").ready


X = tensor("x", "FP32", ROW)


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"model_name": "nothing"}, Code.NOT_FOUND, "nothing"),
        ({"model_version": "9"}, Code.NOT_FOUND, "9"),
        ({"inputs": []}, Code.INVALID_ARGUMENT, "no inputs"),
        ({"raw_input_contents": [b"", b""]}, Code.INVALID_ARGUMENT, "2 raw_input_contents for 1"),
        ({"raw_input_contents": [b"123"]}, Code.INVALID_ARGUMENT, "3 bytes"),
        ({"raw_input_contents": []}, Code.INVALID_ARGUMENT, "no contents"),
        ({"inputs": [X | {"contents": {"fp32_contents": [1]}}]}, Code.INVALID_ARGUMENT, "both"),
        ({"inputs": [X | {"datatype": "FP31"}]}, Code.INVALID_ARGUMENT, "FP31"),
        ({"inputs": [X | {"shape": [1, -4]}]}, Code.INVALID_ARGUMENT, "-4"),
        ({"inputs": [X | {"shape": [2000, 4]}]}, Code.RESOURCE_EXHAUSTED, "2000 rows"),
        ({"inputs": [X | {"name": ""}]}, Code.INVALID_ARGUMENT, "name of its own"),
        ({"inputs": [X | {"parameters": {"shared_memory_region": {}}}]}, Code.INVALID_ARGUMENT, "shared memory"),
        ({"outputs": [{"name": "z"}]}, Code.INVALID_ARGUMENT, "'z'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, Code.INVALID_ARGUMENT, "name of its own"),
        ({"parameters": {"timeout": {"string_param": "x"}}}, Code.INVALID_ARGUMENT, "timeout"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(
    client: Client, changed: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    assert said in client.refuse("ModelInfer", code, **AFFINE | changed)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"int_contents": [300]}, "out of INT8's range"),
        ({"int_contents": [1, 2]}, "2 values"),
        ({"int64_contents": [1]}, "has int64_contents"),
        ({}, "no contents"),
    ],
)
def test_contents_that_do_not_fit_are_refused(client: Client, contents: dict[str, Any], said: str) -> None:
    bad = {"name": "int8", "datatype": "INT8", "shape": [1], "contents": contents}
    assert said in client.refuse("ModelInfer", Code.INVALID_ARGUMENT, model_name="identity", inputs=[bad])


def test_message_above_the_limit_is_refused(client: Client) -> None:
    client.refuse("ModelInfer", Code.RESOURCE_EXHAUSTED, **AFFINE | {"raw_input_contents": [b"\0" * (2 << 20)]})


def test_method_that_is_not_offered_is_unimplemented(client: Client) -> None:
    call = client.channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryRegister")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10)
    error: Any = caught.value
    assert error.code() is Code.UNIMPLEMENTED


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.sampled_from(["ModelInfer", "ModelMetadata", "RepositoryIndex"]))
def test_any_bytes_get_a_status_of_the_clients(client: Client, data: bytes, method: str) -> None:
    try:
        client.send(method, data)
    except grpc.RpcError as error:
        found: Any = error
        assert found.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def test_client_that_goes_leaves_nothing_behind(serving: Serving, client: Client) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"goal " * 20_000]}}
    data = message_class("ModelInferRequest")(model_name="news", inputs=[text]).SerializeToString()
    calls = [client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(data) for _ in range(5)]
    for call in calls:
        call.cancel()
    assert client("ModelInfer", **AFFINE).model_name == "affine"
    model: Any = serving.repository.get("news")
    until = time.monotonic() + 10
    while (model.num_queued or model.num_running) and time.monotonic() < until:
        time.sleep(0.01)
    assert (model.num_queued, model.num_running) == (0, 0)


def test_keys_are_asked_for_where_there_are_any(tmp_path: Any, affine_artifact: Any) -> None:
    spec = ModelSpec(name="affine", path=affine_artifact.path)
    with Serving(ServerConfig(models=(spec,), api_keys=("k-1",)), has_grpc=True) as serving:
        client = Client(serving.grpc_address)
        assert client("ServerLive").live
        client.refuse("ModelInfer", Code.UNAUTHENTICATED, **AFFINE)
        client.refuse("ModelInfer", Code.UNAUTHENTICATED, (("x-api-key", "k-2"),), **AFFINE)
        assert client("ModelInfer", (("x-api-key", "k-1"),), **AFFINE).model_version == "1"
        assert client("ModelInfer", (("authorization", "Bearer k-1"),), **AFFINE).model_version == "1"
        client.refuse("RepositoryModelUnload", Code.PERMISSION_DENIED, (("x-api-key", "k-1"),), model_name="affine")
        with pytest.raises(UsageError, match="cannot listen"):
            serving.call(GrpcServer(serving.service, Access()).start("127.0.0.1", serving.grpc.address[1]))
        client.channel.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MalformedError("m"), Code.INVALID_ARGUMENT),
        (UsageError("m"), Code.INVALID_ARGUMENT),
        (TooLargeError("m"), Code.RESOURCE_EXHAUSTED),
        (OverloadedError("m"), Code.RESOURCE_EXHAUSTED),
        (UnauthorizedError("m"), Code.UNAUTHENTICATED),
        (ForbiddenError("m"), Code.PERMISSION_DENIED),
        (ModelNotFoundError("m"), Code.NOT_FOUND),
        (NotReadyError("m"), Code.UNAVAILABLE),
        (EngineFailedError("m"), Code.UNAVAILABLE),
        (DeadlineError("m"), Code.DEADLINE_EXCEEDED),
    ],
)
def test_every_error_has_its_code(error: Exception, code: grpc.StatusCode) -> None:
    assert status_of(error) == (code, "m")


def test_what_no_client_may_see_is_internal() -> None:
    code, message = status_of(KeyError("a path"))
    assert code is Code.INTERNAL
    assert "path" not in message
