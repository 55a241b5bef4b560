from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.distill.pupil import prepare_pupil
from compress.distill.students import uniform_map
from edgesmith.errors import CheckpointError, UsageError
from edgesmith.recipe import DistillOptions
from edgesmith.tasks import TextClassification
from tests.compress.distill.conftest import LABELS, save_bert

SMALL = {"num_hidden_layers": 1}


def prepare(teacher: Path, student: Path | None, **options: object) -> object:
    return prepare_pupil(
        teacher, student, TextClassification, DistillOptions.model_validate(options), seed=0, batches=[]
    )


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_hidden_layers": 4, "hidden_size": 16}, "4 layers, its teacher 3"),
        ({"num_hidden_layers": 1, "hidden_size": 64}, "64 features a token, its teacher 32"),
        ({"num_hidden_layers": 3, "intermediate_size": 64}, r"parameters, its teacher \d"),
    ],
)
def test_a_student_larger_than_its_teacher_is_refused(
    classifier: Path, tmp_path: Path, sizes: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        prepare(classifier, save_bert(tmp_path, **sizes))


def test_other_labels_are_refused_by_name(classifier: Path, tmp_path: Path) -> None:
    student = save_bert(tmp_path, **SMALL)
    config = json.loads((student / "config.json").read_text())
    config["id2label"]["1"] = "middling"
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its label 1 is 'middling', the teacher's is 'fair'"):
        prepare(classifier, student)


@pytest.mark.parametrize("part", ["model", "normalizer"])
def test_another_tokenizer_is_refused_with_the_difference(classifier: Path, tmp_path: Path, part: str) -> None:
    student = save_bert(tmp_path, **SMALL)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    if part == "model":
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["the"] = vocabulary["the"], vocabulary["a"]
    else:
        tokenizer["normalizer"] = None
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = r"'a' is \d+ here and \d+ there" if part == "model" else r"the normalizer \(normalizer\) is not that of"
    with pytest.raises(CheckpointError, match=said):
        prepare(classifier, student)


def test_a_tokenizer_file_written_in_another_order_is_the_same(classifier: Path, tmp_path: Path) -> None:
    student = save_bert(tmp_path, **SMALL)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    (student / "tokenizer.json").write_text(json.dumps(dict(reversed(tokenizer.items())), indent=7))
    prepare(classifier, student)


def test_an_encoder_without_a_head_gets_a_seeded_one_for_the_teachers_labels(classifier: Path, tmp_path: Path) -> None:
    student = save_bert(tmp_path, model_class="BertModel", **SMALL)
    made = [prepare(classifier, student).student for _ in range(2)]
    assert made[0].config.id2label == dict(enumerate(LABELS))
    assert made[0].classifier.weight.equal(made[1].classifier.weight)
    assert made[0].classifier.weight.shape == (3, 32)


def test_layers_of_the_teacher_are_taken_over(classifier: Path) -> None:
    pupil = prepare(classifier, None, num_layers=2)
    teacher, student = (model.bert.encoder.layer for model in (pupil.teacher, pupil.student))
    for ours, theirs in zip(student, (teacher[0], teacher[2]), strict=True):
        assert ours.output.dense.weight.equal(theirs.output.dense.weight)
    assert pupil.origin == "layers 0, 2 of the teacher's 3"


def test_a_given_student_and_layers_contradict_each_other(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_layers and layers"):
        prepare(classifier, shutil.copytree(classifier, tmp_path / "student"), num_layers=2)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 6), (3, 12), (5, 7), (6, 6)])
def test_the_last_layer_learns_from_the_last_and_order_is_kept(ours: int, theirs: int) -> None:
    layers = uniform_map(ours, theirs)
    assert layers[-1] == theirs
    assert layers == sorted(set(layers))
    assert len(layers) == ours
