from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.serving.served import ServedModel, ask_server
from export.serving.triton import write_triton
from serve.config import ModelSpec
from tests.serve.conftest import classifier_path
from tests.serve.models_built import affine, save, write
from tests.serve.protocols.oip.serving import echo

__all__ = ["classifier_path", "models", "repository", "served"]


def scorer() -> onnx.GraphProto:
    """A number a row: y = Σ x, x of shape [batch, 4], y of shape [batch]."""
    return helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "one"], ["y"], keepdims=0)],
        "scorer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )


def total() -> onnx.GraphProto:
    """A number without axes: y = Σ x, x of any shape [rows, columns]."""
    return helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, classifier_path: Path) -> Sequence[ModelSpec]:
    """Models of every form, and two versions of one."""
    root = tmp_path_factory.mktemp("models")
    graphs = {
        "affine": affine(),
        "fixed": echo("x", "FP32", [2, 3]),
        "image": echo("x", "UINT8", ["batch", 3, "height", 64]),
        "scorer": scorer(),
        "total": total(),
        "words": echo("text", "BYTES", ["batch", "width"]),
    }
    for name, graph in graphs.items():
        save(graph, root / name / "model.onnx")
        write(root / name)
    settings = {"max_batch_size": 16, "max_queue_delay_us": 250}
    return (
        *(ModelSpec(name=name, path=root / name, **settings) for name in graphs),
        ModelSpec(name="news", path=classifier_path, version="1", **settings),
        ModelSpec(name="news", path=classifier_path, version="4", **settings),
    )


@pytest.fixture(scope="session")
def served(models: Sequence[ModelSpec]) -> dict[str, ServedModel]:
    """Name → what our own server says; of versions the newest."""
    return {one.spec.name: one for one in ask_server(models)}


@pytest.fixture(scope="session")
def repository(models: Sequence[ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of all models; not to be changed."""
    return write_triton(models, tmp_path_factory.mktemp("triton") / "repository", threads=2, num_instances=3).path
