"""Checkpoints to export: the real MiniLM with a seeded head, and tiny seeded models of other architectures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgesmith.tasks import Task, load_task, sample_texts
from export.to_onnx import ExportResult, export_onnx

LABELS = ("business", "entertainment", "politics", "sport", "tech")


@pytest.fixture(scope="session")
def classifier_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a seeded head of five labels, strong enough that its labels are decided."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(
        minilm_folder, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )
    encoder = transformers.AutoModel.from_pretrained(minilm_folder, dtype=torch.float32)
    model = transformers.BertForSequenceClassification(config)
    model.bert.load_state_dict(encoder.state_dict())
    model.classifier.weight.data.mul_(40)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (minilm_folder / name).is_file():
            shutil.copyfile(minilm_folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def classifier_task(classifier_folder: Path) -> Task:
    return load_task(classifier_folder, "text-classification")


@pytest.fixture(scope="session")
def classifier_export(
    classifier_folder: Path, classifier_task: Task, tmp_path_factory: pytest.TempPathFactory
) -> ExportResult:
    """The classifier, exported for ONNX Runtime."""
    return export_onnx(classifier_folder, tmp_path_factory.mktemp("onnx"), task=classifier_task)


def save_tokenizer(folder: Path, *, token_types: bool) -> int:
    """Write a word tokenizer over the sample sentences; return the size of its vocabulary."""
    words = sorted({word for text in sample_texts() for word in text.lower().split()})
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=names,
        model_max_length=64,
    ).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Make a seeded model of an architecture with random weights far enough from zero to matter."""

    def make(config_class: str, *, model_class: str | None = None, token_types: bool, **config: Any) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        size = save_tokenizer(folder, token_types=token_types)
        torch.manual_seed(0)
        settings = {"vocab_size": size, "pad_token_id": 0, "num_labels": 3, **config}
        made = getattr(transformers, config_class)(**settings)
        loader = (
            transformers.AutoModelForSequenceClassification
            if model_class is None
            else getattr(transformers, model_class)
        )
        model = loader.from_config(made) if hasattr(loader, "from_config") else loader(made)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(folder)
        return folder

    return make
