from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.errors import ArtifactError, DataError, UnsupportedError, UsageError
from edgesmith.tasks.tokenization import TextEncoder
from tests.tasks.corpus import lines
from tests.tasks.tokenizers_built import build_roberta, build_smollm, build_unigram

BATCH = 64
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def wordpiece_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's own tokenizer, without its weights."""
    folder = tmp_path_factory.mktemp("wordpiece")
    for name in FILES:
        shutil.copy(minilm_folder / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["wordpiece", "roberta", "smollm", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "wordpiece":
        found: Path = request.getfixturevalue("wordpiece_folder")
        return found
    builders: dict[str, Callable[[Path], Path]] = {
        "roberta": build_roberta,
        "smollm": build_smollm,
        "unigram": build_unigram,
    }
    return builders[request.param](tmp_path_factory.mktemp(request.param))


def _reference(folder: Path, max_length: int | None) -> Callable[[list[Any]], dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[Any]) -> dict[str, Any]:
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = None if isinstance(texts[0], str) else [text[1] for text in texts]
        encoded = tokenizer(
            firsts, seconds, padding=True, truncation="longest_first", max_length=max_length, return_tensors="np"
        )
        return dict(encoded)

    return encode


def _assert_same(folder: Path, texts: list[Any], max_length: int | None = None) -> None:
    encoder = TextEncoder.load(folder, max_length=max_length)
    reference = _reference(folder, encoder.settings.max_length)
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    for start in range(0, len(texts), BATCH):
        ours = encoder.encode(pairs[start : start + BATCH])
        theirs = reference(texts[start : start + BATCH])
        assert set(ours) == set(theirs)
        for name, array in theirs.items():
            assert ours[name].dtype == np.int64
            np.testing.assert_array_equal(ours[name], array, err_msg=f"{name} of lines {start} to {start + BATCH}")


def test_corpus_has_two_thousand_lines() -> None:
    assert len(lines()) >= 2000


def test_single_texts_equal_transformers(folder: Path) -> None:
    _assert_same(folder, lines())


def test_pairs_equal_transformers(folder: Path) -> None:
    texts = lines()
    _assert_same(folder, list(zip(texts[::2], reversed(texts[1::2]), strict=False)))


@pytest.mark.parametrize("max_length", [7, 8, 33])
def test_truncation_equals_transformers(folder: Path, max_length: int) -> None:
    texts = [line for line in lines() if 20 < len(line) < 300][::2]
    _assert_same(folder, texts, max_length)
    _assert_same(folder, list(zip(texts[::2], texts[1::2], strict=False)), max_length)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_of_padding_and_truncation_equal_transformers(tmp_path: Path, side: str) -> None:
    _assert_same(build_smollm(tmp_path, padding_side=side, truncation_side=side), lines()[::5], 24)


@pytest.mark.parametrize("builder", [build_roberta, build_unigram])
def test_split_special_tokens_equals_transformers(tmp_path: Path, builder: Callable[..., Path]) -> None:
    _assert_same(builder(tmp_path, split_special_tokens=True), [line for line in lines() if "<" in line])


def test_left_truncation_of_pairs_equals_transformers(tmp_path: Path) -> None:
    texts = lines()[:600]
    _assert_same(build_roberta(tmp_path, truncation_side="left"), list(zip(texts[::2], texts[1::2], strict=True)), 16)


@pytest.mark.parametrize(
    "change",
    [
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"strip_accents": False},
        {"extra_special_tokens": ["the"]},
        {"pad_token": "[MASK]"},
    ],
    ids=str,
)
def test_overrides_in_the_configuration_equal_transformers(
    wordpiece_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = shutil.copytree(wordpiece_folder, tmp_path / "changed")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    _assert_same(folder, lines()[::3])


def test_settings_survive_a_round_trip_through_transformers(wordpiece_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(wordpiece_folder).save_pretrained(tmp_path)
    shutil.copy(wordpiece_folder / "config.json", tmp_path)
    before, after = TextEncoder.load(wordpiece_folder), TextEncoder.load(tmp_path)
    assert before.settings == after.settings
    _assert_same(tmp_path, lines()[::3])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_equal_transformers(folder: Path, texts: list[str]) -> None:
    encoder, reference = _cached(folder)
    ours, theirs = encoder.encode([(text, None) for text in texts]), reference(texts)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


_CACHE: dict[Path, tuple[TextEncoder, Callable[[list[Any]], dict[str, Any]]]] = {}


def _cached(folder: Path) -> tuple[TextEncoder, Callable[[list[Any]], dict[str, Any]]]:
    if folder not in _CACHE:
        encoder = TextEncoder.load(folder)
        _CACHE[folder] = encoder, _reference(folder, encoder.settings.max_length)
    return _CACHE[folder]


def test_limit_is_the_smaller_of_tokenizer_and_model(tmp_path: Path) -> None:
    # The tokenizer allows 128 and 96; the models have 98 - 2 positions and 514 - 2.
    assert TextEncoder.load(build_roberta(tmp_path / "a")).settings.max_length == 96
    assert TextEncoder.load(build_unigram(tmp_path / "b")).settings.max_length == 96
    assert TextEncoder.load(build_smollm(tmp_path / "c")).settings.max_length == 160


def test_sentence_transformers_limit_is_respected(minilm_folder: Path) -> None:
    assert TextEncoder.load(minilm_folder).settings.max_length == 256


def test_max_length_above_the_limit_is_refused_with_the_limit(wordpiece_folder: Path) -> None:
    with pytest.raises(UsageError, match="513 is above the model's limit of 512"):
        TextEncoder.load(wordpiece_folder, max_length=513)


@pytest.mark.parametrize("max_length", [-1, 0, 3])
def test_max_length_without_room_for_text_is_refused(wordpiece_folder: Path, max_length: int) -> None:
    with pytest.raises(UsageError, match=f"max_length (is )?{max_length}"):
        TextEncoder.load(wordpiece_folder, max_length=max_length)


def test_no_batch_gives_empty_arrays(wordpiece_folder: Path) -> None:
    assert {array.shape for array in TextEncoder.load(wordpiece_folder).encode([]).values()} == {(0, 0)}


def test_lone_surrogate_is_a_typed_error(wordpiece_folder: Path) -> None:
    with pytest.raises(DataError, match=r"text 1 .* lone surrogate"):
        TextEncoder.load(wordpiece_folder).encode([("fine", None), ("cut \ud83d", None)])


def test_batch_of_unequal_lengths_without_padding_token_is_refused(tmp_path: Path) -> None:
    folder = build_smollm(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    encoder = TextEncoder.load(folder)
    assert encoder.encode([("one text", None)])["input_ids"].shape[0] == 1
    with pytest.raises(UnsupportedError, match="no padding token"):
        encoder.encode([("one", None), ("one much longer text", None)])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "none"}}', "\x00\x01", "[" * 100_000])
def test_damaged_tokenizer_is_a_typed_error(wordpiece_folder: Path, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(wordpiece_folder, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        TextEncoder.load(folder)


def test_missing_tokenizer_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: is missing"):
        TextEncoder.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(UnsupportedError, match=r"has vocab\.txt but no tokenizer\.json"):
        TextEncoder.load(tmp_path)
