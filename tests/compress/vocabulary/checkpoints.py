"""Small checkpoints of all kinds of tokenizers, trained on the packaged sentences, with seeded weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgesmith.tasks import sample_texts
from tests.compress.merge_models import save_model

SIZE = 700
END = "<|end|>"


def corpus() -> list[str]:
    """A quarter of the packaged sentences; the rest is text that is not of the corpus."""
    return list(sample_texts()[::4])


def byte_level(*, suffix: str = "", **options: Any) -> Tokenizer:
    """As GPT-2's, with splitting rules of its own and an added token at the end."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix, **options))
    rules = Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(rules, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sample_texts(),
        trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, end_of_word_suffix=suffix, show_progress=False),
    )
    tokenizer.add_special_tokens([END])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama's: no splitting into words, spaces as ▁, bytes for unknown characters."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *bytes_]
    tokenizer.train_from_iterator(
        [word for text in sample_texts() for word in text.split()],
        trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False),
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's, with unused places at the beginning and the special tokens after them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [*sample_texts(), "Ωμέγα ψ"],
        trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False),
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [one for one in content["added_tokens"] if "unused" not in one["content"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's, with added tokens behind the pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        sample_texts(),
        trainers.UnigramTrainer(
            vocab_size=SIZE, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.add_special_tokens(["<extra_0>", "<extra_1>"])
    return tokenizer


TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, word ends": lambda: byte_level(suffix="</w>"),
    "byte-level, whole words": lambda: byte_level(ignore_merges=True),
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
    "Unigram": unigram,
}


def save_checkpoint(
    folder: Path,
    tokenizer: Tokenizer,
    model_class: str = "LlamaForCausalLM",
    config: Any = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Save a model of a tokenizer's size with it."""
    size = tokenizer.get_vocab_size()
    save_model(folder, model_class, config or llama(size))
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **(settings or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def llama(size: int, **changes: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaConfig(vocab_size=size, **{**sizes, "bos_token_id": None, "eos_token_id": 0, **changes})


def read_rows(folder: Path, name: str) -> Any:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")[name]
