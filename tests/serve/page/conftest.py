from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from serve.config import ModelSpec, ServerConfig
from tests.serve.models_built import affine, save, write
from tests.serve.page.browser import CHROMIUM, Browser, browse
from tests.serve.page.running import Running, running

KEY = "a-key-of-this-test"


@pytest.fixture(scope="session")
def config(classifier_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    """Two versions of a classifier that share traffic, and a graph without a task."""
    folder = tmp_path_factory.mktemp("affine")
    save(affine(), folder / "model.onnx")
    write(folder)
    specs = [ModelSpec(name="news", version=version, path=classifier_path, threads=1) for version in ("1", "2")]
    specs.append(ModelSpec(name="affine", path=folder, threads=1))
    return ServerConfig(models=tuple(specs), port=0, drain_s=5, splits={"news": {"1": 3, "2": 1}})


@pytest.fixture(scope="module")
def server(config: ServerConfig) -> Iterator[Running]:
    with running(config) as found:
        yield found


@pytest.fixture(scope="module")
def locked_server(config: ServerConfig) -> Iterator[Running]:
    with running(replace(config, api_keys=(KEY,), models=config.models[:2])) as found:
        yield found


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small seeded Llama as a GGUF file; what it writes means nothing."""
    missing = [name for name in ("gguf", "llama_cpp", "torch", "transformers") if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    import transformers

    from export.gguf.to_gguf import to_gguf
    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny-text")
    save_model(folder, transformers.LlamaConfig(**TINY, tie_word_embeddings=False))
    save_tokenizer(folder)
    return to_gguf(folder, folder.parent / "tiny-text.gguf", dtype="f32").path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with browse(tmp_path_factory.mktemp("browser")) as found:
        yield found
