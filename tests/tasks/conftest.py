from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SENTENCE_FILES = ("config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def classifier_folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """MiniLM's tokenizer with the configuration of a classifier of three labels."""
    folder = tmp_path / "classifier"
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(minilm_folder / name, folder)
    config = json.loads((minilm_folder / "config.json").read_text())
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "business", "1": "sport", "2": "tech"},
    }
    write_json(folder / "config.json", config)
    return folder


@pytest.fixture
def encoder_folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """MiniLM as sentence-transformers saves it, without its weights."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in (*TOKENIZER_FILES, *SENTENCE_FILES):
        shutil.copy(minilm_folder / name, folder)
    shutil.copytree(minilm_folder / "1_Pooling", folder / "1_Pooling")
    return folder
