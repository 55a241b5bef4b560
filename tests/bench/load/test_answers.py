from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.load.protocols.base import AnswerError
from bench.load.protocols.oip import OipChecker
from bench.load.protocols.openai import OpenAiChecker
from bench.load.protocols.tensors import DTYPES, TensorSpec, check_tensor_bytes, check_tensor_json, tensor_bytes

CHECKER = OipChecker({"outputs": [["logits", "FP32", [-1, 3]], ["label", "BYTES", [-1]]]}, [2])
RIGHT: list[dict[str, Any]] = [
    {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [1, 2.5, 3, 4, 5, 6]},
    {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
]


def check(outputs: Any, status: int = 200) -> None:
    CHECKER.check(0, status, {}.get, json.dumps({"outputs": outputs}).encode())


def changed(**values: Any) -> list[dict[str, Any]]:
    return [RIGHT[0] | values, RIGHT[1]]


def test_right_answers_pass_in_any_order_flat_or_nested_with_further_outputs() -> None:
    check(RIGHT)
    check(RIGHT[::-1])
    check(changed(data=[[1, 2, 3], [4, 5, 6]]))
    check([*RIGHT, {"name": "more", "datatype": "INT8", "shape": [], "data": [1]}])


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (changed(shape=[2, 4]), "wrong shape"),
        (changed(shape=[3, 3], data=[1.0] * 9), "wrong shape"),
        (changed(shape=[6]), "wrong shape"),
        (changed(shape="6"), "wrong shape"),
        (changed(shape=[2, True]), "wrong shape"),
        (changed(data=[1.0] * 5), "wrong shape"),
        (changed(data=[[1.0] * 3, 2.0]), "wrong shape"),
        (changed(data=None), "wrong answer"),
        (changed(data=[None] * 6), "wrong answer"),
        (changed(data=["1"] * 6), "wrong answer"),
        (changed(data=[True] * 6), "wrong answer"),
        (changed(datatype="FP64"), "wrong answer"),
        (changed(name="other"), "wrong answer"),
        (RIGHT[:1], "wrong answer"),
        ([], "wrong answer"),
        (None, "wrong answer"),
        ([1], "wrong answer"),
    ],
)
def test_wrong_answers_fail_by_name(outputs: Any, name: str) -> None:
    with pytest.raises(AnswerError) as caught:
        check(outputs)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("status", "body", "name"),
    [
        (503, b"overloaded", "http 503"),
        (302, b"", "http 302"),
        (200, b"", "not JSON"),
        (200, b"<html>", "not JSON"),
        (200, b"[1]", "not JSON"),
        (200, b"\xff\xfe", "not JSON"),
        (200, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, b'{"error": "no"}', "wrong answer"),
    ],
)
def test_answers_that_are_none_fail_by_name(status: int, body: bytes, name: str) -> None:
    with pytest.raises(AnswerError) as caught:
        CHECKER.check(0, status, {}.get, body)
    assert caught.value.name == name


def binary(blob: bytes, size: int, header: str | None = None) -> None:
    head = json.dumps(
        {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": size}}]}
    ).encode()
    checker = OipChecker({"outputs": [["logits", "FP32", [-1, 3]]]}, [2])
    length = header or str(len(head))
    checker.check(0, 200, {"inference-header-content-length": length}.get, head + blob)


def test_binary_answers_are_checked() -> None:
    right = np.arange(6, dtype="<f4").tobytes()
    binary(right, 24)
    for blob, size, header in [
        (right, 20, None),
        (right, 28, None),
        (right[:20], 20, None),
        (right + b"x", 24, None),
        (right, 24, "100000"),
        (right, 24, "x"),
        (right, -1, None),
        (np.full(6, np.nan, "<f4").tobytes(), 24, None),
    ]:
        with pytest.raises(AnswerError):
            binary(blob, size, header)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type_of_tensor_passes_its_own_check(datatype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(DTYPES[datatype])
    if datatype == "BYTES":
        array = np.array([["ä", ""], ["c", "dd"]], dtype=object)
    spec = TensorSpec("x", datatype, (-1, 2))
    output = {"datatype": datatype, "shape": [2, 2]}
    check_tensor_bytes(spec, 2, output, tensor_bytes(array))
    check_tensor_json(spec, 2, output | {"data": json.loads(json.dumps(array.ravel().tolist()))})
    with pytest.raises(AnswerError):
        check_tensor_bytes(spec, 2, output, tensor_bytes(array)[:-1])


def generated(choice: dict[str, Any], operation: str = "/chat/completions") -> None:
    checker = OpenAiChecker({"operation": operation, "is_stream": False}, [1])
    checker.check(0, 200, {}.get, json.dumps({"choices": [choice]}).encode())


def test_generated_text_must_be_there_and_end_for_a_reason() -> None:
    generated({"message": {"content": "x"}, "finish_reason": "stop"})
    generated({"text": "x", "finish_reason": "length"}, "/completions")
    for choice, name in [
        ({"message": {"content": ""}, "finish_reason": "stop"}, "no token"),
        ({"message": {"content": "x"}, "finish_reason": None}, "finish_reason"),
        ({"text": "x"}, "finish_reason"),
    ]:
        with pytest.raises(AnswerError) as caught:
            generated(choice)
        assert caught.value.name == name


def test_embeddings_must_be_one_for_each_text_and_of_one_length() -> None:
    checker = OpenAiChecker({"operation": "/embeddings", "is_stream": False}, [2, 2])

    def check_vectors(*vectors: Any) -> None:
        body = json.dumps({"data": [{"embedding": vector} for vector in vectors]}).encode()
        checker.check(0, 200, {}.get, body)

    check_vectors([1, 2.5], [3, 4])
    for vectors, name in [
        (([1, 2],), "wrong shape"),
        (([1, 2], [1, 2, 3]), "wrong shape"),
        (([1, 2], []), "wrong answer"),
        (([1, 2], ["a", "b"]), "wrong answer"),
    ]:
        with pytest.raises(AnswerError) as caught:
            check_vectors(*vectors)
        assert caught.value.name == name
