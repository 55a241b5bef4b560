from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesmith.tasks import load_task
from serve.config import Limits, ModelSpec, ServerConfig
from tests.serve.models_built import affine, save, write
from tests.serve.protocols.oip.serving import Serving, echo, encoder, identity

TOKEN = "of-the-admin"


def encoder_folder(folder: Path, minilm: Path) -> Path:
    """A small encoder with MiniLM's tokenizer."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copyfile(minilm / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    save(encoder(config["vocab_size"]), folder / "model.onnx")
    task = load_task(folder, "feature-extraction")
    (folder / "task.json").write_text(json.dumps(task.runtime_config()))
    write(folder, task=task.name)
    return folder


def served_models(root: Path, classifier: Path, minilm: Path) -> tuple[ModelSpec, ...]:
    """The models of these tests."""
    for name, graph in {
        "identity": identity(),
        "affine": affine(),
        "words": echo("text", "BYTES", ["batch"]),
        "fixed": echo("x", "FP32", [2, 3]),
        "image": echo("x", "FP32", ["batch", 3, 64, 64]),
    }.items():
        save(graph, root / name / "model.onnx")
        write(root / name)
    encoder_folder(root / "encoder", minilm)
    paths = {name: root / name for name in ("identity", "affine", "words", "fixed", "image", "encoder")}
    specs = [ModelSpec(name=name, path=path) for name, path in paths.items()]
    return (
        *specs,
        ModelSpec(name="news", path=classifier, version="1"),
        ModelSpec(name="news", path=classifier, version="2"),
    )


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory, classifier_path: Path, minilm_folder: Path) -> Iterator[Serving]:
    """A server of all models of these tests, with HTTP and gRPC."""
    models = served_models(tmp_path_factory.mktemp("served"), classifier_path, minilm_folder)
    limits = Limits(max_body_bytes=1 << 20)
    with Serving(ServerConfig(models=models, limits=limits, admin_token=TOKEN), has_grpc=True) as running:
        yield running
