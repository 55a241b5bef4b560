"""What decides a language model's figures decides where they are stored."""

from __future__ import annotations

import pytest

from edgesmith.stages.base import Stage
from edgesmith.stages.language import AnswersStage, LanguageStage, ReferenceStage


@pytest.mark.parametrize("stage", [AnswersStage, LanguageStage, ReferenceStage])
def test_every_library_that_may_run_a_model_is_part_of_the_key(stage: type[Stage]) -> None:
    assert {"torch", "transformers", "llama-cpp-python", "onnxruntime-genai", "tokenizers"} <= set(stage.libraries)
