from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError
from edgesmith.tasks import Example, TokenClassification, guess_task, load_task
from edgesmith.tasks.token_classification import IGNORED
from tests.tasks.conftest import TOKENIZER_FILES, write_json
from tests.tasks.tokenizers_built import build_roberta

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture
def folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """MiniLM's tokenizer with the configuration of a tagger."""
    path = tmp_path / "tagger"
    path.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(minilm_folder / name, path)
    config = json.loads((minilm_folder / "config.json").read_text())
    config |= {"architectures": ["BertForTokenClassification"], "id2label": dict(enumerate(TAGS))}
    write_json(path / "config.json", config)
    return path


@pytest.fixture
def task(folder: Path) -> TokenClassification:
    loaded = load_task(folder)
    assert isinstance(loaded, TokenClassification)
    return loaded


def row(**values: Any) -> Row:
    return Row(Path("rows.jsonl"), 7, values)


def entity(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def logits_of(codes_NS: np.ndarray) -> np.ndarray:
    """Scores whose best tags are these; other tokens cry for an entity."""
    codes = np.where(codes_NS == IGNORED, 3, codes_NS)
    return np.eye(len(TAGS), dtype=np.float32)[codes] * 9


WORDS = row(tokens=["U.S.", "writer", "Ursula", "Le", "Guin", "left", "Portland."], labels=[*"OO", 1, 2, 2, "O", 3])
TEXT = row(text="Ada met  Grace Hopper.", entities=[{"start": 9, "end": 21, "label": "PER"}])


def test_words_and_their_tags_become_a_text_and_its_entities(task):
    example = task.parse(WORDS)
    assert example.text == "U.S. writer Ursula Le Guin left Portland."
    spans = json.loads(str(example.target))
    assert [(example.text[start:end], kind) for start, end, kind in spans] == [
        ("Ursula Le Guin", "PER"),
        ("Portland.", "LOC"),
    ]
    assert task.parse(WORDS, labelled=False).target is None


def test_the_first_token_of_each_word_carries_its_tag_and_no_other_does(task):
    example = task.parse(WORDS)
    arrays = task.encode([example])
    codes = task.targets([example], arrays)[0]
    assert codes[codes != IGNORED].tolist() == [0, 0, 1, 2, 2, 0, 3]
    assert codes[0] == IGNORED  # [CLS]
    tokens = [task.encoder.tokenizer.id_to_token(one) for one in arrays["input_ids"][0][codes != IGNORED].tolist()]
    assert tokens == ["u", "writer", "ursula", "le", "gui", "left", "portland"]


@pytest.mark.parametrize("rows", [[WORDS], [TEXT], [WORDS, TEXT, row(text="", entities=[])]])
def test_a_model_that_is_right_scores_1_whatever_it_says_of_other_tokens_and_padding(task, rows):
    examples = [task.parse(one) for one in rows]
    arrays = task.encode(examples)
    predictions = task.decode({"logits": logits_of(task.targets(examples, arrays))}, arrays, examples)
    assert {name: metric.compute(predictions, examples) for name, metric in task.metrics.items()} == {
        "entity_f1": 1.0,
        "token_accuracy": 1.0,
    }
    for prediction, example in zip(predictions, examples, strict=True):
        assert all(example.text[one["start"] : one["end"]] == one["text"] for one in prediction["entities"])
        json.dumps(prediction)


def test_wider_padding_changes_no_answer(task):
    examples = [task.parse(TEXT)]
    arrays = task.encode(examples)
    outputs = {"logits": logits_of(task.targets(examples, arrays))}
    padded = {name: np.pad(array, ((0, 0), (0, 5))) for name, array in arrays.items()}
    wide = {"logits": np.pad(outputs["logits"], ((0, 0), (0, 5), (0, 0)), constant_values=7.0)}
    assert task.decode(wide, padded, examples) == task.decode(outputs, arrays, examples)
    np.testing.assert_allclose(task.vectors(wide, padded), task.vectors(outputs, arrays))
    np.testing.assert_array_equal(task.compared(wide, padded)[0], task.compared(outputs, arrays)[0])


def test_every_token_is_compared_under_its_row(task):
    arrays = task.encode(["one", "one two three"])
    logits = np.random.default_rng(0).normal(size=(*arrays["input_ids"].shape, len(TAGS))).astype(np.float32)
    vectors, owners = task.compared({"logits": logits}, arrays)
    assert vectors.shape == (3 + 5, len(TAGS))
    assert owners.tolist() == [0] * 3 + [1] * 5


def test_what_was_cut_off_is_missed_and_not_forgotten(folder):
    task = TokenClassification.load(folder, max_length=6)
    example = task.parse(row(tokens=["a", "b", "c", "d", "e", "f"], labels=[1, 2, 0, 0, 1, 2]))
    arrays = task.encode([example])
    [prediction] = task.decode({"logits": logits_of(task.targets([example], arrays))}, arrays, [example])
    assert [one["text"] for one in prediction["entities"]] == ["a b"]
    assert len(prediction["words"]) == 6
    assert task.metrics["entity_f1"].compute([prediction], [example]) == pytest.approx(2 / 3)


def test_spaces_that_byte_level_tokens_begin_with_belong_to_no_word(tmp_path):
    build_roberta(tmp_path)
    write_json(tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text()) | {"id2label": {"0": "O"}})
    task = TokenClassification(load_task_encoder(tmp_path), TAGS)
    example = Example("Ada met Grace", target='[[8, 13, "PER"]]')
    arrays = task.encode([example])
    [prediction] = task.decode({"logits": logits_of(task.targets([example], arrays))}, arrays, [example])
    assert [(start, end) for start, end, _ in prediction["words"]] == [(0, 3), (4, 7), (8, 13)]
    assert [one["text"] for one in prediction["entities"]] == ["Grace"]


def load_task_encoder(folder: Path) -> Any:
    return TokenClassification.load(folder).encoder


def test_settings_come_back_from_an_artifact(task, folder):
    write_json(folder / "task.json", task.runtime_config())
    (folder / "config.json").unlink()
    again = load_task(folder)
    assert isinstance(again, TokenClassification)
    assert again.runtime_config() == task.runtime_config()


def test_an_architecture_for_tokens_is_recognised():
    assert guess_task({"architectures": ["DistilBertForTokenClassification"]}) == "token-classification"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ["a"], "labels": ["B-ORG"]}, "rows.jsonl:7: the tag 'B-ORG' is unknown .* B-PER"),
        ({"tokens": ["a"], "labels": [9]}, "the tag 9 is unknown"),
        ({"tokens": ["a", "b"], "labels": ["O"]}, "1 tags in 'labels' for 2 words"),
        ({"tokens": ["a"]}, "'labels' is not a list of tags"),
        ({"tokens": "a b", "labels": "O O"}, "'tokens' is not a list of words"),
        ({"tokens": ["a b"], "labels": ["O"]}, "'a b' in 'tokens' is empty, or no single word"),
        ({"tokens": [""], "labels": ["O"]}, "'' in 'tokens' is empty"),
        ({"words": ["a"]}, "has no column 'tokens' and no 'text'; it has 'words'"),
        ({"text": "Ada"}, "'entities' is not a list of entities"),
        (
            {"text": "Ada", "entities": [entity(0, 4, "PER")]},
            "from 0 to 4 is not inside a text of 3",
        ),
        ({"text": "Ada", "entities": [entity(0, 3, "PERS")]}, "'Ada' is 'PERS'; .* LOC, PER"),
        (
            {
                "text": "Ada",
                "entities": [entity(0, 2, "PER"), entity(1, 3, "LOC")],
            },
            "two entities overlap at character 1",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(task, values, message):
    with pytest.raises(DataError, match=message):
        task.parse(row(**values))


def test_a_model_without_names_for_its_tags_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"id2label": {"1": "O"}})
    with pytest.raises(ArtifactError, match="does not name the tags"):
        load_task(folder)
