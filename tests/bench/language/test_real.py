"""A small seeded Llama in torch and in llama.cpp: the same measurement of both, against all logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.language.measure import measure_language
from bench.language.reference import record_reference
from bench.language.windows import windows_of
from tests.bench.language.engines import log_softmax

TEXT = "It was the best of times, it was the worst of times; in 1849 the price rose from $3.50 to $12.75.\n" * 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("llama_cpp", "gguf"):
        pytest.importorskip(name)
    transformers = pytest.importorskip("transformers")
    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder, transformers.LlamaConfig(**TINY))
    save_tokenizer(folder)
    return folder


def test_llama_cpp_is_measured_against_torch(checkpoint: Path, tmp_path: Path) -> None:
    from export.gguf.to_gguf import to_gguf
    from export.reference_generation import TorchGenerationEngine
    from serve.runtime import EngineOptions
    from serve.runtime.gguf_engine import LlamaEngine

    to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")
    torch, llama = TorchGenerationEngine(checkpoint), LlamaEngine(tmp_path / "model.gguf", EngineOptions(threads=1))
    text = windows_of(torch, TEXT, 64, max_windows=3)
    assert windows_of(llama, TEXT, 64, max_windows=3).digest == text.digest
    found = measure_language(llama, record_reference(torch, text, num_tail=512, top_k=512))
    klds, losses = [], []
    for window in range(text.num_windows):
        p, q = (log_softmax(one.logits(text.input_of(window), first=32)[:-1]) for one in (torch, llama))
        klds.append((np.exp(p) * (p - q)).sum(axis=1))
        losses.append(-q[np.arange(31), text.targets[window]])
    assert found.kld == pytest.approx(np.stack(klds), rel=0.02, abs=1e-10)
    assert found.nll == pytest.approx(np.stack(losses), abs=1e-5)
    assert found.mean_kld().value < 1e-4
    torch.close()
    llama.close()
