from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import serve.models.loading
from edgesmith.artifact import open_artifact
from edgesmith.errors import ArtifactError, StorageError, UnsupportedError, UsageError
from serve.config import ModelSpec
from serve.models.graph_model import GraphModel
from serve.models.job import Job
from serve.models.loading import Loaded, load_model
from serve.models.memory import children_of
from serve.runtime import open_engine
from serve.runtime.golden import write_golden
from tests.serve.models.models_run import doubling, graph
from tests.serve.models_built import affine, save, write

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def spec_of(path: Path, **values: Any) -> ModelSpec:
    return ModelSpec(name="model", path=path, **{"max_batch_size": 4, "threads": 1, **values})


async def answer(model: GraphModel, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    done = asyncio.get_running_loop().create_future()
    model.submit(Job(arrays=arrays, done=done.set_result, num_rows=1, received_ns=time.monotonic_ns()))
    job: Job = await done
    assert job.error is None
    assert job.outputs is not None
    return job.outputs


def loaded(spec: ModelSpec, look: Callable[[Loaded], Any] = lambda loaded: None) -> Loaded:
    """Load as a repository does, look at it, and close it."""

    async def work() -> Loaded:
        result = await asyncio.to_thread(load_model, spec, spec.path, loop=asyncio.get_running_loop())
        try:
            seen = look(result)
            if asyncio.iscoroutine(seen):
                await seen
        finally:
            await result.model.close(5)
        return result

    return asyncio.run(work())


@pytest.fixture
def golden_folder(tmp_path: Path) -> Path:
    """y = x · w + b with golden vectors of it."""
    folder = tmp_path / "golden"
    save(affine(), folder / "model.onnx")
    engine = open_engine(open_artifact(folder / "model.onnx"))
    write_golden(folder, inputs={"x": ROWS}, outputs=engine.run({"x": ROWS}), max_abs_difference=1e-5, texts=("",))
    write(folder, engine.signature)
    return folder


def with_other_golden(folder: Path) -> Path:
    """The same model, its golden outputs off by 0.5."""
    outputs = {"y": np.full((2, 3), 0.5, np.float32) + _expected()}
    write_golden(folder, inputs={"x": ROWS}, outputs=outputs, max_abs_difference=1e-5, texts=("",))
    (folder / "manifest.json").unlink()
    write(folder)
    return folder


def _expected() -> NDArray[np.float32]:
    return ROWS @ np.arange(12, dtype=np.float32).reshape(4, 3) + 1


@pytest.mark.parametrize("is_isolated", [False, True])
def test_a_model_answers_as_its_engine_does(golden_folder: Path, *, is_isolated: bool) -> None:
    outputs: list[Any] = []

    async def look(result: Loaded) -> None:
        assert isinstance(result.model, GraphModel)
        outputs.append((await answer(result.model, {"x": ROWS}))["y"])

    result = loaded(spec_of(golden_folder, is_isolated=is_isolated), look)
    np.testing.assert_allclose(outputs[0], _expected())
    assert result.report.is_golden_passed
    assert "2 golden rows" in str(result.report)
    assert {"open", "task", "golden", "warm-up"} <= result.report.phases_ms.keys()
    assert (result.child is not None) == is_isolated
    assert result.model.artifact.digest == open_artifact(golden_folder).digest


def test_an_artifact_brings_its_task(classifier_path: Path) -> None:
    tasks: list[Any] = []
    loaded(spec_of(classifier_path), lambda result: tasks.append(result.model.task))  # type: ignore[union-attr]
    assert tasks[0].name == "text-classification"


def test_a_bare_graph_takes_tensors(golden_folder: Path) -> None:
    report = loaded(spec_of(golden_folder / "model.onnx"), lambda result: _assert_no_task(result)).report
    assert report.is_golden_passed is None


def test_a_config_of_another_model_gives_no_task(tmp_path: Path, golden_folder: Path) -> None:
    shutil.copyfile(golden_folder / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"]}))
    loaded(spec_of(tmp_path / "model.onnx"), lambda result: _assert_no_task(result))


def _assert_no_task(result: Loaded) -> None:
    assert isinstance(result.model, GraphModel)
    assert result.model.task is None


def test_a_stated_task_that_cannot_be_loaded_is_an_error(golden_folder: Path) -> None:
    (golden_folder / "task.json").write_text(json.dumps({"task": "text-classification"}))
    (golden_folder / "manifest.json").unlink()
    write(golden_folder)
    with pytest.raises(ArtifactError):
        loaded(spec_of(golden_folder))


@pytest.mark.parametrize("is_isolated", [False, True])
def test_failing_golden_vectors_refuse_to_serve(golden_folder: Path, *, is_isolated: bool) -> None:
    before = set(children_of())
    with pytest.raises(ArtifactError, match=r"2 golden rows, off by 0.5 of 1e-05 allowed") as raised:
        loaded(spec_of(with_other_golden(golden_folder), is_isolated=is_isolated))
    assert "allow the mismatch" in raised.value.mend
    assert set(children_of()) <= before


def test_a_golden_mismatch_can_be_allowed(golden_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = loaded(spec_of(with_other_golden(golden_folder), allow_golden_mismatch=True))
    assert result.report.is_golden_passed is False
    assert "is served although" in caplog.text
    assert "off by 0.5" in caplog.text


@pytest.mark.parametrize("is_isolated", [False, True])
def test_an_altered_file_is_never_opened(golden_folder: Path, *, is_isolated: bool) -> None:
    content = bytearray((golden_folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (golden_folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="was altered"):
        loaded(spec_of(golden_folder, is_isolated=is_isolated))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        loaded(spec_of(tmp_path / "missing"))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="kind 'checkpoint'"):
        loaded(spec_of(tmp_path / "checkpoint"))


def _rewrite(folder: Path) -> None:
    path = folder / "model.onnx"
    times = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as one who hides it would


def _rename(folder: Path) -> None:
    shutil.copyfile(folder / "model.onnx", folder / "other")
    (folder / "other").replace(folder / "model.onnx")


def _add(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _remove(folder: Path) -> None:
    (folder / "golden" / "golden.json").unlink()


@pytest.mark.parametrize("change", [_rewrite, _rename, _add, _remove])
def test_files_that_change_between_check_and_use_are_noticed(
    golden_folder: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_changed(*given: Any) -> Any:
        change(golden_folder)
        return open_engine(*given)

    monkeypatch.setattr(serve.models.loading, "open_engine", open_changed)
    with pytest.raises((ArtifactError, StorageError), match="was changed while"):
        loaded(spec_of(golden_folder))


def test_it_is_said_how_far_an_answer_depends_on_its_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    mixing = graph(tmp_path / "mixing", nodes, {"x": ("batch", 3)}, {"y": ("batch", 3)})
    apart = doubling(tmp_path / "apart", ("batch", 3))
    said = [str(loaded(spec_of(path, max_batch_size=size)).report) for path, size in (
        (mixing.path, 4), (mixing.path, 1), (apart.path, 4)
    )]  # fmt: skip
    assert ["an answer depends on its batch: other rows move it by up to" in one for one in said] == [
        True,
        False,
        False,
    ]
