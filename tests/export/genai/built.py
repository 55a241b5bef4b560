"""Small seeded models and their folders for onnxruntime-genai, built once a session."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers

from export.genai.quant_config import Precision
from export.genai.to_genai import GenaiExport, to_genai
from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

MISSING = [name for name in ("onnxruntime_genai", "onnx_ir") if find_spec(name) is None]
needs_genai = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@functools.cache
def _room() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="genai-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_checkpoint(folder: Path, config_class: str, **settings: Any) -> Path:
    """A seeded model with the settings of `TINY` but for those given; None takes one away."""
    folder.mkdir(parents=True)
    merged = {key: value for key, value in (TINY | settings).items() if value is not None}
    save_model(folder, getattr(transformers, config_class)(**merged))
    save_tokenizer(folder)
    return folder


@functools.cache
def tiny_llama() -> Path:
    """A Llama whose head is its embeddings."""
    return make_checkpoint(_room() / "llama", "LlamaConfig", tie_word_embeddings=True)


@functools.cache
def built_llama(precision: Precision) -> GenaiExport:
    """The same for onnxruntime-genai."""
    return to_genai(tiny_llama(), _room() / precision, precision=precision)
