"""An export whose tokenizer is not the model's own is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.errors import VerificationError
from edgesmith.tasks.base import sample_texts
from edgesmith.tasks.tokenization import TextEncoder
from export.tokenizer_parity import check_tokenizer

TEXTS = [(text, None) for text in sample_texts()] + [("a [SEP] inside", "and a pair")]


def test_own_tokenizer_agrees(minilm_folder: Path) -> None:
    assert check_tokenizer(minilm_folder, TextEncoder.load(minilm_folder), TEXTS) == len(TEXTS)


def test_other_settings_are_found(minilm_folder: Path) -> None:
    encoder = TextEncoder.load(minilm_folder)
    other = encoder.settings.model_copy(update={"split_special_tokens": True})
    with pytest.raises(VerificationError, match=r"input_ids differs at position 2: .* in 'a \[SEP\] inside'"):
        check_tokenizer(minilm_folder, TextEncoder.load(minilm_folder, settings=other), TEXTS)
