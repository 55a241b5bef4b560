from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench.scenarios.prompts import cut_prompts
from edgesmith.errors import DataError, UsageError
from export.reference_generation import TorchGenerationEngine
from tests.export.generators import bytes_tokenizer, save_chain

TEXTS = ("Call me Ishmael. Some years ago, never mind how long precisely,", "having little or no money in my purse ")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchGenerationEngine:
    """One token for each byte."""
    ids = bytes_tokenizer().encode("ab").ids
    return TorchGenerationEngine(save_chain(tmp_path_factory.mktemp("chain"), dict(pairwise(ids))))


def test_prompts_have_the_wanted_tokens_and_begin_at_words_of_different_places(engine: TorchGenerationEngine) -> None:
    whole = "\n\n".join(text.strip() for text in TEXTS) + "\n"
    prompts = cut_prompts(engine, TEXTS, num_tokens=30, count=4)
    assert [engine.count_prompt_tokens(prompt) for prompt in prompts] == [30] * 4
    places = [whole.index(prompt) for prompt in prompts]
    assert places == sorted(set(places))
    assert places[0] == 0
    assert all(whole[place - 1].isspace() for place in places[1:])


def test_a_token_that_does_not_end_there_is_left_out(engine: TorchGenerationEngine) -> None:
    """An é is two tokens."""
    [prompt] = cut_prompts(engine, ["aééé"], num_tokens=4, count=1)
    assert prompt == "aé"


def test_as_many_prompts_as_there_are_places(engine: TorchGenerationEngine) -> None:
    assert len(cut_prompts(engine, ["one two six"], num_tokens=7, count=9)) == 2


def test_short_texts_and_no_tokens_are_refused(engine: TorchGenerationEngine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the texts have 4 tokens, fewer than the 9 of a prompt"):
        cut_prompts(engine, ["one"], num_tokens=9, count=1)
    with pytest.raises(UsageError, match="0 tokens"):
        cut_prompts(engine, TEXTS, num_tokens=0, count=1)
