from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.tasks import load_task
from serve.runtime import open_engine
from serve.runtime.golden import write_golden
from tests.serve.models_built import affine, classifier_folder, save, write

TEXTS = ("Shares fell.", "A late goal won the cup.", ("Is it out?", "The new phone is out."))


@pytest.fixture
def affine_artifact(tmp_path: Path) -> Artifact:
    """y = x · w + b."""
    save(affine(), tmp_path / "affine" / "model.onnx")
    return write(tmp_path / "affine")


@pytest.fixture(scope="session")
def classifier_path(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole artifact: a small classifier with MiniLM's tokenizer and golden vectors."""
    folder = classifier_folder(tmp_path_factory.mktemp("artifact") / "classifier", minilm_folder)
    task = load_task(folder)
    (folder / "task.json").write_text(json.dumps(task.runtime_config()))
    engine = open_engine(open_artifact(folder / "model.onnx"))
    arrays = task.encode(TEXTS)
    outputs = {name: np.asarray(values) for name, values in engine.run(arrays).items()}
    write_golden(folder, inputs=arrays, outputs=outputs, max_abs_difference=1e-4, texts=TEXTS)
    write(folder, engine.signature, task=task.name)
    engine.close()
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers that writes characters of several tokens."""
    import transformers

    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder, transformers.LlamaConfig(**TINY, tie_word_embeddings=False))
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_file(tiny_folder: Path) -> Path:
    from export.gguf.to_gguf import to_gguf

    return to_gguf(tiny_folder, tiny_folder.parent / "tiny.gguf", dtype="f32").path


@pytest.fixture(scope="session")
def smollm2_file(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.gguf.to_gguf import to_gguf

    return to_gguf(smollm2_folder, tmp_path_factory.mktemp("smollm2") / "model.gguf", dtype="f32").path
