"""An artifact whose labels, pooling or tokenizer are not the checkpoint's own is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.errors import VerificationError
from edgesmith.tasks import FeatureExtraction, TextClassification, load_task
from edgesmith.tasks.tokenization import TextEncoder
from export.task_parity import check_task


def test_own_task_agrees_at_any_length(classifier_folder: Path) -> None:
    for max_length in (None, 8):
        task = load_task(classifier_folder, "text-classification", max_length=max_length)
        check_task(classifier_folder, task, task.sample_examples())


def test_swapped_labels_are_found(classifier_folder: Path) -> None:
    task = load_task(classifier_folder, "text-classification")
    assert isinstance(task, TextClassification)
    other = TextClassification(task.encoder, task.labels[::-1])
    with pytest.raises(VerificationError, match=r"`labels` is \['tech', .* but \['business', "):
        check_task(classifier_folder, other, task.sample_examples())


def test_other_settings_of_the_text_are_found(minilm_folder: Path) -> None:
    task = load_task(minilm_folder, "feature-extraction")
    assert isinstance(task, FeatureExtraction)
    settings = task.encoder.settings.model_copy(update={"truncation_side": "left"})
    task.encoder = TextEncoder.load(minilm_folder, settings=settings)
    with pytest.raises(VerificationError, match=r"`text\.truncation_side` is 'left', but 'right' in"):
        check_task(minilm_folder, task, task.sample_examples())
