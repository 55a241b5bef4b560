from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgesmith.artifact import Artifact, Signature, TensorSpec, open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.tasks import load_task
from serve.runtime import EngineOptions, open_engine
from serve.runtime.onnx_engine import OnnxEngine
from tests.serve.models_built import affine, classifier, external_tensor, save, write

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_engine_computes_the_graph(affine_artifact: Artifact) -> None:
    engine = open_engine(affine_artifact)
    outputs = engine.run({"x": X})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], X @ WEIGHT + 1)
    assert engine.name.startswith("onnxruntime ")
    assert engine.signature == Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )


def test_bare_file_is_opened_too(affine_artifact: Artifact) -> None:
    engine = open_engine(open_artifact(affine_artifact.path / "model.onnx"), EngineOptions(threads=2))
    np.testing.assert_allclose(engine.run({"x": X})["y"], X @ WEIGHT + 1)


def test_engine_may_be_run_from_several_threads(affine_artifact: Artifact) -> None:
    engine = open_engine(affine_artifact)
    inputs = [np.full((1 + number % 3, 4), number, np.float32) for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda x: engine.run({"x": x})["y"], inputs))
    for x, y in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(y, x @ WEIGHT + 1)


def test_closed_engine_refuses_to_run_and_may_be_closed_again(affine_artifact: Artifact) -> None:
    engine = open_engine(affine_artifact)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run({"x": X})


def test_a_trace_tells_every_run_and_the_shapes_of_weights_that_are_not_packed(
    affine_artifact: Artifact, tmp_path: Path
) -> None:
    engine = open_engine(affine_artifact, EngineOptions(profile_to=tmp_path, packs_weights=False))
    assert isinstance(engine, OnnxEngine)
    for _ in range(3):
        np.testing.assert_allclose(engine.run({"x": X})["y"], X @ WEIGHT + 1)
    trace = engine.end_profile()
    assert trace.parent == tmp_path
    events = json.loads(trace.read_text())
    assert sum(event["name"] == "model_run" for event in events) == 3
    products = [event["args"] for event in events if event["args"].get("op_name") in ("MatMul", "Gemm")]
    assert [{"float": [4, 3]} in product["input_type_shape"] for product in products] == [True] * 3
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.end_profile()


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}"):
        EngineOptions(threads=threads)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"'x' is missing\n.*float32\[batch, 4\]"),
        ({"z": X}, "no input 'z'|'x' is missing"),
        ({"x": X, "z": X}, r"no input 'z'\n.*takes x"),
        ({"x": X.astype(np.float64)}, r"'x' is float64\[2, 4\]\n.*float32\[batch, 4\]"),
        ({"x": X[:, :3]}, r"'x' has shape \[2, 3\]\n.*float32\[batch, 4\]"),
        ({"x": X[0]}, r"'x' has shape \[4\]"),
        ({"x": X[:0]}, r"'x' has shape \[0, 4\]: it is empty"),
    ],
)
def test_input_that_does_not_fit_is_named(affine_artifact: Artifact, arrays: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_engine(affine_artifact).run(arrays)


def test_axes_of_one_name_must_have_one_length(classifier_path: Path) -> None:
    engine = open_engine(open_artifact(classifier_path))
    arrays = load_task(classifier_path).encode(["a text"])
    arrays["token_type_ids"] = arrays["token_type_ids"][:, :2]
    with pytest.raises(UsageError, match=r"axis 'sequence' has length \d in 'token_type_ids'|has length \d"):
        engine.run(arrays)


def test_value_out_of_range_is_a_typed_error(classifier_path: Path) -> None:
    engine = open_engine(open_artifact(classifier_path))
    arrays = load_task(classifier_path).encode(["a text"])
    arrays["input_ids"] = arrays["input_ids"] + 10_000_000
    with pytest.raises(UsageError, match=r"could not run these inputs.*\n.*vocabulary"):
        engine.run(arrays)


def test_whole_path_from_text_to_prediction(classifier_path: Path) -> None:
    task, engine = load_task(classifier_path), open_engine(open_artifact(classifier_path))
    texts = ["Shares fell.", ("one", "two")]
    arrays = task.encode(texts)
    predictions = task.decode(engine.run(arrays), arrays, texts)
    assert [sum(one["scores"].values()) for one in predictions] == pytest.approx([1, 1])


def test_checkpoint_has_no_engine_and_the_mend_says_to_export(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    artifact = write_artifact(tmp_path, kind="checkpoint", step="test")
    with pytest.raises(UnsupportedError, match=r"kind 'checkpoint'; known are onnx\n.*edgesmith export"):
        open_engine(artifact)


@pytest.mark.parametrize(
    ("domain", "operator", "message"),
    [
        ("my.ops", "Evil", "my.ops::Evil needs a custom operator library"),
        ("com.microsoft", "EPContext", "runs code from outside the model"),
        ("com.microsoft", "NoSuchOperator", "cannot load it|lacks an operator"),
    ],
)
def test_operator_that_the_runtime_lacks_is_refused(tmp_path: Path, domain: str, operator: str, message: str) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    save(affine([node]), tmp_path / "model.onnx", opset_imports=opsets)
    with pytest.raises((UnsupportedError, ArtifactError), match=message):
        open_engine(write(tmp_path))


def test_operators_defined_in_the_file_itself_are_run(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("own", "Double", ["a"], ["b"], body, opsets[:1])
    double = helper.make_node("Double", ["m"], ["y"], domain="own")
    graph = affine([helper.make_node("MatMul", ["x", "w"], ["m"]), double])
    save(graph, tmp_path / "model.onnx", opset_imports=opsets, functions=[function])
    np.testing.assert_allclose(open_engine(write(tmp_path)).run({"x": X})["y"], 2 * (X @ WEIGHT))


def _with_external(folder: Path, location: str, **entries: str) -> None:
    weight = external_tensor("w", [4, 3], location=location, **entries)
    save(affine([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]), folder / "model.onnx")


def test_weights_beside_the_model_are_used(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"\0" * 16 + WEIGHT.tobytes())
    _with_external(tmp_path, "model.onnx.data", offset="16", length="48")
    np.testing.assert_allclose(open_engine(write(tmp_path)).run({"x": X})["y"], X @ WEIGHT)
    bare = open_artifact(tmp_path / "model.onnx")
    np.testing.assert_allclose(open_engine(bare).run({"x": X})["y"], X @ WEIGHT)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret.bin", "sub/../../secret.bin", "C:\\secret.bin", "..\\secret.bin", "", "a\0b", "."],
)
def test_weights_outside_the_artifact_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "artifact"
    _with_external(folder, location)
    with pytest.raises(ArtifactError, match=r"leaves the artifact|is missing"):
        open_engine(write(folder))


def test_address_in_memory_as_location_is_refused(tmp_path: Path) -> None:
    _with_external(tmp_path, "*/_ORT_MEM_ADDR_/*", offset="4096", length="48")
    with pytest.raises(ArtifactError, match="is missing"):
        open_engine(write(tmp_path))


@pytest.mark.parametrize("link", ["symlink", "hardlink", "linked folder"])
def test_linked_weights_are_refused(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "artifact"
    _with_external(folder, "sub/w.bin" if link == "linked folder" else "w.bin")
    match link:
        case "symlink":
            (folder / "w.bin").symlink_to(outside / "w.bin")
        case "hardlink":
            os.link(outside / "w.bin", folder / "w.bin")
        case "linked folder":
            (folder / "sub").symlink_to(outside)
    artifact = write_artifact(shutil.copytree(folder, tmp_path / "copy"), kind="onnx", step="test")
    with pytest.raises(ArtifactError, match="link"):
        open_engine(Artifact(path=folder, manifest=artifact.manifest))


def test_weights_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(WEIGHT.tobytes())
    _with_external(tmp_path, "other.bin")
    with pytest.raises(ArtifactError, match="manifest does not name it"):
        open_engine(open_artifact(tmp_path / "model.onnx"))


@pytest.mark.parametrize(("offset", "length"), [("1", "48"), ("0", "49"), ("-48", "48"), ("0", "-1")])
def test_weights_beyond_the_end_of_their_file_are_refused(tmp_path: Path, offset: str, length: str) -> None:
    (tmp_path / "model.onnx.data").write_bytes(WEIGHT.tobytes())
    _with_external(tmp_path, "model.onnx.data", offset=offset, length=length)
    with pytest.raises(ArtifactError, match="has 48 bytes, but the tensor 'w' is at"):
        open_engine(write(tmp_path))


def test_altered_weights_are_refused_when_opened(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(WEIGHT.tobytes())
    _with_external(tmp_path, "model.onnx.data")
    write(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(WEIGHT[::-1].tobytes())
    with pytest.raises(ArtifactError, match="was altered"):
        open_artifact(tmp_path)


def _signature(dtype: str = "float32", shape: tuple[int | str, ...] = ("n", 4), name: str = "x") -> Signature:
    return Signature(
        inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 3)),),
    )


def test_free_axes_may_have_other_names_than_in_the_manifest(tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    assert open_engine(write(tmp_path, _signature())).run({"x": X})["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (_signature(name="z"), "manifest says the inputs are z; the model has x"),
        (_signature(dtype="int64"), r"'x' is int64\['n', 4\]; in the model it is float32"),
        (_signature(shape=("n", 5)), r"\['n', 5\]; in the model"),
        (_signature(shape=("n",)), r"\['n'\]; in the model"),
    ],
)
def test_model_that_differs_from_its_manifest_is_refused(tmp_path: Path, signature: Signature, message: str) -> None:
    save(affine(), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=message):
        open_engine(write(tmp_path, signature))


def test_damaged_model_is_a_typed_error(tmp_path: Path) -> None:
    path = save(classifier(30), tmp_path / "model.onnx")
    content = path.read_bytes()
    for end in (1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ArtifactError):
            open_engine(write(tmp_path))


def test_graph_that_the_runtime_rejects_is_a_typed_error(tmp_path: Path) -> None:
    save(affine([helper.make_node("MatMul", ["x", "nothing"], ["y"])]), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="cannot load it"):
        open_engine(write(tmp_path))


def test_artifact_without_its_model_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"has no file 'model\.onnx'"):
        open_engine(write(tmp_path))
