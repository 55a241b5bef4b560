"""The whole thin path on a real model: MiniLM exported, then opened where nothing else is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgesmith.artifact import Artifact, open_artifact, write_artifact
from edgesmith.tasks import Task, load_task, sample_texts
from serve.runtime import open_engine
from serve.runtime.golden import check_golden, write_golden
from serve.runtime.probe import probe
from tests.serve.test_thin import ANSWER, HEAVY, STAGES, fresh

pytestmark = pytest.mark.slow

GOLDEN = sample_texts()[:4]


@pytest.fixture(scope="module")
def task(minilm_folder: Path) -> Task:
    return load_task(minilm_folder)


@pytest.fixture(scope="module")
def artifact(minilm_folder: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """MiniLM as an fp32 ONNX artifact with golden vectors from torch."""
    from export.reference import TorchEngine
    from export.to_onnx import export_onnx

    folder = tmp_path_factory.mktemp("real")
    export_onnx(minilm_folder, folder, task=task)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copyfile(minilm_folder / name, folder / name)
    (folder / "task.json").write_text(json.dumps(task.runtime_config()))
    arrays = task.encode(GOLDEN)
    outputs = TorchEngine(minilm_folder, task).run(arrays)
    write_golden(folder, inputs=arrays, outputs=outputs, max_abs_difference=1e-4, texts=GOLDEN)
    return write_artifact(folder, kind="onnx", step="export", task=task.name, precision="fp32")


def test_engine_agrees_with_torch(artifact: Artifact) -> None:
    check = check_golden(artifact, open_engine(artifact))
    assert check is not None
    assert check.passed, check.reason


def test_embedding_of_a_text_does_not_depend_on_its_batch(artifact: Artifact) -> None:
    task, engine = load_task(artifact.path), open_engine(open_artifact(artifact.path))
    texts = sample_texts()[:16]
    arrays = task.encode(texts)
    together = task.vectors(engine.run(arrays), arrays)
    for text, vector in zip(texts, together, strict=True):
        alone = task.encode([text])
        np.testing.assert_allclose(task.vectors(engine.run(alone), alone)[0], vector, atol=1e-5)


def test_related_texts_are_nearer_than_unrelated_ones(artifact: Artifact) -> None:
    task, engine = load_task(artifact.path), open_engine(artifact)
    pairs = [
        ("The striker scored twice.", "A forward got two goals."),
        ("The striker scored twice.", "Interest rates were cut again."),
    ]
    arrays = task.encode(pairs)
    near, far = (one["similarity"] for one in task.decode(engine.run(arrays), arrays, pairs))
    assert near > 0.5 > 0.2 > far


def test_answering_loads_no_training_library(artifact: Artifact) -> None:
    modules = set(fresh(ANSWER, artifact.path)["modules"])
    assert "onnxruntime" in modules
    assert not (HEAVY | STAGES) & modules


def test_probe_measures_it(artifact: Artifact) -> None:
    result = probe(artifact.path, num_runs=3)
    assert result["golden"]["passed"]
    assert result["input_shapes"]["input_ids"][0] == len(GOLDEN)
