from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from compress.vocabulary.trim import VOCABULARY_FILE, read_kept_ids
from edgesmith.api.vocabulary import trim_vocabulary
from edgesmith.artifact import open_artifact
from edgesmith.errors import UsageError
from edgesmith.recipe.steps import TrimVocabularyOptions
from edgesmith.stages.trim_vocabulary import TrimVocabularyStage, read_corpus
from edgesmith.tasks import load_task
from tests.compress.vocabulary.checkpoints import byte_level, corpus, save_checkpoint, word_piece


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=700, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=2
    )
    return save_checkpoint(
        tmp_path / "whole",
        word_piece(),
        "BertForSequenceClassification",
        config,
        settings={"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "model_max_length": 64},
    )


def test_a_task_reads_its_rows_with_the_trimmed_checkpoint(classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"body": text}) + "\n" for text in corpus()))
    made, result = trim_vocabulary(classifier, corpus=data, out=tmp_path / "out", columns={"text": "body"})
    assert (made.kind, made.manifest.step) == ("checkpoint", "trim-vocabulary")
    assert result.num_rows_after % 8 == 0
    record = json.loads((made.folder / VOCABULARY_FILE).read_text())
    assert record["num_rows_after"] == result.num_rows_after == sum(length for _, length in record["kept"])
    before, after = (load_task(folder).encode(corpus()[:4])["input_ids"] for folder in (classifier, made.folder))
    assert (read_kept_ids(made.folder)[after] == before).all()


def test_a_language_models_rows_are_read_joined_and_alone(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "whole", byte_level())
    (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    (tmp_path / "text.txt").write_text("One.\n\nTwo.\n")
    assert read_corpus(folder, tmp_path / "rows.jsonl", {}) == ["One.\n\nTwo.", "One.", "Two."]
    assert read_corpus(folder, tmp_path / "text.txt", {}) == ["One.\n\nTwo.\n"]


def test_corpus_and_options_decide_the_key_and_the_recipes_path_does_not(classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.txt"
    data.write_text("One.")

    def key(**options: object) -> str:
        trim = TrimVocabularyOptions.model_validate(options)
        return TrimVocabularyStage(source=open_artifact(classifier), corpus=data, trim=trim).key.digest

    first = key()
    assert key(corpus="elsewhere.txt") == first
    assert key(min_count=2) != first
    data.write_text("Two.")
    assert key() != first


def test_an_option_out_of_range_is_named(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_tokens: .*64"):
        trim_vocabulary(classifier, corpus=tmp_path / "rows.txt", out=tmp_path / "out", max_tokens=3)
