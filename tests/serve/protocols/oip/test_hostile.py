"""Whatever a client sends, it is told what is wrong with it, and the server goes on."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgesmith.errors import UnsupportedError
from serve.config import Limits
from serve.errors import RequestError
from serve.protocols.oip.infer_route import decompress
from serve.protocols.oip.inference import InferenceReader
from serve.protocols.oip.tensors import DATATYPES
from tests.serve.protocols.oip.serving import Serving

READER = InferenceReader(Limits(max_rows=8))
WILD: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": st.integers(-1, 40) | WILD,
        "binary_data": st.booleans() | WILD,
        "classification": st.integers(-1, 3) | WILD,
        "shared_memory_region": WILD,
    },
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "text", "text_pair", "y"]) | WILD,
        "datatype": st.sampled_from([*DATATYPES, "BF16"]) | WILD,
        "shape": st.lists(st.integers(-1, 4) | st.just(2**62), max_size=4) | WILD,
        "data": st.lists(st.integers() | st.floats(allow_nan=False) | st.text(max_size=3), max_size=6) | WILD,
        "parameters": PARAMETERS | WILD,
    },
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=3) | WILD,
        "inputs": st.lists(TENSOR | WILD, max_size=3) | WILD,
        "outputs": st.lists(TENSOR | WILD, max_size=3) | WILD,
        "parameters": st.fixed_dictionaries({}, optional={"timeout": WILD, "binary_data_output": WILD}) | WILD,
    },
)


@settings(max_examples=150)
@given(MESSAGE | WILD, st.binary(max_size=48), st.none() | st.binary(max_size=4))
@example({"inputs": [{"name": "x", "shape": [1] * 32, "datatype": "INT8", "data": [1]}]}, b"", None)
@example({"inputs": [{"name": "x", "shape": [], "datatype": "INT8", "data": [1]}]}, b"", None)
def test_any_message_is_read_or_refused(message: Any, tail: bytes, length: bytes | None) -> None:
    head = json.dumps(message).encode()
    try:
        inference = READER.read(head + tail, length if length is not None else b"%d" % len(head))
    except (RequestError, UnsupportedError):
        pass  # and nothing else
    else:
        for entry in message["inputs"]:
            assert list(inference.arrays[entry["name"]].shape) == entry["shape"]


@settings(max_examples=150)
@given(st.binary(max_size=100), st.sampled_from([b"gzip", b"deflate", b"br", b""]))
def test_any_compressed_bytes_are_read_or_refused(body: bytes, encoding: bytes) -> None:
    with contextlib.suppress(RequestError, UnsupportedError):  # and nothing else
        assert len(decompress(body, encoding, 64)) <= 64


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["affine", "news", "news:text", "words", "encoder", "%20", "nothing:text"]), MESSAGE)
def test_server_answers_any_message_and_stays_ready(serving: Serving, model: str, message: Any) -> None:
    answer = serving.ask(f"/v2/models/{model}/infer", json.dumps(message).encode())
    assert answer.status in (200, 400, 404, 413, 503), answer.body
    if answer.status != 200:
        assert list(answer.value) == ["error"]
    assert serving.ask("/v2/health/ready").status == 200


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3))
def test_token_ids_out_of_range_are_the_clients_error(serving: Serving, ids: list[int]) -> None:
    inputs = [
        {"name": name, "shape": [1, 3], "datatype": "INT64", "data": ids}
        for name in ("input_ids", "token_type_ids", "attention_mask")
    ]
    assert serving.infer("news", {"inputs": inputs}).status in (200, 400)


def test_deep_json_is_refused(serving: Serving) -> None:
    body = b'{"inputs": ' + b"[" * 100 + b"]" * 100 + b"}"
    answer = serving.ask("/v2/models/affine/infer", body)
    assert answer.status == 400
    assert "101" in answer.value["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_lacks_comes_back_as_null_and_in_binary_as_it_is(serving: Serving, value: float) -> None:
    tail = np.array([[value, 0, 0, 0]], np.float32).tobytes()
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    assert serving.infer("affine", {"inputs": [entry]}, tail).value["outputs"][0]["data"][1] is None
    message = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    assert not np.isfinite(np.frombuffer(serving.infer("affine", message, tail).tail, np.float32)[1])
