"""The torch reference says which axes of its outputs are free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.tasks import load_task
from export.reference import TorchEngine
from tests.export.test_architectures import SMALL


@pytest.mark.parametrize("num_labels", [2, 3, 5])
def test_a_number_of_labels_is_not_taken_for_a_length(num_labels: int, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = tiny_checkpoint("BertConfig", token_types=True, **SMALL, num_labels=num_labels)
    engine = TorchEngine(checkpoint, load_task(checkpoint, "text-classification"))
    [logits] = engine.signature.outputs
    assert logits.shape == ("batch", num_labels)


def test_states_of_tokens_have_both_free_axes(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = tiny_checkpoint("BertConfig", model_class="BertModel", token_types=True, **SMALL)
    engine = TorchEngine(checkpoint, load_task(checkpoint, "feature-extraction"))
    assert engine.signature.outputs[0].shape == ("batch", "sequence", 32)
