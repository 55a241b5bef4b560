from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from compress.vocabulary.merges import MergeRules
from compress.vocabulary.select import Limits
from compress.vocabulary.tokenizer_json import TokenizerJson
from compress.vocabulary.trim import read_kept_ids, trim_vocabulary
from edgesmith.tasks import sample_texts
from tests.compress.vocabulary.checkpoints import TOKENIZERS, byte_level, corpus, save_checkpoint, word_piece

FOREIGN = ["Grüße, 東京! naïve café ☃", "x\n\n\ty  z", "0123456789 <|end|> {}[]", "ﬁnale ½ 𝔘𝔫𝔦"]


def encode(folder: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def decode(folder: Path, rows: list[list[int]]) -> list[str]:
    texts: list[str] = Tokenizer.from_file(str(folder / "tokenizer.json")).decode_batch(rows, skip_special_tokens=False)
    return texts


@pytest.fixture(scope="session", params=TOKENIZERS)
def kinds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the same with the corpus' tokens only."""
    make: Callable[[], Tokenizer] = TOKENIZERS[request.param]
    root = tmp_path_factory.mktemp("kinds")
    save_checkpoint(root / "whole", make())
    trim_vocabulary(root / "whole", root / "trimmed", corpus())
    return root / "whole", root / "trimmed"


def test_every_text_of_the_corpus_has_the_same_tokens(kinds: tuple[Path, Path]) -> None:
    whole, trimmed = kinds
    kept = read_kept_ids(trimmed)
    found = [kept[row].tolist() for row in encode(trimmed, corpus())]
    assert found == encode(whole, corpus())
    assert len(kept) < Tokenizer.from_file(str(whole / "tokenizer.json")).get_vocab_size()


def test_tokens_keep_their_text_and_order(kinds: tuple[Path, Path]) -> None:
    whole, trimmed = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in kinds)
    kept = read_kept_ids(kinds[1])
    assert trimmed.get_vocab_size() == len(kept)
    assert [trimmed.id_to_token(new) for new in range(len(kept))] == [whole.id_to_token(old) for old in kept.tolist()]


def test_other_text_still_encodes_to_the_same_text(kinds: tuple[Path, Path]) -> None:
    texts = [*sample_texts(), *FOREIGN[1:3]]
    before, after = (decode(folder, encode(folder, texts)) for folder in kinds)
    assert after == before


def test_added_and_special_tokens_stay(kinds: tuple[Path, Path]) -> None:
    whole, trimmed = (json.loads((folder / "tokenizer.json").read_text()) for folder in kinds)
    assert [one["content"] for one in trimmed["added_tokens"]] == [one["content"] for one in whole["added_tokens"]]
    text = corpus()[0]
    whole_ids, trimmed_ids = (encode(folder, [text])[0] for folder in kinds)  # with what the post-processor adds
    assert read_kept_ids(kinds[1])[trimmed_ids].tolist() == whole_ids


def test_trimming_again_changes_nothing(kinds: tuple[Path, Path], tmp_path: Path) -> None:
    result = trim_vocabulary(kinds[1], tmp_path / "again", corpus())
    assert result.num_rows_after == result.num_rows_before
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (kinds[1] / name).read_bytes()


@pytest.mark.parametrize("kinds", [name for name in TOKENIZERS if name.startswith("byte")], indirect=True)
@pytest.mark.parametrize("texts", [FOREIGN, ["".join(map(chr, range(1, 2000)))]])
def test_bytes_encode_any_text(kinds: tuple[Path, Path], texts: list[str]) -> None:
    assert decode(kinds[1], encode(kinds[1], texts)) == decode(kinds[0], encode(kinds[0], texts))


def test_characters_of_the_corpus_scripts_are_never_unknown(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", word_piece())
    trim_vocabulary(tmp_path / "whole", tmp_path / "trimmed", corpus())
    trimmed = Tokenizer.from_file(str(tmp_path / "trimmed" / "tokenizer.json"))
    rest = [text for text in sample_texts() if text not in corpus()]
    assert not any("[UNK]" in encoding.tokens for encoding in trimmed.encode_batch(rest))
    assert trimmed.token_to_id("ω") is None  # of another script
    assert trimmed.token_to_id("[unused0]") is None


@pytest.mark.parametrize(("make", "most"), [(byte_level, 370), (word_piece, 200)])
def test_a_limit_holds_and_text_survives_it(tmp_path: Path, make: Callable[[], Tokenizer], most: int) -> None:
    save_checkpoint(tmp_path / "whole", make())
    result = trim_vocabulary(
        tmp_path / "whole", tmp_path / "small", corpus(), limits=Limits(max_tokens=most, multiple_of=16)
    )
    assert result.num_rows_after == most // 16 * 16
    assert result.corpus.num_gone > 0
    assert result.corpus.num_tokens_after > result.corpus.num_tokens_before
    assert result.corpus.num_unknown_after == 0
    kept = set(read_kept_ids(tmp_path / "small").tolist())
    gone = sum(index not in kept for row in encode(tmp_path / "whole", corpus()) for index in row)
    assert result.corpus.num_gone == gone
    before, after = (decode(tmp_path / name, encode(tmp_path / name, corpus())) for name in ("whole", "small"))
    assert after == before


def test_rare_tokens_go_and_frequent_ones_stay(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    trim_vocabulary(tmp_path / "whole", tmp_path / "small", corpus(), limits=Limits(min_count=3))
    counts = np.bincount([index for row in encode(tmp_path / "whole", corpus()) for index in row])
    kept = set(read_kept_ids(tmp_path / "small").tolist())
    assert all(index in kept for index in np.flatnonzero(counts >= 3).tolist())
    assert any(index not in kept for index in np.flatnonzero(counts).tolist())


def test_filling_up_adds_real_tokens_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    result = trim_vocabulary(tmp_path / "whole", tmp_path / "round", corpus(), limits=Limits(multiple_of=100))
    assert result.num_rows_after % 100 == 0
    assert result.num_tokens_after == result.num_rows_after
    assert 0 < result.reasons["filled_up"] < 100


pieces = st.text(alphabet="abc", min_size=2, max_size=4)


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=8), st.data())
def test_merges_of_the_tokens_of_a_text_are_all_that_its_tokenization_needs(words: list[str], data: Any) -> None:
    """For any order of merges, those that make the tokens of a text on their own suffice for that text."""
    vocabulary, merges = ["a", "b", "c"], []
    for _ in range(data.draw(st.integers(0, 12))):
        pair = (data.draw(st.sampled_from(vocabulary)), data.draw(st.sampled_from(vocabulary)))
        if "".join(pair) not in vocabulary:
            vocabulary.append("".join(pair))
            merges.append(pair)
    whole = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    used = {token for word in words for token in whole.encode(word).tokens}
    parts = _rules(vocabulary, merges)
    kept = {"a", "b", "c"}.union(*(parts.parts_of(token) for token in used))
    smaller = [pair for pair in merges if "".join(pair) in kept and set(pair) <= kept]
    trimmed = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(sorted(kept))}, merges=smaller))
    trimmed.pre_tokenizer = pre_tokenizers.Whitespace()
    assert [trimmed.encode(word).tokens for word in words] == [whole.encode(word).tokens for word in words]


def _rules(vocabulary: list[str], merges: list[tuple[str, str]]) -> MergeRules:
    content = TokenizerJson.__new__(TokenizerJson)
    content.model = {"vocab": vocabulary}
    content.merges = merges
    content.kind = "BPE"
    return MergeRules(content)
