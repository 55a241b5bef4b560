from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgesmith.artifact import TensorSpec
from edgesmith.errors import ArtifactError, UnsupportedError
from serve.runtime.onnx_file import DTYPES, MAX_BYTES, MAX_DEPTH, ExternalData, read_onnx
from tests.serve.models_built import FLOAT, INT64, affine, classifier, external_tensor, save


def _rich_graph() -> onnx.GraphProto:
    """Subgraphs, a sparse tensor, an input with a default value, external weights, axes with and without names."""
    value = helper.make_tensor_value_info("c", FLOAT, [])
    branches = {}
    for name, number in (("then_branch", 1.0), ("else_branch", 2.0)):
        tensor = numpy_helper.from_array(np.float32(number), "t")
        constant = helper.make_node("Constant", [], ["c"], value=tensor)
        branches[name] = helper.make_graph([constant, helper.make_node("Identity", ["c"], ["d"])], name, [], [value])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4]
    )
    graph = affine(
        [
            helper.make_node("If", ["flag"], ["r"], **branches),
            helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
            helper.make_node("Double", ["x"], ["y"], domain="own"),
        ],
        [external_tensor("w", [4, 3], location="weights.bin", offset="16", length="48")],
    )
    graph.input.extend([helper.make_tensor_value_info("w", FLOAT, [4, 3])])
    graph.input.extend([helper.make_tensor_value_info("flag", TensorProto.BOOL, [])])
    graph.input.extend([helper.make_tensor_value_info("free", TensorProto.FLOAT16, [None, -1, "n", 0])])
    graph.sparse_initializer.append(sparse)
    return graph


def _save_rich(path: Path) -> Path:
    nodes = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("own", "Double", ["a"], ["b"], nodes, [helper.make_opsetid("", 20)])
    opsets = [helper.make_opsetid(*pair) for pair in (("ai.onnx", 20), ("com.microsoft", 1), ("own", 1))]
    model = helper.make_model(_rich_graph(), opset_imports=opsets, functions=[function])
    helper.set_model_props(model, {"author": "a test"})
    path.write_bytes(model.SerializeToString())
    return path


def test_everything_that_matters_is_found(tmp_path: Path) -> None:
    found = read_onnx(_save_rich(tmp_path / "m.onnx"))
    assert found.signature.inputs == (
        TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
        TensorSpec(name="flag", dtype="bool", shape=()),
        TensorSpec(name="free", dtype="float16", shape=("free_axis0", -1, "n", 0)),
    )
    assert [spec.name for spec in found.signature.outputs] == ["y"]
    assert found.opsets == {"": 20, "com.microsoft": 1, "own": 1}
    assert {("", "If"), ("", "Constant"), ("", "Identity"), ("", "Add")} < found.operators
    assert {("com.microsoft", "Gelu"), ("own", "Double")} < found.operators
    assert found.functions == {("own", "Double")}
    assert found.external == [ExternalData("w", "weights.bin", 16, 48)]
    assert found.metadata == {"author": "a test"}


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function", "sparse"])
def test_external_weights_are_found_wherever_they_hide(tmp_path: Path, place: str) -> None:
    hidden = external_tensor("h", [1], location="../../etc/passwd")
    constant = helper.make_node("Constant", [], ["y"], value=hidden)
    graph, functions = affine(), []
    match place:
        case "initializer":
            graph = affine(initializers=[hidden])
        case "attribute":
            graph = affine([constant])
        case "subgraph":
            inner = helper.make_graph([constant], "inner", [], [])
            inner = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "middle", [], [])
            graph = affine([helper.make_node("Loop", ["x"], ["y"], body=inner)])
        case "function":
            functions = [helper.make_function("own", "F", [], ["y"], [constant], [helper.make_opsetid("", 20)])]
        case "sparse":
            sparse = TensorProto(dims=[1], data_type=INT64)
            graph.sparse_initializer.append(onnx.SparseTensorProto(values=hidden, indices=sparse, dims=[1]))
    found = read_onnx(save(graph, tmp_path / "m.onnx", functions=functions))
    assert [external.location for external in found.external] == ["../../etc/passwd"]


@pytest.mark.parametrize("element", sorted(DTYPES))
def test_data_types_are_named_as_numpy_does(tmp_path: Path, element: int) -> None:
    graph = affine()
    graph.input[0].type.tensor_type.elem_type = element
    expected = helper.tensor_dtype_to_np_dtype(element).name
    found = read_onnx(save(graph, tmp_path / "m.onnx")).signature.inputs[0].dtype
    assert found == {"object": "string"}.get(expected, expected)


@pytest.mark.parametrize("element", [0, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, 999])
def test_data_type_that_numpy_does_not_have_is_refused(tmp_path: Path, element: int) -> None:
    graph = affine()
    graph.input[0].type.tensor_type.elem_type = element
    with pytest.raises(UnsupportedError, match=f"'x' has the ONNX data type {element}"):
        read_onnx(save(graph, tmp_path / "m.onnx"))


def test_value_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    graph = affine()
    graph.input.append(helper.make_tensor_sequence_value_info("list", FLOAT, None))
    with pytest.raises(UnsupportedError, match="'list' is no tensor"):
        read_onnx(save(graph, tmp_path / "m.onnx"))


def test_training_graphs_are_refused(tmp_path: Path) -> None:
    path = save(affine(), tmp_path / "m.onnx")
    model = onnx.load(path)
    model.training_info.add()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="training"):
        read_onnx(path)


def _field(number: int, payload: bytes) -> bytes:
    """One length-delimited field."""
    size, encoded = len(payload), b""
    while size >= 0x80:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + payload


def _nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(5, _field(6, graph)))  # graph of a node of an attribute of a graph
    return _field(7, graph) + _field(8, b"\x10\x14")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00" * 16, "field number 0"),
        (b"PK\x03\x04" + b"\x00" * 100, "is no ONNX model"),
        (b"\x80\x05K\x01.", "is no ONNX model"),
        (b"\x08\x09", "there is no graph"),
        (_field(7, b""), "names no operator set"),
        (b"\x3a\xff\xff\xff\xff\x0f", "claims 4,294,967,295 bytes where 0 are left"),
        (b"\x3a" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x3a\xff", "ends inside a number"),
        (b"\x39\x00", "is cut off"),
        (b"\x3b", "wire type 3"),
        (b"\x38\x01", "a number where a message belongs"),
        (_field(7, _field(5, _field(13, _field(1, b"offset") + _field(2, b"x")))), "broken offset or length"),
        (_field(7, _field(1, _field(4, b"\xff"))), "can't decode byte 0xff"),
        (_nested(MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_damaged_file_is_a_typed_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_onnx(path)


def test_deep_but_lawful_nesting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_nested(MAX_DEPTH))
    assert read_onnx(path).opsets == {"": 20}


def test_file_of_more_than_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: takes no space
    with pytest.raises(ArtifactError, match=r"2,147,483,648 bytes"):
        read_onnx(path)


def test_endless_fields_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.runtime.protobuf_wire.MAX_FIELDS", 1000)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x01" * 1001)
    with pytest.raises(ArtifactError, match="more than 1,000 fields"):
        read_onnx(path)


def _tolerate(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(ArtifactError, UnsupportedError):
        read_onnx(path)


def test_every_truncation_is_read_or_refused(tmp_path: Path) -> None:
    content = _save_rich(tmp_path / "m.onnx").read_bytes()
    for end in range(len(content)):
        _tolerate(tmp_path / "cut.onnx", content[:end])


def test_altered_bytes_are_read_or_refused(tmp_path: Path) -> None:
    content, rng = _save_rich(tmp_path / "m.onnx").read_bytes(), random.Random(3)
    for _ in range(3000):
        altered = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            altered[rng.randrange(len(altered))] = rng.randrange(256)
        _tolerate(tmp_path / "altered.onnx", bytes(altered))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    _tolerate(tmp_path_factory.getbasetemp() / "any.onnx", content)


def test_signature_is_that_of_the_onnx_library(tmp_path: Path) -> None:
    path = save(classifier(50), tmp_path / "m.onnx")
    graph = onnx.load(path).graph

    def specs(values: Any) -> list[tuple[str, str, tuple[Any, ...]]]:
        return [
            (
                value.name,
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]

    found = read_onnx(path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.signature.inputs] == specs(graph.input)
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.signature.outputs] == specs(graph.output)
    assert found.operators == {("", node.op_type) for node in graph.node}
