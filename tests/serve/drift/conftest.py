from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesmith.artifact import open_artifact
from edgesmith.tasks import FeatureExtraction, Task, load_task
from serve.drift import Reference, make_reference
from serve.runtime import Engine, open_engine
from tests.serve.models_built import AXES, FLOAT, HIDDEN, INT64, classifier_folder, save
from tests.serve.models_built import classifier as classifier_graph

NUM_REFERENCE = 1000


def encoder(vocabulary_size: int) -> onnx.GraphProto:
    """States of a table of token embeddings."""
    table = np.random.default_rng(0).normal(size=(vocabulary_size, HIDDEN)).astype(np.float32)
    names = ("input_ids", "attention_mask")
    return helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
         helper.make_node("Identity", ["attention_mask"], ["unused"])],
        "encoder",
        [helper.make_tensor_value_info(name, INT64, AXES) for name in names],
        [helper.make_tensor_value_info("last_hidden_state", FLOAT, [*AXES, HIDDEN]),
         helper.make_tensor_value_info("unused", INT64, AXES)],
        [numpy_helper.from_array(table, "table")],
    )  # fmt: skip


def sentences(texts: list[str], seed: int) -> list[str]:
    found = [one for text in texts for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 20 < len(one) < 400]
    return [found[index] for index in np.random.default_rng(seed).permutation(len(found))]


@pytest.fixture(scope="session")
def news(news_rows: list[dict[str, str]]) -> list[str]:
    return sentences([row["text"] for row in news_rows[:600]], 0)


@pytest.fixture(scope="session")
def manual() -> list[str]:
    """Sentences of another kind: Python's own manual."""
    return sentences(list(topics.values()), 1)


@pytest.fixture(scope="session")
def classifier(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Task]]:
    """A small classifier that is sure of some texts and unsure of others."""
    folder = classifier_folder(tmp_path_factory.mktemp("classifier") / "model", minilm_folder)
    graph = classifier_graph(30_522)
    head = next(one for one in graph.initializer if one.name == "head")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(0.1), "head"))
    save(graph, folder / "model.onnx")
    engine = open_engine(open_artifact(folder / "model.onnx"))
    yield engine, load_task(folder)
    engine.close()


@pytest.fixture(scope="session")
def embedder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Task]]:
    folder = tmp_path_factory.mktemp("embedder")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copyfile(minilm_folder / name, folder / name)
    (folder / "tokenizer_config.json").write_text('{"model_input_names": ["input_ids", "attention_mask"]}')
    save(encoder(30_522), folder / "model.onnx")
    engine = open_engine(open_artifact(folder / "model.onnx"))
    yield engine, FeatureExtraction.load(folder)
    engine.close()


@pytest.fixture(scope="session")
def reference(classifier: tuple[Engine, Task], news: list[str]) -> Reference:
    return make_reference(*classifier, news[:NUM_REFERENCE])
