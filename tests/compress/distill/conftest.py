"""A tiny teacher of each kind, with seeded weights strong enough that it has opinions, and rows for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.distill.rows import RowData
from compress.distill.run import Work
from edgesmith.recipe import DistillOptions
from edgesmith.tasks import Example, load_task, sample_texts
from tests.export.conftest import save_tokenizer
from tests.export.generators import save_generator

LABELS = ("bad", "fair", "good")


def save_bert(folder: Path, *, model_class: str = "BertForSequenceClassification", seed: int = 0, **sizes: Any) -> Path:
    """A seeded BERT with its tokenizer."""
    vocab_size = save_tokenizer(folder, token_types=True)
    torch.manual_seed(seed)
    named = {} if model_class == "BertModel" else {"id2label": sizes.pop("id2label", dict(enumerate(LABELS)))}
    chosen = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, **sizes}
    config = transformers.BertConfig(vocab_size=vocab_size, max_position_embeddings=64, **chosen, **named)
    model = getattr(transformers, model_class)(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(30 if name.startswith("classifier") else 4)
    model.save_pretrained(folder)
    return folder


def options(**given: Any) -> DistillOptions:
    train = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, **given.pop("train", {})}
    return DistillOptions.model_validate({**given, "train": train})


def work(folder: Path, **given: Any) -> Work:
    return Work(folder=folder / "work", cache=folder / "cache", identity="the same", **given)


def row_data(teacher: Path, student: Path | None = None, examples: list[Example] | None = None) -> RowData:
    tasks = [load_task(folder) for folder in (teacher, student or teacher)]
    given = examples or [Example(text) for text in sample_texts()[:48]]
    return RowData(teacher_task=tasks[0], task=tasks[1], examples=given)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def training(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return facts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more threads, which wait for each other by spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("encoder"), model_class="BertModel")


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("language-model"), initializer_range=0.3)


@pytest.fixture(scope="session")
def windows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    rows: list[list[int]] = torch.randint(0, 256, (24, 16), generator=generator).tolist()
    return rows
