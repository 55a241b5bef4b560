from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError, UnsupportedError, UsageError
from edgesmith.tasks import Example, TextClassification, load_task
from tests.tasks.conftest import write_json

HERE = Path("rows.jsonl")


@pytest.fixture
def task(classifier_folder: Path) -> TextClassification:
    return TextClassification.load(classifier_folder)


def _row(**values: Any) -> Row:
    return Row(HERE, 7, values)


def _change(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    write_json(path, {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value != "gone"})


def test_labels_come_from_the_configuration_in_order(task: TextClassification) -> None:
    assert task.labels == ("business", "sport", "tech")


def test_ten_and_more_labels_are_ordered_by_number(classifier_folder: Path) -> None:
    _change(classifier_folder, id2label={str(index): f"c{index}" for index in reversed(range(12))})
    assert TextClassification.load(classifier_folder).labels[10] == "c10"


@pytest.mark.parametrize(("label", "index"), [("sport", 1), (2, 2), ("0", 0), (0, 0), (" 1", 1)])
def test_label_is_a_name_or_an_index(task: TextClassification, label: str | int, index: int) -> None:
    assert task.parse(_row(text="a", label=label)) == Example("a", None, index, 7)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("sports", r"rows\.jsonl:7: the label 'sports' is unknown .*'business', 'sport', 'tech'"),
        ("sports", "Did you mean 'sport'"),
        ("3", "the label '3' is unknown"),
        (3, "the label 3 is out of range: the model has the labels 0 to 2"),
        (-1, "the label -1 is out of range"),
        (1.0, "the label 1.0 is a float"),
        (True, "the label True is a bool"),
        (None, "the label None is a NoneType"),
        (["sport"], "is a list"),
    ],
)
def test_label_that_the_model_does_not_have_is_named(task: TextClassification, label: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.parse(_row(text="a", label=label))


def test_many_labels_are_listed_in_part(classifier_folder: Path) -> None:
    _change(classifier_folder, id2label={str(index): f"c{index}" for index in range(77)})
    with pytest.raises(DataError, match="and 57 more"):
        TextClassification.load(classifier_folder).parse(_row(text="a", label="?"))


def test_number_that_is_the_name_of_another_label_is_ambiguous(classifier_folder: Path) -> None:
    _change(classifier_folder, id2label={"0": "1", "1": "2", "2": "3"})
    task = TextClassification.load(classifier_folder)
    assert task.parse(_row(text="a", label="1")).target == 0
    with pytest.raises(DataError, match="1 is both an index and the name of label 0"):
        task.parse(_row(text="a", label=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": "sport"}, r"rows\.jsonl:7: has no column 'text'; it has 'label'"),
        ({"text": "a"}, r"rows\.jsonl:7: has no column 'label'; it has 'text'"),
        ({"text": None, "label": "sport"}, r"rows\.jsonl:7: 'text' is null, not a text"),
        ({"text": 5, "label": "sport"}, "'text' is a int, not a text"),
        ({"text": "\ud83d", "label": "sport"}, "lone surrogate"),
        ({"text": "a", "text_pair": 1, "label": "sport"}, "'text_pair' is a int"),
        ({}, "it has none"),
    ],
)
def test_missing_or_mistyped_column_is_named_with_its_line(
    task: TextClassification, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task.parse(_row(**values))


def test_unlabelled_row_needs_no_label_and_ignores_a_wrong_one(task: TextClassification) -> None:
    assert task.parse(_row(text="a"), labelled=False) == Example("a", None, None, 7)
    assert task.parse(_row(text="a", label="?"), labelled=False).target is None


def test_columns_are_mapped(classifier_folder: Path) -> None:
    columns = {"text": "premise", "text_pair": "hypothesis", "label": "gold"}
    task = TextClassification.load(classifier_folder, columns=columns)
    assert task.parse(_row(premise="a", hypothesis="b", gold="tech")) == Example("a", "b", 2, 7)
    with pytest.raises(DataError, match="no column 'hypothesis'"):
        task.parse(_row(premise="a", gold="tech"))


def test_unknown_column_name_is_refused_with_the_nearest(classifier_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'txt'.*\n.*'text'"):
        TextClassification.load(classifier_folder, columns={"txt": "a"})
    with pytest.raises(UsageError, match="both mapped to 'a'"):
        TextClassification.load(classifier_folder, columns={"text": "a", "label": "a"})


def test_empty_text_and_pair_are_encoded(task: TextClassification) -> None:
    arrays = task.encode(["", ("one", "two"), Example("one", "two")])
    assert tuple(arrays) == task.input_names == ("input_ids", "attention_mask", "token_type_ids")
    np.testing.assert_array_equal(arrays["input_ids"][0], [101, 102, 0, 0, 0])
    np.testing.assert_array_equal(arrays["token_type_ids"][1], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(arrays["input_ids"][1], arrays["input_ids"][2])


def test_prediction_is_the_likeliest_label_with_all_scores(task: TextClassification) -> None:
    logits = np.array([[0.0, 1.0, 0.0], [2.0, 2.0, -100.0]], np.float32)
    first, second = task.decode({"logits": logits}, {}, ["a", "b"])
    assert (first["label"], first["index"]) == ("sport", 1)
    assert first["score"] == pytest.approx(np.e / (np.e + 2))
    assert first["scores"] == pytest.approx({"business": 0.2119, "sport": 0.5761, "tech": 0.2119}, abs=1e-4)
    assert second["label"] == "business"
    assert json.loads(json.dumps(first)) == first


def test_logits_of_another_number_of_labels_are_refused(task: TextClassification) -> None:
    with pytest.raises(ArtifactError, match=r"logits of shape \[1, 2\], but there are 3 labels"):
        task.decode({"logits": np.zeros((1, 2), np.float32)}, {}, ["a"])


def test_metrics_are_of_the_predicted_and_the_right_labels(task: TextClassification) -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    examples = [Example("a", None, target) for target in (0, 1, 2, 2)]
    predictions = task.decode({"logits": logits}, {}, examples)
    values = {name: metric.compute(predictions, examples) for name, metric in task.metrics.items()}
    # Labels 0: hit; 1: hit and a false alarm; 2: hit and a miss.
    expected = {"accuracy": 3 / 4, "f1_macro": (1 + 2 / 3 + 2 / 3) / 3, "precision_macro": (1 + 0.5 + 1) / 3}
    expected |= {"recall_macro": (1 + 1 + 0.5) / 3, "mcc": 7 / 10}
    assert values == pytest.approx(expected)
    terms = task.metrics["accuracy"].per_example
    assert terms is not None
    np.testing.assert_array_equal(terms(predictions, examples), [1.0, 1.0, 0.0, 1.0])


def test_nothing_to_score_is_an_error(task: TextClassification) -> None:
    for metric in task.metrics.values():
        with pytest.raises(DataError, match="no examples"):
            metric.compute([], [])
        with pytest.raises(DataError, match="no label"):
            metric.compute([{"index": 0}], [Example("a")])
        with pytest.raises(ValueError, match="1 predictions for 0 examples"):
            metric.compute([{"index": 0}], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, r"multi label classification with 3 output\(s\)"),
        ({"id2label": {"0": "score"}}, r"regression with 1 output\(s\)"),
    ],
)
def test_other_problems_are_refused(classifier_folder: Path, changes: dict[str, Any], message: str) -> None:
    _change(classifier_folder, **changes)
    with pytest.raises(UnsupportedError, match=message):
        TextClassification.load(classifier_folder)


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({"0": "a", "2": "b"}, "indices of id2label are .0., .2., not 0 to 1"),
        ({"0": "a", "1": "a"}, "two labels are named 'a'"),
    ],
)
def test_broken_labels_are_refused(classifier_folder: Path, id2label: dict[str, str], message: str) -> None:
    _change(classifier_folder, id2label=id2label)
    with pytest.raises(ArtifactError, match=message):
        TextClassification.load(classifier_folder)


def test_labels_without_names_are_numbered_as_transformers_does(classifier_folder: Path) -> None:
    _change(classifier_folder, id2label="gone")
    assert TextClassification.load(classifier_folder).labels == ("LABEL_0", "LABEL_1")


def test_task_json_is_all_that_loading_needs(classifier_folder: Path) -> None:
    before = TextClassification.load(classifier_folder, max_length=64)
    write_json(classifier_folder / "task.json", before.runtime_config())
    for name in ("config.json", "special_tokens_map.json"):
        (classifier_folder / name).unlink()
    after = load_task(classifier_folder)
    assert after.runtime_config() == before.runtime_config()
    assert after.max_length == 64
    texts = ["One text, İstanbul.", ("a " * 90, "b " * 90)]
    for name, array in before.encode(texts).items():
        np.testing.assert_array_equal(after.encode(texts)[name], array)


def test_artifact_cannot_be_stretched_beyond_its_length(classifier_folder: Path) -> None:
    write_json(
        classifier_folder / "task.json", TextClassification.load(classifier_folder, max_length=64).runtime_config()
    )
    assert load_task(classifier_folder, max_length=32).max_length == 32
    with pytest.raises(UsageError, match="65 is above the model's limit of 64"):
        load_task(classifier_folder, max_length=65)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "feature-extraction"}, "is for the task 'feature-extraction', not 'text-classification'"),
        ({"labels": "sport"}, "`labels` is not a list"),
        ({"text": None}, "`text`"),
        ({"text": {"input_names": ["pixels"]}}, "'pixels'"),
        ({"text": {"input_names": ["input_ids"], "max_length": 0}}, r"`text\.max_length`"),
        ({"text": {"input_names": ["input_ids"], "colour": 0}}, r"`text\.colour`"),
    ],
)
def test_damaged_task_json_is_a_typed_error(classifier_folder: Path, changes: dict[str, Any], message: str) -> None:
    config = TextClassification.load(classifier_folder).runtime_config()
    write_json(classifier_folder / "task.json", config | changes)
    with pytest.raises(ArtifactError, match=message):
        TextClassification.load(classifier_folder)


def test_examples_are_read_from_a_file(task: TextClassification, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {number},sport\n" for number in range(20)))
    assert [example.line for example in task.read_examples(path)] == list(range(2, 22))
    assert len(task.read_examples(path, num=5, seed=1)) == 5
    path.write_text("text,label\none,sport\ntwo,golf\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: the label 'golf'"):
        task.read_examples(path)
