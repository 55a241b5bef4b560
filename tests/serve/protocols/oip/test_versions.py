"""Whatever version answers, it answers alone: its tokens, its graph, its labels; and nothing stays when it has."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serve.config import ModelSpec, ServerConfig
from serve.errors import NotReadyError
from serve.models.job import Job
from serve.protocols.grpc.messages import message_class
from serve.protocols.oip import facts
from serve.protocols.oip.inference import Inference
from serve.protocols.oip.preparation import Asked
from tests.serve.models_built import classifier_folder, save, write
from tests.serve.protocols.oip.serving import Serving, echo
from tests.serve.protocols.oip.test_http import words

LABELS = {"1": ["business", "sport", "tech"], "2": ["X0", "X1", "X2"]}
LONG = "A late goal won the cup. " * 200
IDS = {
    "inputs": [
        {
            "name": name,
            "shape": [1, 3],
            "datatype": "INT64",
            "data": [101, 2154, 102] if name == "input_ids" else [1] * 3,
        }
        for name in ("input_ids", "token_type_ids", "attention_mask")
    ],
    "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
}


def labelled(folder: Path, minilm: Path, labels: list[str]) -> Path:
    """A classifier whose classes have these names."""
    classifier_folder(folder, minilm)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): label for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    write(folder, task="text-classification")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("versions")
    return {version: labelled(root / version, minilm_folder, labels) for version, labels in LABELS.items()}


@pytest.fixture
def split(folders: dict[str, Path], tmp_path: Path) -> Iterator[Serving]:
    """Two versions with other labels that share the requests; and a model of large tensors."""
    save(echo("x", "FP32", ["batch", "width"]), tmp_path / "echo.onnx")
    models = [ModelSpec(name="news", path=path, version=version) for version, path in folders.items()]
    models.append(ModelSpec(name="echo", path=tmp_path / "echo.onnx"))
    config = ServerConfig(models=tuple(models), splits={"news": {"1": 50, "2": 50}})
    with Serving(config, has_grpc=True) as running:
        yield running


def grpc_infer(serving: Serving, **fields: Any) -> tuple[Any, dict[str, str]]:
    """Infer over gRPC, and give the answer and its trailing metadata."""
    with grpc.insecure_channel(serving.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        message = message_class("ModelInferRequest")(**fields).SerializeToString()
        data, done = call.with_call(message, timeout=30)
    return message_class("ModelInferResponse").FromString(data), dict(done.trailing_metadata())


def text_message(text: str) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [text.encode()]}}


@pytest.mark.parametrize("text", ["Shares fell.", LONG], ids=["short", "long"])
def test_texts_under_a_split_are_answered_by_one_version_each(split: Serving, text: str) -> None:
    seen = set()
    for _ in range(16):
        answer = split.infer("news", {"inputs": [words(text)]})
        version = answer.value["model_version"]
        assert answer.headers["x-model-version"] == version
        assert answer.value["outputs"][0]["data"][0] in LABELS[version]
        said, trailer = grpc_infer(split, model_name="news", inputs=[text_message(text)])
        assert said.raw_output_contents[0][4:].decode() in LABELS[said.model_version]
        assert trailer["x-model-version"] == said.model_version
        seen |= {("http", version), ("grpc", said.model_version)}
    assert len(seen) == 4


def test_classes_of_tensors_under_a_split_have_the_names_of_the_version_that_answers(split: Serving) -> None:
    seen = set()
    for _ in range(16):
        value = split.infer("news", IDS).value
        assert value["outputs"][0]["data"][0].split(":")[2] in LABELS[value["model_version"]]
        seen.add(value["model_version"])
    assert seen == {"1", "2"}


def asked(serving: Serving, version: str | None = None) -> Asked:
    text = np.array([LONG], np.object_)
    return Asked(serving.service, "news", False, version, None, Inference({"text": text}))


def test_long_texts_are_prepared_again_when_their_model_is_replaced_meanwhile(
    split: Serving, folders: dict[str, Path]
) -> None:
    async def swap() -> Any:
        request = asked(split, "1")
        prepared = request.prepare()
        assert prepared.examples
        await split.repository.load("news", "1", folders["2"])
        return prepared, await request.finish(prepared)

    before, after = split.call(swap())
    assert after.model is split.repository.get("news", "1") is not before.model
    assert after.view is not before.view
    assert list(after.view.task.labels) == LABELS["2"]
    assert after.arrays["input_ids"].size


def test_long_texts_go_to_another_version_when_theirs_is_unloaded_unless_it_was_named(split: Serving) -> None:
    async def unload(request: Asked) -> Any:
        prepared = request.prepare()
        await split.repository.unload("news", prepared.model.version)
        return prepared.model.version, (await request.finish(prepared)).model.version

    first, then = split.call(unload(asked(split)))
    assert {first, then} == {"1", "2"}

    async def unload_named() -> Any:
        request = asked(split, then)
        prepared = request.prepare()
        await split.repository.unload("news", then)
        return await request.finish(prepared)

    with pytest.raises(NotReadyError):
        split.call(unload_named())


def live_jobs(model_rows: int) -> int:
    """Jobs of this process with arrays of so many columns."""
    jobs = [found for found in gc.get_objects() if type(found) is Job]
    return sum(any(array.shape[-1:] == (model_rows,) for array in job.arrays.values()) for job in jobs)


@pytest.mark.parametrize("way", ["http", "late", "json", "grpc", "grpc late"])
def test_what_a_request_held_is_free_when_it_is_answered(split: Serving, way: str) -> None:
    width = 70_001  # of no other test's
    row = np.zeros((1, width), np.float32)
    entry = {"name": "x", "shape": [1, width], "datatype": "FP32"}
    binary = entry | {"parameters": {"binary_data_size": row.nbytes}}
    wanted: dict[str, Any] = {"binary_data_output": way != "json"} | ({"timeout": 1} if way == "late" else {})
    gc.collect()
    gc.disable()
    try:
        for _ in range(8):
            if way.startswith("grpc"):
                late = {"parameters": {"timeout": {"int64_param": 1}}} if way == "grpc late" else {}
                fields = {"model_name": "echo", "inputs": [entry], "raw_input_contents": [row.tobytes()]} | late
                with pytest.raises(grpc.RpcError) if late else contextlib.nullcontext():
                    grpc_infer(split, **fields)
            else:
                answer = split.infer("echo", {"inputs": [binary], "parameters": wanted}, row.tobytes())
                assert answer.status == (503 if way == "late" else 200)
        until = time.monotonic() + 10
        while live_jobs(width) > 1 and time.monotonic() < until:  # a thread may hold the last one yet
            time.sleep(0.02)
        assert live_jobs(width) <= 1
    finally:
        gc.enable()


def test_answers_name_the_request_as_its_client_or_else_we_do(split: Serving) -> None:
    message: dict[str, Any] = {"inputs": [words("Shares fell.")]}
    answer = split.infer("news", message | {"id": "a/7ä"}, x_request_id="h")
    assert (answer.value["id"], answer.headers["x-request-id"].encode("latin-1").decode()) == ("a/7ä", "a/7ä")
    assert split.infer("news", message, x_request_id="h").headers["x-request-id"] == "h"
    given = {split.infer("news", message).headers["x-request-id"] for _ in range(4)}
    assert len(given) == 4
    assert all(name.startswith("req-") for name in given)
    said, trailer = grpc_infer(split, model_name="news", inputs=[text_message("a")], id="g")
    assert (said.id, trailer["x-request-id"]) == ("g", "g")
    said, trailer = grpc_infer(split, model_name="news", inputs=[text_message("a")])
    assert (said.id, trailer["x-request-id"][:4]) == ("", "req-")


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x7f", "\u202e"])
def test_ids_that_no_log_can_hold_are_refused(split: Serving, name: str) -> None:
    answer = split.infer("news", {"id": name, "inputs": [words("a")]})
    assert (answer.status, "at most 128 printable" in answer.value["error"]) == (400, True)
    with pytest.raises(grpc.RpcError) as caught:
        grpc_infer(split, model_name="news", inputs=[text_message("a")], id=name)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_deadlines_that_requests_state_are_marked_as_their_own(split: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    infer = split.service.infer

    def note(name: str, version: str | None, job: Job, **rest: Any) -> Any:
        jobs.append(job)
        return infer(name, version, job, **rest)

    monkeypatch.setattr(split.service, "infer", note)
    message: dict[str, Any] = {"inputs": [words("a")]}
    split.infer("news", message)
    split.infer("news", message | {"parameters": {"timeout": 10_000_000}})
    grpc_infer(split, model_name="news", inputs=[text_message("a")])  # which always has one: the call's own
    assert [job.is_own_deadline for job in jobs] == [False, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="its process is found through /proc")
def test_nothing_is_called_ready_while_its_engine_is_down(tmp_path: Path) -> None:
    save(echo("x", "FP32", ["batch", "width"]), tmp_path / "echo.onnx")
    config = ServerConfig(models=(ModelSpec(name="echo", path=tmp_path / "echo.onnx", is_isolated=True),))

    async def crash() -> tuple[bool, bool]:
        [pid] = serving.repository.child_pids()
        os.kill(pid, signal.SIGKILL)
        while serving.repository.child_pids() == [pid]:
            await asyncio.sleep(0.001)
        return facts.is_ready(serving.service), facts.is_model_ready(serving.service, "echo", None)

    with Serving(config) as serving:
        assert serving.ask("/v2/health/ready").status == serving.ask("/v2/models/echo/ready").status == 200
        assert serving.call(crash()) == (False, False)
