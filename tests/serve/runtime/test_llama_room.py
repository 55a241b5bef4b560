"""What is left when llama.cpp fails, and vectors of a real model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgesmith.errors import ArtifactError, UsageError
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_engine import LlamaEngine
from serve.runtime.llama_adapters import LlamaAdapters
from serve.runtime.llama_library import LlamaContext, LlamaModel, load_library
from serve.runtime.llama_loading import last_error
from serve.runtime.llama_room import LlamaRoom
from serve.runtime.llama_session import LlamaSession


@pytest.fixture
def model(tiny_file: Path) -> Iterator[LlamaModel]:
    with LlamaModel(tiny_file) as opened:
        yield opened


def test_after_a_context_that_could_not_be_made_the_next_one_is_new(model: LlamaModel) -> None:
    room, none = LlamaRoom[LlamaContext](), LlamaAdapters(model, ())
    first = room.grown(4, lambda size: LlamaContext(model, num_tokens=size), none)
    before = first.run([5, 6, 7])

    def fail(size: int) -> LlamaContext:
        raise ArtifactError(f"no memory for {size} tokens")

    with pytest.raises(ArtifactError, match="no memory for 9"):
        room.grown(9, fail, none)
    assert room.held is None
    after = room.grown(3, lambda size: LlamaContext(model, num_tokens=size), none)
    assert after is not first
    np.testing.assert_array_equal(after.run([5, 6, 7]), before)
    room.close()


def test_a_closed_context_is_an_error_and_not_the_end_of_the_process(model: LlamaModel) -> None:
    context = LlamaContext(model, num_tokens=4)
    session = LlamaSession(model, num_tokens=8, num_batch=4, threads=1)
    session.read([5, 6])
    context.close()
    session.close()
    for call in (
        lambda: context.run([5]),
        lambda: context.set_adapters(()),
        lambda: session.read([5, 6]),
        lambda: session.step(7),
        lambda: session.logits(),
        lambda: session.forget(),
        lambda: session.set_adapters(()),
    ):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_each_thread_hears_of_its_own_failure_only(tmp_path: Path) -> None:
    library = load_library()
    missing = str(tmp_path / "missing.gguf").encode()
    assert not library.llama_model_load_from_file(missing, library.llama_model_default_params())
    heard: list[str] = []
    other = threading.Thread(target=lambda: heard.append(last_error()))
    other.start()
    other.join()
    assert heard == ["it does not say why"]
    assert last_error() != "it does not say why"


def test_vectors_of_minilm_are_the_means_that_torch_computes(minilm_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    texts = ["A man is eating food.", "Le prix monte à 12,75 €!", "word " * 100]
    engine = LlamaEngine(to_gguf(minilm_folder, tmp_path / "minilm.gguf", dtype="f32").path)
    found = engine.embed(texts, pooling="mean", normalize=True)
    engine.close()
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    torch_model = AutoModel.from_pretrained(minilm_folder, dtype=torch.float32)
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = torch_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = states.mean(dim=0).numpy()
        assert float(vector @ expected) / float(np.linalg.norm(expected)) > 0.9999
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
