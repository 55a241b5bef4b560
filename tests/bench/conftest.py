"""A real model that is made in a second: naive Bayes over word pieces, as an ONNX graph with a real tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesmith.artifact import Artifact, write_artifact
from edgesmith.tasks import Example, Task, load_task

NUM_TEST = 360


@dataclass(frozen=True)
class News:
    """The same classifier twice, exact and coarsened, with held-out examples."""

    exact: Artifact
    coarse: Artifact
    task: Task
    examples: list[Example]


@pytest.fixture(scope="session")
def news(minilm_folder: Path, news_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> News:
    """News classifiers: `coarse` has weights of a few bits, so some answers differ."""
    root = tmp_path_factory.mktemp("news")
    labels = sorted({row["label"] for row in news_rows})
    shuffled = [news_rows[index] for index in np.random.default_rng(0).permutation(len(news_rows))]
    examples = [
        Example(row["text"], None, labels.index(row["label"]), line) for line, row in enumerate(shuffled, start=1)
    ]
    task = load_task(_tokenizer_folder(root / "tokenizer", minilm_folder, labels), "text-classification")
    weights_VL = _log_odds(task, examples[NUM_TEST : NUM_TEST + 400], len(labels))
    step = 0.6
    return News(
        exact=_artifact(root / "exact", task, minilm_folder, labels, weights_VL),
        coarse=_artifact(root / "coarse", task, minilm_folder, labels, np.round(weights_VL / step) * step),
        task=task,
        examples=examples[:NUM_TEST],
    )


def _tokenizer_folder(folder: Path, minilm_folder: Path, labels: list[str]) -> Path:
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm_folder / name, folder / name)
    config = json.loads((minilm_folder / "config.json").read_text())
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(index): label for index, label in enumerate(labels)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _log_odds(task: Task, examples: list[Example], num_labels: int) -> NDArray[np.float32]:
    counts_VL = np.full((30522, num_labels), 0.5)
    for example in examples:
        np.add.at(counts_VL[:, int(example.target or 0)], task.encode([example])["input_ids"][0], 1)
    logs_VL = np.log(counts_VL / counts_VL.sum(axis=0))
    return (logs_VL - logs_VL.mean(axis=1, keepdims=True)).astype(np.float32)


def _artifact(
    folder: Path, task: Task, minilm_folder: Path, labels: list[str], weights_VL: NDArray[np.float32]
) -> Artifact:
    _tokenizer_folder(folder, minilm_folder, labels)
    (folder / "task.json").write_text(json.dumps(task.runtime_config()))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in task.input_names]
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["terms"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["terms", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "naive_bayes",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        [
            numpy_helper.from_array(weights_VL.astype(np.float32), "weights"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return write_artifact(folder, kind="onnx", step="test", task=task.name)
