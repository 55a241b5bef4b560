from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.tasks import TASKS, get_task, guess_task, load_task, sample_texts
from edgesmith.tasks.base import Task


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_found_by_its_own_name_and_is_complete(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.default_metric in task.metrics
    assert all(key == metric.name for key, metric in task.metrics.items())
    assert task.metric() is task.metrics[task.default_metric]
    assert task.output_names
    firsts = {"image-classification": "image", "token-classification": "tokens"}
    assert task.column_names[0] == firsts.get(name, "text")


@pytest.mark.parametrize("name", TASKS)
def test_model_class_is_one_of_transformers(name: str) -> None:
    import transformers

    assert hasattr(transformers, get_task(name).model_class)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'text-classification'"):
        get_task("text-clasification")


def test_unknown_metric_names_the_known() -> None:
    with pytest.raises(UsageError, match="accuracy, f1_macro, mcc"):
        get_task("text-classification").metric("acuracy")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("LlamaForSequenceClassification", "text-classification"),
        ("BertModel", "feature-extraction"),
        ("ResNetForImageClassification", "image-classification"),
    ],
)
def test_task_is_guessed_from_the_architecture(architecture: str, name: str) -> None:
    assert guess_task({"architectures": [architecture]}) == name


@pytest.mark.parametrize(
    "config", [{}, {"architectures": []}, {"architectures": ["BertForMaskedLM"]}, {"architectures": [1]}]
)
def test_architecture_of_no_task_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match="known are text-classification, feature-extraction"):
        guess_task(config)


def test_folder_is_loaded_for_the_task_it_was_made_for(minilm_folder: Path) -> None:
    assert load_task(minilm_folder).name == "feature-extraction"


def test_folder_without_config_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json: is missing"):
        load_task(tmp_path)


def test_sample_texts_are_distinct_and_of_varied_length() -> None:
    texts = sample_texts()
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == 64
    assert min(lengths) <= 2
    assert max(lengths) >= 35


def test_task_has_no_default_for_what_it_must_say() -> None:
    assert Task.__abstractmethods__ == {
        "load", "input_names", "max_length", "runtime_config", "parse", "encode", "vectors", "decode"
    }  # fmt: skip


def test_tasks_need_no_training_library_and_no_tokenizer_to_be_named() -> None:
    code = (
        "import json, sys; import edgesmith.tasks; edgesmith.tasks.get_task('text-classification');"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert not modules & {"torch", "transformers", "peft", "optimum", "onnx", "onnxruntime", "tokenizers", "scipy"}
