"""Vectors of texts, whatever engine makes them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.tasks import FeatureExtraction, load_task
from serve.models.graph_model import GraphModel
from serve.runtime import EngineOptions, open_engine
from serve.runtime.gguf_engine import LlamaEngine
from tests.serve.protocols.openai.asking import value_of
from tests.serve.protocols.openai.conftest import OpenAiServing

TEXTS = [("word " * (index * 7 % 40) + f"number {index}") for index in range(90)]


def vectors_of(serving: OpenAiServing, model: str, texts: Any, **settings: Any) -> NDArray[np.float32]:
    data = value_of(serving, "/v1/embeddings", model=model, input=texts, **settings)["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["embedding"] for entry in data], np.float32)


def test_vectors_of_a_graph_are_the_tasks_and_keep_their_order(serving: OpenAiServing) -> None:
    model = serving.repository.get("encoder")
    assert isinstance(model, GraphModel)
    task = load_task(model.artifact.folder)
    assert isinstance(task, FeatureExtraction)
    engine = open_engine(model.artifact)
    wanted = []
    for text in TEXTS:
        arrays = task.encode([text])
        wanted.append(task.vectors(engine.run(arrays), arrays)[0])
    engine.close()
    np.testing.assert_allclose(vectors_of(serving, "encoder", TEXTS), np.stack(wanted), atol=1e-5)
    np.testing.assert_allclose(vectors_of(serving, "encoder", TEXTS[3]), wanted[3:4], atol=1e-5)


def test_vectors_of_a_gguf_are_the_engines(serving: OpenAiServing, pooled_path: Path) -> None:
    engine = LlamaEngine(pooled_path, EngineOptions(threads=1))
    texts = ["A late goal won the cup.", "Shares fell."]
    np.testing.assert_allclose(vectors_of(serving, "pooled", texts), engine.embed(texts), atol=1e-5)
    engine.close()


@pytest.mark.parametrize("model", ["encoder", "pooled"])
def test_numbers_and_base64_are_the_same_and_tokens_are_counted(serving: OpenAiServing, model: str) -> None:
    texts = ["Shares fell.", "A late goal won the cup."]
    plain = vectors_of(serving, model, texts)
    asked = {"model": model, "input": texts, "encoding_format": "base64", "dimensions": plain.shape[1]}
    answer = value_of(serving, "/v1/embeddings", **asked)
    packed = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]
    np.testing.assert_array_equal(np.stack(packed), plain)
    # MiniLM's tokenizer: [CLS] shares fell . [SEP], and [CLS] a late goal won the cup . [SEP]
    assert answer["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
