"""The protocol over HTTP, asked byte by byte as its specification has it."""

from __future__ import annotations

import gc
import gzip
import json
import struct
import threading
import weakref
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesmith.artifact import open_artifact
from edgesmith.tasks import load_task
from serve.errors import MalformedError
from serve.protocols.oip.infer_route import _MAX_JSON_ON_LOOP, InferRoute
from serve.protocols.oip.tensors import DATATYPES, bytes_of_array
from serve.runtime import open_engine
from tests.serve.protocols.oip.conftest import TOKEN
from tests.serve.protocols.oip.serving import Serving

TEXTS = ["A late goal won the cup.", "Shares fell."]
ROWS = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def words(*texts: str, name: str = "text") -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


def numbers(data: Any = (0.0, 1.0, 2.0, 3.0), **changed: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data} | changed


BINARY = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}


def values_of(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([["", "ä€", "c"], ["d", '"', "\n"]], np.object_)
    dtype = DATATYPES[datatype]
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[0, 1, 2], [info.min, info.max, 100]], dtype)


def expected_scores(classifier: Path, texts: list[str]) -> tuple[list[dict[str, Any]], Any]:
    task, engine = load_task(classifier), open_engine(open_artifact(classifier))
    arrays = task.encode(texts)
    outputs = engine.run(arrays)
    engine.close()
    return task.decode(outputs, arrays, texts), outputs["logits"]


@pytest.mark.parametrize("is_binary_in", [False, True])
@pytest.mark.parametrize("is_binary_out", [False, True])
def test_every_datatype_goes_through_a_model_unchanged(
    serving: Serving, is_binary_in: bool, is_binary_out: bool
) -> None:
    inputs, tail = [], b""
    for datatype in DATATYPES:
        array = values_of(datatype)
        entry: dict[str, Any] = {"name": datatype.lower(), "shape": [2, 3], "datatype": datatype}
        if is_binary_in:
            data = bytes(bytes_of_array(array))
            entry["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            entry["data"] = array.tolist()
        inputs.append(entry)
    answer = serving.infer("identity", {"inputs": inputs, "parameters": {"binary_data_output": is_binary_out}}, tail)
    assert answer.status == 200, answer.body
    assert [output["datatype"] for output in answer.value["outputs"]] == list(DATATYPES)
    begin = 0
    for output in answer.value["outputs"]:
        array = values_of(output["datatype"])
        assert output["shape"] == [2, 3]
        if is_binary_out:
            size = output["parameters"]["binary_data_size"]
            assert answer.tail[begin : begin + size] == bytes(bytes_of_array(array))
            begin += size
        else:
            assert np.array(output["data"], array.dtype).tolist() == array.ravel().tolist()


def test_answer_names_model_version_and_request(serving: Serving) -> None:
    answer = serving.infer("affine", {"id": "a/7", "inputs": [numbers()]})
    assert answer.status == 200
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["content-type"] == "application/json"
    assert answer.value == {
        "model_name": "affine",
        "model_version": "1",
        "id": "a/7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [43.0, 49.0, 55.0]}],
    }


def test_version_is_the_one_that_was_asked_for_else_the_newest(serving: Serving) -> None:
    body = json.dumps({"inputs": [words("Shares fell.")]}).encode()
    assert serving.ask("/v2/models/news/infer", body).value["model_version"] == "2"
    assert serving.ask("/v2/models/news/versions/1/infer", body).value["model_version"] == "1"
    assert serving.ask("/v2/models/news/versions/3/infer", body).status == 404


def test_outputs_come_as_they_were_asked_for(serving: Serving) -> None:
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = serving.infer("news", {"inputs": [words(*TEXTS)], "outputs": outputs})
    scores, label = answer.value["outputs"]
    assert scores == {"name": "scores", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    assert np.frombuffer(answer.tail, np.float32).reshape(2, 3).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert (label["datatype"], label["shape"]) == ("BYTES", [2])


def test_texts_are_answered_with_what_the_task_says(serving: Serving, classifier_path: Path) -> None:
    said, logits = expected_scores(classifier_path, TEXTS)
    for model in ("news", "news:text"):
        answer = serving.infer(model, {"inputs": [words(*TEXTS)]})
        assert answer.value["model_name"] == model
        found = {output["name"]: output for output in answer.value["outputs"]}
        assert found["label"]["data"] == [one["label"] for one in said]
        assert found["score"]["data"] == pytest.approx([one["score"] for one in said])
        assert found["logits"]["data"] == pytest.approx(logits.ravel().tolist(), rel=1e-5)


def test_long_texts_are_answered_like_short_ones(serving: Serving, classifier_path: Path) -> None:
    texts = ["goal " * 2000, "Shares fell."]
    said, _ = expected_scores(classifier_path, texts)
    answer = serving.infer("news", {"inputs": [words(*texts)], "outputs": [{"name": "score"}]})
    assert answer.value["outputs"][0]["data"] == pytest.approx([one["score"] for one in said])


def test_pairs_of_a_classifier_are_read_together(serving: Serving, classifier_path: Path) -> None:
    pair = ("Is it out?", "The new phone is out.")
    said, _ = expected_scores(classifier_path, [pair])  # type: ignore[list-item]
    answer = serving.infer("news", {"inputs": [words(pair[0]), words(pair[1], name="text_pair")]})
    assert answer.value["outputs"][1]["data"] == pytest.approx([said[0]["score"]])


def test_encoder_gives_embeddings_and_similarities(serving: Serving) -> None:
    alone = serving.infer("encoder", {"inputs": [words("one", "two", "one")]}).value["outputs"]
    assert [output["name"] for output in alone] == ["embedding"]
    first, second, third = np.array(alone[0]["data"]).reshape(3, -1)
    np.testing.assert_allclose(first, third, rtol=1e-5)
    pairs = serving.infer("encoder:text", {"inputs": [words("one", "one"), words("two", "one", name="text_pair")]})
    found = {output["name"]: output["data"] for output in pairs.value["outputs"]}
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found["similarity"] == pytest.approx([cosine, 1.0], abs=1e-5)
    np.testing.assert_allclose(found["embedding_pair"][: len(second)], second, rtol=1e-4)


def test_graph_with_a_text_input_of_its_own_gets_it(serving: Serving) -> None:
    answer = serving.infer("words", {"inputs": [words("a", "ß")]})
    assert answer.value["outputs"] == [{"name": "y", "datatype": "BYTES", "shape": [2], "data": ["a", "ß"]}]
    assert serving.infer("words:text", {"inputs": [words("a")]}).status == 400


def test_classification_gives_the_best_classes_with_their_labels(serving: Serving, classifier_path: Path) -> None:
    said, _ = expected_scores(classifier_path, TEXTS)
    outputs = [{"name": "scores", "parameters": {"classification": 2}}]
    output = serving.infer("news", {"inputs": [words(*TEXTS)], "outputs": outputs}).value["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    score, index, label = output["data"][2].split(":")
    assert (int(index), label) == (said[1]["index"], said[1]["label"])
    assert float(score) == pytest.approx(said[1]["score"], abs=1e-6)
    unnamed = {"inputs": [numbers()], "outputs": [{"name": "y", "parameters": {"classification": 9}}]}
    data = serving.infer("affine", unnamed).value["outputs"][0]["data"]
    assert data == ["55.000000:2", "49.000000:1", "43.000000:0"]


def test_several_inputs_lie_back_to_back(serving: Serving) -> None:
    ids = np.array([[101, 2000, 102]])
    arrays = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    inputs = [
        {"name": name, "shape": [1, 3], "datatype": "INT64", "parameters": {"binary_data_size": 24}} for name in arrays
    ]
    tail = b"".join(array.tobytes() for array in arrays.values())
    binary = serving.infer("news", {"inputs": inputs}, tail)
    plain = serving.infer(
        "news",
        {
            "inputs": [
                {"name": name, "shape": [1, 3], "datatype": "INT64", "data": array.tolist()}
                for name, array in arrays.items()
            ]
        },
    )
    assert binary.status == 200
    assert binary.value == plain.value


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_compressed_bodies_are_read(serving: Serving, encoding: str, compress: Any) -> None:
    for texts in (["Shares fell."], [json.dumps(list(range(3000)))]):  # the second is decompressed on a thread
        body = json.dumps({"inputs": [words(*texts)]}).encode()
        answer = serving.ask("/v2/models/words/infer", compress(body), content_encoding=encoding)
        assert answer.status == 200
        assert answer.value["outputs"][0]["data"] == texts
    head = json.dumps({"inputs": [BINARY]})
    body = compress(head.encode() + ROWS["x"][:1].tobytes())
    answer = serving.ask(
        "/v2/models/affine/infer", body, content_encoding=encoding, inference_header_content_length=str(len(head))
    )
    assert answer.value["outputs"][0]["data"] == [43.0, 49.0, 55.0]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("gzip", gzip.compress(b" " * (2 << 20)), 413, "more than 1048576 bytes"),
        ("deflate", zlib.compress(b" " * (2 << 20)), 413, "more than 1048576 bytes"),
        ("gzip", b"no gzip", 400, "damaged"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400, "not whole"),
        ("gzip", gzip.compress(b"{}", mtime=0) * 2, 400, "more behind its end"),
        ("br", b"{}", 400, "'br'"),
    ],
)
def test_bombs_and_damaged_compression_are_refused(
    serving: Serving, encoding: str, body: bytes, status: int, message: str
) -> None:
    answer = serving.ask("/v2/models/affine/infer", body, content_encoding=encoding)
    assert answer.status == status
    assert message in answer.value["error"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "no inputs"),
        ([], "no JSON object"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": [7]}, "no object"),
        ({"inputs": [numbers(name=None)]}, "name of its own"),
        ({"inputs": [numbers(), numbers()]}, "name of its own"),
        ({"inputs": [numbers(name="z")]}, "'x'"),
        ({"inputs": [numbers(datatype="FP99")]}, "'FP99'"),
        ({"inputs": [numbers(datatype="BF16")]}, "BF16"),
        ({"inputs": [numbers(datatype="FP64")]}, "float64"),
        ({"inputs": [numbers(shape=[4])]}, "shape"),
        ({"inputs": [numbers(shape=[2**62, 4])]}, "rows"),
        ({"inputs": [numbers(shape=[1, 2**62])]}, "4 values"),
        ({"inputs": [numbers(shape=[1, 0], data=[])]}, "shape"),
        ({"inputs": [numbers(data=[1, 2])]}, "2 values"),
        ({"inputs": [numbers(parameters={"binary_data_size": 16})]}, "both data and binary_data_size"),
        ({"inputs": [numbers(parameters={"binary_data_size": -1})]}, "binary_data_size of 'x' is -1"),
        ({"inputs": [BINARY]}, "0 bytes are behind"),
        ({"inputs": [numbers(parameters=[])]}, "parameters"),
        ({"inputs": [numbers(parameters={"shared_memory_region": "r"})]}, "shared memory"),
        ({"inputs": [numbers()], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared"),
        ({"inputs": [numbers()], "outputs": [{"name": "z"}]}, "no output 'z'"),
        ({"inputs": [numbers()], "outputs": [{"name": "y"}, {"name": "y"}]}, "name of its own"),
        ({"inputs": [numbers()], "outputs": {"name": "y"}}, "no list"),
        ({"inputs": [numbers()], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "classification"),
        ({"inputs": [numbers()], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"inputs": [numbers()], "id": 7}, "id"),
        ({"inputs": [numbers()], "parameters": {"timeout": "1"}}, "timeout"),
        ({"inputs": [numbers()], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(serving: Serving, message: Any, said: str) -> None:
    answer = serving.infer("affine", message)
    assert answer.status in (400, 413), answer.body
    assert list(answer.value) == ["error"]
    assert said in answer.value["error"]


@pytest.mark.parametrize(
    ("length", "tail", "said"),
    [
        ("99999", b"\0" * 16, "Content-Length is b'99999'"),
        ("-1", b"\0" * 16, "b'-1'"),
        ("0", b"\0" * 16, "no JSON"),
        (None, b"\0" * 17, "17 bytes are behind"),
        (None, b"\0" * 15, "15 bytes are behind"),
        ("²", b"\0" * 16, "Content-Length"),
    ],
)
def test_binary_that_does_not_fit_its_header_is_refused(
    serving: Serving, length: str | None, tail: bytes, said: str
) -> None:
    head = json.dumps({"inputs": [BINARY]}).encode()
    answer = serving.ask(
        "/v2/models/affine/infer", head + tail, inference_header_content_length=length or str(len(head))
    )
    assert answer.status == 400
    assert said in answer.value["error"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<I", 5) + b"abc", "beyond its end"),
        (struct.pack("<I", 2**32 - 1) + b"abc", "beyond its end"),
        (b"\1\0", "beyond its end"),
        (struct.pack("<I", 1) + b"\xff", "not UTF-8"),
        ((struct.pack("<I", 1) + b"a") * 2, "more than the 1 texts"),
    ],
)
def test_damaged_texts_in_binary_are_refused(serving: Serving, data: bytes, said: str) -> None:
    entry = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    answer = serving.infer("words", {"inputs": [entry]}, data)
    assert answer.status == 400
    assert said in answer.value["error"]


def test_time_that_is_over_is_said(serving: Serving) -> None:
    answer = serving.infer("news", {"inputs": [words("goal " * 5000)], "parameters": {"timeout": 1, "priority": 3}})
    assert answer.status == 503
    assert "error" in answer.value


def test_answer_without_a_batch_axis_keeps_its_shape(serving: Serving) -> None:
    data = [float(number) for number in range(6)]
    answer = serving.infer("fixed", {"inputs": [numbers(shape=[2, 3], data=data)]})
    assert answer.value["outputs"][0]["shape"] == [2, 3]
    assert serving.ask("/v2/models/fixed/config").value["max_batch_size"] == 0


def test_image_in_binary_comes_back(serving: Serving) -> None:
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    entry = {"name": "x", "shape": [1, 3, 64, 64], "datatype": "FP32", "parameters": {"binary_data_size": image.nbytes}}
    message = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    assert serving.infer("image", message, image.tobytes()).tail == image.tobytes()


def test_equal_heads_carry_different_tensors(serving: Serving) -> None:
    message = {"inputs": [BINARY], "parameters": {"binary_data_output": True}}
    for start in (0.0, 1.0, 0.0):
        row = start + np.arange(4, dtype=np.float32)
        found = np.frombuffer(serving.infer("affine", message, row.tobytes()).tail, np.float32)
        assert found.tolist() == (row @ np.arange(12.0).reshape(4, 3) + 1).tolist()
    for rows in (1, 3, 1):
        entry = BINARY | {"shape": [rows, 4], "parameters": {"binary_data_size": rows * 16}}
        answer = serving.infer("affine", message | {"inputs": [entry]}, bytes(rows * 16))
        assert answer.value["outputs"][0]["shape"] == [rows, 3]
        assert answer.tail == np.ones((rows, 3), np.float32).tobytes()


def test_model_that_was_replaced_is_not_held(serving: Serving) -> None:
    message = {"inputs": [numbers(shape=[2, 3], data=[0.0] * 6)]}
    serving.infer("fixed", message)
    before = weakref.ref(serving.repository.get("fixed"))
    for verb in ("unload", "load"):
        serving.ask(f"/v2/repository/models/fixed/{verb}", b"", authorization=f"Bearer {TOKEN}")
    assert serving.infer("fixed", message).status == 200
    gc.collect()
    assert before() is None


def test_metadata_describe_tensors_and_texts_under_two_names(serving: Serving) -> None:
    tensors, texts = serving.ask("/v2/models/news").value, serving.ask("/v2/models/news:text").value
    assert tensors["versions"] == texts["versions"] == ["1", "2"]
    assert tensors["platform"] == "onnxruntime_onnx"
    assert tensors["inputs"][0] == {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}
    assert texts["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "scores", "datatype": "FP32", "shape": [-1, 3]} in texts["outputs"]
    listed = [entry["name"] for entry in serving.ask("/v2/repository/index", b"").value]
    assert "news:text" in listed
    assert "affine:text" not in listed
    assert serving.ask("/v2/models/affine:text").status == 404
    assert serving.ask("/v2/models/news/versions/1").value["versions"] == ["1"]


def test_config_has_dims_without_the_batch_axis(serving: Serving) -> None:
    config = serving.ask("/v2/models/affine/config").value
    assert config["max_batch_size"] >= 1
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [4], "format": "FORMAT_NONE", "optional": False}
    ]
    optional = serving.ask("/v2/models/news:text/config").value["input"][1]
    assert (optional["name"], optional["optional"], optional["data_type"]) == ("text_pair", True, "TYPE_STRING")


@pytest.mark.parametrize("name", ["identity", "affine", "words", "fixed", "image", "encoder", "news", "news:text"])
def test_shapes_of_config_are_those_of_metadata_as_triton_reads_both(serving: Serving, name: str) -> None:
    config, metadata = serving.ask(f"/v2/models/{name}/config").value, serving.ask(f"/v2/models/{name}").value
    rows = [-1] if config["max_batch_size"] else []
    for side in ("input", "output"):
        whole = {one["name"]: rows + one["dims"] for one in config[side] if not one.get("optional")}
        assert whole == {one["name"]: one["shape"] for one in metadata[f"{side}s"]}


@pytest.mark.parametrize("form", ["flat", "nested", "gzip", "tail"])
def test_json_that_is_parsed_beside_the_loop_is_answered_like_any_other(serving: Serving, form: str) -> None:
    array = np.arange(2 * 3 * 64 * 64, dtype=np.float32).reshape(2, 3, 64, 64) / 8
    assert len(json.dumps(array.ravel().tolist())) > _MAX_JSON_ON_LOOP / 2
    entry: dict[str, Any] = {"name": "x", "shape": list(array.shape), "datatype": "FP32"}
    data = array.tolist() if form == "nested" else array.ravel().tolist()
    message: dict[str, Any] = {"inputs": [entry | {"data": data}], "filler": [0] * (1 << 17)}
    headers: dict[str, str] = {}
    body = json.dumps(message).encode()
    if form == "gzip":
        body, headers = gzip.compress(body, mtime=0), {"content_encoding": "gzip"}
    elif form == "tail":
        entry |= {"parameters": {"binary_data_size": array.nbytes}}
        head = json.dumps(message | {"inputs": [entry]}).encode()
        body, headers = head + array.tobytes(), {"inference_header_content_length": str(len(head))}
    answer = serving.ask("/v2/models/image/infer", body, **headers)
    assert answer.status == 200, answer.body
    np.testing.assert_array_equal(np.array(answer.value["outputs"][0]["data"], np.float32), array.ravel())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([0.5] * 90_000, "has 90000 values"),
        ([True] * 24_576, "holds true or false"),
        ([[0.0] * 12_288, [1e99] * 12_288], "not nested as the shape"),
        ([1e99] * 24_576, "out of FP32's range"),
    ],
)
def test_long_data_that_do_not_fit_are_refused_with_the_reason(serving: Serving, data: Any, said: str) -> None:
    entry = {"name": "x", "shape": [2, 3, 64, 64], "datatype": "FP32", "data": data}
    answer = serving.infer("image", {"inputs": [entry], "filler": "x" * (1 << 18)})
    assert (answer.status, said in answer.value["error"]) == (400, True), answer.body


def test_long_json_is_not_read_before_the_loop_goes_on(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    async def ask() -> None:
        route = InferRoute(serving.service)
        read = route.reader.read_long

        def note(*given: Any) -> Any:
            threads.append(threading.current_thread().name)
            return read(*given)

        monkeypatch.setattr(route.reader, "read_long", note)
        request: Any = SimpleNamespace(
            body=b'{"x":' + b" " * _MAX_JSON_ON_LOOP,
            params={"model": "affine"},
            received_ns=1,
            header=lambda name: None,
        )
        waiting = route(request)
        assert waiting is not None
        assert not threads
        await waiting

    with pytest.raises(MalformedError):
        serving.call(ask())
    assert threads
    assert threads[0] != serving.thread.name


def test_statistics_count_rows_and_failures(serving: Serving) -> None:
    def stats() -> dict[str, Any]:
        found = serving.ask("/v2/models/affine/versions/1/stats").value["model_stats"]
        assert [(one["name"], one["version"]) for one in found] == [("affine", "1")]
        one: dict[str, Any] = found[0]
        return one

    before = stats()
    serving.infer("affine", {"inputs": [numbers([0.0] * 8, shape=[2, 4])]})
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    names = [one["name"] for one in serving.ask("/v2/models/stats").value["model_stats"]]
    assert names.count("news") == 2


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/news/ready", "/v2"])
def test_health_is_200(serving: Serving, path: str) -> None:
    assert serving.ask(path).status == 200


def test_readiness_of_what_is_not_there_is_404(serving: Serving) -> None:
    assert serving.ask("/v2/models/nothing/ready").status == 404
    assert serving.ask("/v2/models/nothing/versions/1/infer", b'{"inputs": []}').status == 400


@pytest.mark.parametrize("kind", ["systemsharedmemory", "cudasharedmemory"])
def test_shared_memory_is_refused_and_there_is_none(serving: Serving, kind: str) -> None:
    answer = serving.ask(f"/v2/{kind}/region/r/register", b"{}")
    assert answer.status == 400
    assert "maps no memory" in answer.value["error"]
    assert serving.ask(f"/v2/{kind}/status").value == []
    assert serving.ask(f"/v2/{kind}/unregister", b"").status == 200


def test_model_is_unloaded_and_loaded_by_the_admin_only(serving: Serving) -> None:
    load, unload = "/v2/repository/models/fixed/load", "/v2/repository/models/fixed/unload"
    assert serving.ask(unload, b"").status == 401
    admin = {"authorization": f"Bearer {TOKEN}"}
    assert serving.ask(unload, b'{"parameters": {"unload_dependents": true}}', **admin).status == 200
    assert serving.ask("/v2/models/fixed/ready").status == 503
    entries = {entry["name"]: entry["state"] for entry in serving.ask("/v2/repository/index", b"{}").value}
    assert entries["fixed"] == "UNAVAILABLE"
    assert "fixed" not in {entry["name"] for entry in serving.ask("/v2/repository/index", b'{"ready": true}').value}
    assert serving.ask(load, b"", **admin).status == 200
    assert serving.ask("/v2/models/fixed/ready").status == 200


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("fixed", b'{"parameters": {"config": "{}"}}', 400),
        ("fixed", b'{"parameters": {"file:1/model.onnx": "AAAA"}}', 400),
        ("fixed", b'{"parameters": []}', 200),
        ("fixed", b'{"parameters": [1]}', 400),
        ("fixed", b"[]", 400),
        ("nothing", b"", 404),
        ("..%5C..%5Cetc", b"", 400),
        ("%00", b"", 400),
        (".hidden", b"", 404),
    ],
)
def test_nothing_is_loaded_that_the_server_was_not_started_with(
    serving: Serving, name: str, body: bytes, status: int
) -> None:
    answer = serving.ask(f"/v2/repository/models/{name}/load", body, authorization=f"Bearer {TOKEN}")
    assert answer.status == status, answer.body
