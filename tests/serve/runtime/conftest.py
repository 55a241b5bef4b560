"""A small seeded Llama and SmolLM2 as GGUF files."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("gguf", "llama_cpp", "torch", "transformers") if find_spec(name) is None]
NEEDS_LIBRARY = {"test_chat_prompt.py", "test_gguf_engine.py", "test_llama_adapters.py", "test_llama_room.py"}


class _SkippedModule(pytest.Module):
    """A file of tests that cannot even be imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if MISSING and module_path.name in NEEDS_LIBRARY:
        return _SkippedModule.from_parent(parent, path=module_path)
    return None


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
