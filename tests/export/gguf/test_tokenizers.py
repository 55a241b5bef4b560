"""llama.cpp's tokenizer gives what `tokenizers` gives, or the file is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from edgesmith.errors import CheckpointError, UnsupportedError, VerificationError
from export.gguf.logit_parity import check_states
from export.gguf.parity_lines import generate_lines
from export.gguf.pretokenizers import find_pre_tokenizer
from export.gguf.to_gguf import GgufExport, to_gguf
from export.gguf.tokenizer_parity import check_tokenizer
from serve.runtime.gguf_file import read_gguf
from serve.runtime.llama_library import LlamaModel

from .conftest import TEXTS, TINY, save_model, save_tokenizer

GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
Copier = Callable[[Path], Path]
Changer = Callable[[dict[str, Any]], None]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., GgufExport]:
    """Make a small model, give it the small tokenizer with a change, convert it."""

    def run(change: Changer | None = None, **settings: Any) -> GgufExport:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        save_model(folder, transformers.LlamaConfig(**(TINY | {"num_hidden_layers": 1} | settings)))
        save_tokenizer(folder, change=change)
        return to_gguf(folder, tmp_path / "model.gguf", dtype="f32")

    return run


def test_smollm2_splits_digits_first(smollm2_folder: Path, smollm2_gguf: Path, news_rows: list[dict[str, str]]) -> None:
    metadata = read_gguf(smollm2_gguf).metadata
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    texts = [row["text"] for row in news_rows[:500]]
    result = check_tokenizer(smollm2_folder, smollm2_gguf, texts=texts)
    assert result.num_lines > 10_500
    assert (result.num_avoided, result.notes) == (0, ())
    assert result.num_special_tokens == 17


def test_the_same_vocabulary_with_gpt2_rules_is_another_tokenizer(
    smollm2_folder: Path, copied: Copier, tmp_path: Path
) -> None:
    folder = copied(smollm2_folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = GPT2_SPLIT
    (folder / "tokenizer.json").write_text(json.dumps(content))
    done = to_gguf(folder, tmp_path / "model.gguf", dtype="bf16")
    assert done.pre_tokenizer == "gpt-2"
    assert check_tokenizer(folder, done.path, num_generated=2000).num_lines > 2000
    with pytest.raises(VerificationError, match=r"llama.cpp tokenizes differently from token \d+ on:\n +line "):
        check_tokenizer(smollm2_folder, done.path)


def test_wordpiece_of_minilm(minilm_folder: Path, tmp_path: Path, news_rows: list[dict[str, str]]) -> None:
    done = to_gguf(minilm_folder, tmp_path / "model.gguf", dtype="f16")
    texts = [row["text"] for row in news_rows[:500]]
    result = check_tokenizer(minilm_folder, done.path, texts=texts)
    assert result.num_lines > 10_500
    # Each gap of the runtime is said in both results, and counted: no line is left out unseen.
    assert [note.partition(" (in ")[0] for note in result.notes] == [
        note for note in done.left_out if "WordPiece" in note
    ]
    assert [" (in 0 of " in note for note in result.notes] == [False, False]
    assert 0 < result.num_avoided < 0.15 * result.num_lines


def test_an_added_token_does_not_change_the_pre_tokenizer(convert: Callable[..., GgufExport]) -> None:
    def add(content: dict[str, Any]) -> None:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content["added_tokens"] += [
            {"id": 1000, "content": "<|tool|>", "special": True, **flags},
            {"id": 1001, "content": "Fräulein Smilla", "special": False, **flags},
        ]

    done = convert(add, vocab_size=1024)
    assert done.pre_tokenizer == "gpt-2"
    checkpoint = done.path.parent / "checkpoint"
    assert check_tokenizer(checkpoint, done.path, num_generated=200).num_special_tokens == 5
    assert done.left_out == ("22 rows of the embeddings without a token: named as unused, [PADn]",)
    with LlamaModel(done.path, vocab_only=True) as model:
        assert len(model.tokenize("[PAD1002]", add_special=False)) > 1
        assert model.tokenize("<|tool|>Fräulein Smilla", add_special=False) == [1000, 1001]
        assert model.num_tokens == 1024


def test_a_text_is_framed_as_the_post_processor_says(convert: Callable[..., GgufExport]) -> None:
    def frame(content: dict[str, Any]) -> None:
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        }

    done = convert(frame)
    assert check_tokenizer(done.path.parent / "checkpoint", done.path, num_generated=200).num_lines > 200
    with LlamaModel(done.path, vocab_only=True) as model:
        assert model.tokenize("a", add_special=True)[0] == 1


def sentence_pieces(folder: Path, *, prefix: bool) -> int:
    """Train a BPE with byte fallback and every pair of pieces as a merge, as SentencePiece's are spelled."""
    normalizer = normalizers.Replace(" ", "\u2581")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizer])
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False)
    trained.train_from_iterator([*TEXTS, *generate_lines(500, special_tokens=())], trainer)
    pieces = sorted(trained.get_vocab(), key=lambda token: (len(token) > 1, trained.token_to_id(token)))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    known = set(pieces)
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    built = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in merges], unk_token="<unk>", byte_fallback=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizer]) if prefix else normalizer
    built.add_special_tokens(["<unk>", "<s>", "</s>"])
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return len(tokens)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_bpe(prefix: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    size = sentence_pieces(folder, prefix=prefix)
    save_model(folder, transformers.LlamaConfig(**(TINY | {"num_hidden_layers": 1, "vocab_size": size})))
    done = to_gguf(folder, tmp_path / "model.gguf", dtype="f32")
    assert (done.tokenizer_model, done.pre_tokenizer) == ("llama", "default")
    assert check_tokenizer(folder, done.path, texts=TEXTS).num_lines > 10_000


def test_unigram(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [" ".join(line.split()) for line in generate_lines(4000, special_tokens=()) if line.isascii()]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=specials, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    content = json.loads(tokenizer.to_str())
    for piece in content["model"]["vocab"]:  # SentencePiece's own scores are float32, as GGUF's
        piece[1] = float(np.float32(piece[1]))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    config = transformers.XLMRobertaConfig(
        **(TINY | {"vocab_size": 1010, "bos_token_id": 0, "pad_token_id": 1, "type_vocab_size": 1})
    )
    save_model(folder, config, loader=transformers.AutoModel)
    done = to_gguf(folder, tmp_path / "model.gguf", dtype="f32")
    assert (done.architecture, done.tokenizer_model) == ("bert", "t5")
    assert check_states(folder, done.path, texts=lines[:5], dtype="f32").min_cosine > 0.99999
    assert check_tokenizer(folder, done.path, texts=lines, num_generated=0).num_lines > 1000


def test_unknown_rules_are_shown_not_guessed(convert: Callable[..., GgufExport]) -> None:
    def change(content: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": r"\p{Lu}+|\s"}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, GPT2_SPLIT]}

    with pytest.raises(UnsupportedError, match=r"no pre-tokenizer of llama\.cpp(.|\n)*\\p\{Lu\}\+\|\\s\n"):
        convert(change)


def split_by(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("rules", "ignore_merges", "name"),
    [
        (GPT2_SPLIT, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [GPT2_SPLIT]}]}, False, "gpt-2"),
        (split_by(LLAMA3), True, "llama-bpe"),
        (split_by(LLAMA3), False, "dbrx"),
        (split_by(LLAMA3, "Removed", True), True, "llama-bpe"),
        (split_by(CL100K), False, "dbrx"),
        (split_by(LLAMA3.replace("{1,3}", "")), False, "qwen2"),
        (split_by(LLAMA3.replace("{1,3}", "{1}")), False, "qwen2"),
    ],
)
def test_rules_have_a_name(rules: dict[str, Any], ignore_merges: bool, name: str) -> None:
    assert find_pre_tokenizer(rules, ignore_merges=ignore_merges, path=Path("tokenizer.json")) == name


@pytest.mark.parametrize(
    ("rules", "ignore_merges"),
    [
        (None, False),
        (GPT2_SPLIT, True),
        (GPT2_SPLIT | {"add_prefix_space": True}, False),
        (split_by(LLAMA3, "Removed"), True),
        (split_by(LLAMA3, "MergedWithNext"), True),
        ({"type": "Whitespace"}, False),
    ],
)
def test_similar_rules_have_none(rules: dict[str, Any] | None, ignore_merges: bool) -> None:
    with pytest.raises(UnsupportedError, match="no pre-tokenizer"):
        find_pre_tokenizer(rules, ignore_merges=ignore_merges, path=Path("tokenizer.json"))


def test_more_tokens_than_embeddings_are_refused(convert: Callable[..., GgufExport]) -> None:
    with pytest.raises(CheckpointError, match="tokens up to number 999, the embeddings have 990 rows"):
        convert(vocab_size=990)


def test_an_added_token_whose_number_is_another_is_refused(convert: Callable[..., GgufExport]) -> None:
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append({"id": 1050, "content": "<|tool|>", **flags})

    with pytest.raises(CheckpointError, match=r"says that '<\|tool\|>' has the number 1050, but it loads as 1000"):
        convert(add, vocab_size=1100)


def test_composition_of_characters_is_counted_not_hidden(convert: Callable[..., GgufExport]) -> None:
    done = convert(lambda content: content.update(normalizer={"type": "NFC"}))
    assert any("NFC" in note for note in done.left_out)
    checkpoint = done.path.parent / "checkpoint"
    texts = ["plain", "e\u0301", "caf\u00e9", "A\u030angstro\u0308m"]
    result = check_tokenizer(checkpoint, done.path, texts=texts, num_generated=0)
    assert result.num_avoided == 2
    assert len(result.notes) == 1
    assert result.notes[0].endswith(f"texts that are composed already (in 2 of {result.num_lines} lines)")


def test_lines_are_of_all_kinds_and_always_the_same() -> None:
    lines = list(generate_lines(100, special_tokens=["<x>"]))
    assert lines == list(generate_lines(100, special_tokens=["<x>"]))
    assert len(lines) == 103
    text = "".join(itertools.chain(lines, generate_lines(2000, special_tokens=())))
    for sample in ("\t", "\r\n", "7", "é", "👨‍👩‍👧‍👦", "\x1b", "<x><x>", "{"):
        assert sample in text
    for first, last in (("一", "鿋"), ("ا", "ي"), ("а", "я")):
        assert any(first <= letter <= last for letter in text)
