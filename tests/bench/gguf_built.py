"""Small seeded language models as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgesmith.artifact import Artifact, open_artifact


def build_gguf(folder: Path, config_class: str = "LlamaConfig", **settings: Any) -> Artifact:
    """A model of three layers, 64 wide, with two of four heads for keys and values, and 1,000 tokens; in f16."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    import transformers

    from export.gguf.to_gguf import to_gguf
    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    merged = {key: value for key, value in (TINY | settings).items() if value is not None}
    save_model(checkpoint, getattr(transformers, config_class)(**merged))
    save_tokenizer(checkpoint)
    return open_artifact(to_gguf(checkpoint, folder / "model.gguf").path)
