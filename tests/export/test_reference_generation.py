from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgesmith.errors import CheckpointError, UsageError
from export.reference_generation import TorchGenerationEngine
from tests.export.generators import NUM_TOKENS, bytes_tokenizer, save_chain, save_generator

PROMPT = "A late goal won the cup."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("generator"))


def test_it_generates_what_transformers_generates_greedily(checkpoint: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([bytes_tokenizer().encode(PROMPT).ids])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[0]
    chunks = list(TorchGenerationEngine(checkpoint).generate(PROMPT, max_tokens=24))
    assert len(chunks) == len(expected) - ids.shape[1]
    whole = bytes_tokenizer().decode(expected[ids.shape[1] :].tolist())
    text = "".join(chunk.text for chunk in chunks)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}  # bytes of a character that never became complete


def test_a_character_of_several_tokens_comes_whole_and_the_end_has_no_text(tmp_path: Path) -> None:
    ids = bytes_tokenizer().encode("aé🎉b").ids
    engine = TorchGenerationEngine(save_chain(tmp_path, dict(pairwise(ids))))
    chunks = list(engine.generate("a", max_tokens=50))
    assert [chunk.text for chunk in chunks] == ["", "é", "", "", "", "🎉", "b", ""]
    assert {chunk.num_tokens for chunk in chunks} == {1}


def test_no_more_tokens_are_generated_than_asked_for(tmp_path: Path) -> None:
    engine = TorchGenerationEngine(save_chain(tmp_path, {token: token for token in range(NUM_TOKENS - 1)}))
    assert "".join(chunk.text for chunk in engine.generate("ab", max_tokens=7)) == "bbbbbbb"
    assert engine.count_prompt_tokens("ab") == 2


def test_one_step_is_done_for_each_chunk_that_is_asked_for(checkpoint: Path) -> None:
    engine = TorchGenerationEngine(checkpoint)
    stream = engine.generate(PROMPT, max_tokens=50)
    next(stream)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.generate(PROMPT, max_tokens=5)


def test_what_does_not_fit_into_the_context_is_refused_with_its_numbers(checkpoint: Path) -> None:
    engine = TorchGenerationEngine(checkpoint)
    with pytest.raises(UsageError, match=r"has 24 tokens and the answer 73 .* the 96 that"):
        engine.generate(PROMPT, max_tokens=73)
    assert list(engine.generate(PROMPT, max_tokens=72))
    with pytest.raises(UsageError, match="no tokens"):
        engine.generate("", max_tokens=5)
    with pytest.raises(UsageError, match="max_tokens is 0"):
        engine.generate(PROMPT, max_tokens=0)


def test_a_checkpoint_without_tokenizer_or_with_a_damaged_one_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is damaged"):
        TorchGenerationEngine(broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        TorchGenerationEngine(broken)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights that text-generation needs: model\.norm\.weight"):
        TorchGenerationEngine(broken)
