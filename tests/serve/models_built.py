"""Small ONNX models, made node by node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesmith.artifact import Artifact, Signature, write_artifact

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
AXES = ["batch", "sequence"]
HIDDEN, NUM_LABELS = 8, 3


def save(graph: onnx.GraphProto, path: Path, **options: Any) -> Path:
    """Write a graph as a model file of an operator set that every engine knows."""
    options.setdefault("opset_imports", [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, ir_version=9, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def affine(
    nodes: Sequence[onnx.NodeProto] | None = None, initializers: Sequence[onnx.TensorProto] | None = None
) -> onnx.GraphProto:
    """y = x · w + b, x of shape [batch, 4]; other nodes may be given in its place."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    default = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    return helper.make_graph(
        default if nodes is None else list(nodes),
        "affine",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(3, np.float32), "b")]
        if initializers is None
        else list(initializers),
    )


def external_tensor(name: str, shape: Sequence[int], **entries: str) -> onnx.TensorProto:
    """A float tensor whose bytes are elsewhere."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=list(shape), data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def classifier(vocabulary_size: int) -> onnx.GraphProto:
    """Logits of a bag of token embeddings: the smallest graph with a BERT's signature."""
    rng = np.random.default_rng(0)
    constants = {
        "embeddings": rng.normal(size=(vocabulary_size, HIDDEN)).astype(np.float32),
        "types": rng.normal(size=(2, HIDDEN)).astype(np.float32),
        "head": rng.normal(size=(HIDDEN, NUM_LABELS)).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["tokens"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["tokens", "kinds"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["weights"]),
        helper.make_node("Mul", ["states", "weights"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    names = ("input_ids", "token_type_ids", "attention_mask")
    return helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, INT64, AXES) for name in names],
        [helper.make_tensor_value_info("logits", FLOAT, ["batch", NUM_LABELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def write(folder: Path, signature: Signature | None = None, **values: Any) -> Artifact:
    """Write the manifest of an ONNX folder."""
    return write_artifact(folder, kind="onnx", step="test", precision="fp32", signature=signature, **values)


def classifier_folder(folder: Path, minilm: Path) -> Path:
    """The folder of a small classifier with MiniLM's tokenizer, without a manifest."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(minilm / name, folder / name)
    config = json.loads((minilm / "config.json").read_text())
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "business", "1": "sport", "2": "tech"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save(classifier(config["vocab_size"]), folder / "model.onnx")
    return folder
