"""A server with a small seeded language model, MiniLM as GGUF, an ONNX encoder and a classifier."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from serve.access import Access
from serve.config import Limits, ModelSpec, ServerConfig
from serve.http.router import Router
from serve.http.server import HttpServer
from serve.metrics import Metrics
from serve.models.repository import Repository
from serve.protocols import openai, predict
from serve.service import Service
from serve.traffic import Traffic
from tests.serve.protocols.oip.conftest import encoder_folder
from tests.serve.protocols.oip.serving import Serving

MISSING = [name for name in ("gguf", "llama_cpp", "torch", "transformers") if find_spec(name) is None]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system message comes first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class OpenAiServing(Serving):
    """With the routes of OpenAI and of `/predict`."""

    async def _start(self) -> None:
        self.repository = Repository(self.config, loop=self.loop)
        self.service = Service(self.config, self.repository, Metrics(self.repository), Traffic())
        access = Access.for_host("127.0.0.1", api_keys=self.config.api_keys)
        router = Router([*openai.routes(self.service), *predict.routes(self.service)])
        self.http = HttpServer(router, self.config.limits, access)
        await self.http.start("127.0.0.1", 0)
        await self.repository.start()


@pytest.fixture(scope="session")
def writer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama of 3 layers with a chat template, as GGUF."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    import transformers

    from export.gguf.to_gguf import to_gguf
    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("writer")
    save_model(folder, transformers.LlamaConfig(**TINY, tie_word_embeddings=False))
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return to_gguf(folder, folder.parent / "writer.gguf", dtype="f32").path


@pytest.fixture(scope="session")
def pooled_path(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as GGUF."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    from export.gguf.to_gguf import to_gguf

    return to_gguf(minilm_folder, tmp_path_factory.mktemp("pooled") / "minilm.gguf", dtype="f16").path


@pytest.fixture(scope="session")
def serving(
    writer_path: Path,
    pooled_path: Path,
    classifier_path: Path,
    minilm_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OpenAiServing]:
    """All of them, and a second version of the language model."""
    root = tmp_path_factory.mktemp("served")
    second = shutil.copyfile(writer_path, root / "second.gguf")
    models = (
        ModelSpec(name="writer", path=writer_path, threads=1),
        ModelSpec(name="writer", path=second, version="2", threads=1),
        ModelSpec(name="narrow", path=writer_path, threads=1, num_slots=1, max_queue=1),
        ModelSpec(name="pooled", path=pooled_path, threads=1),
        ModelSpec(name="encoder", path=encoder_folder(root / "encoder", minilm_folder), threads=1),
        ModelSpec(name="news", path=classifier_path, threads=1),
    )
    with OpenAiServing(ServerConfig(models=models, limits=Limits(max_rows=100, max_tokens=200))) as running:
        yield running
