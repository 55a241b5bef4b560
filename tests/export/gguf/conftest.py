"""Checkpoints to convert: SmolLM2 and MiniLM as their packages carry them, and small seeded models of each family."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from compress.quiet import quiet_libraries
from export.gguf.parity_lines import generate_lines

TEXTS = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair.",
    "In 1849, the price rose from $3.50 to $12.75 within 6 weeks; by 1851 it was 40 % lower again.",
    "def add(a: int, b: int) -> int:\n    return a + b  # no overflow in Python\n",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


MISSING = [name for name in ("gguf", "llama_cpp") if find_spec(name) is None]


class _SkippedModule(pytest.Module):
    """A file of tests that cannot even be imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _SkippedModule.from_parent(parent, path=module_path) if MISSING else None


@functools.cache
def small_tokenizer() -> str:
    """A byte-level BPE of 1,000 tokens with GPT-2's rules, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *generate_lines(500, special_tokens=())], trainer)
    return str(tokenizer.to_str())


def save_tokenizer(folder: Path, *, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    content = json.loads(small_tokenizer())
    if change is not None:
        change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]})
    )


def save_model(folder: Path, config: Any, *, loader: Any = transformers.AutoModelForCausalLM) -> None:
    """Write a seeded model whose weights are far enough from zero to matter."""
    torch.manual_seed(0)
    with quiet_libraries():
        model = loader.from_config(config)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.12)
        model.save_pretrained(folder)


TINY = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 converted to bf16. Do not change it."""
    from export.gguf.to_gguf import to_gguf

    return to_gguf(smollm2_folder, tmp_path_factory.mktemp("smollm2") / "model.gguf", dtype="bf16").path


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Make a small seeded language model: class of its configuration, and settings other than `TINY`."""

    def make(config_class: str, **settings: Any) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        merged = {key: value for key, value in (TINY | settings).items() if value is not None}
        save_model(folder, getattr(transformers, config_class)(**merged))
        save_tokenizer(folder)
        return folder

    return make


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a checkpoint, its weights by link, to change it."""

    def copy(folder: Path) -> Path:
        target = tmp_path / "copied"
        target.mkdir()
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                os.link(path, target / path.name) if _same_device(path, target) else shutil.copy(path, target)
            elif path.is_file():
                shutil.copy(path, target / path.name)
        return target

    return copy


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
