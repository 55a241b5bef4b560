"""Texts → arrays, exactly as transformers does it, with the `tokenizers` library and NumPy only.

`tokenizer.json` decides. Where transformers lets `tokenizer_config.json` override a part of it when it loads
the folder (the case and accents of BERT-like tokenizers, the leading space of byte-level ones, special tokens,
sides of padding and truncation), so does this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.errors import ArtifactError, DataError, MissingExtraError, UnsupportedError, UsageError
from edgesmith.tasks.folder import read_json_object

__all__ = ["TextEncoder", "TextSettings", "resolve_settings"]

Side = Literal["left", "right"]

# Tokenizer classes that rebuild a BertNormalizer from the configuration.
_BERT_CLASSES = frozenset(
    {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "MPNetTokenizer"}
    | {"ConvBertTokenizer", "SqueezeBertTokenizer", "RetriBertTokenizer", "RealmTokenizer"}
)
_BYTE_LEVEL_CLASSES = frozenset({"RobertaTokenizer", "GPT2Tokenizer", "LongformerTokenizer", "BartTokenizer"})
# Tokenizer classes that tell the two texts of a pair apart by token_type_ids.
_TYPED_CLASSES = frozenset({"DebertaTokenizer", "DebertaV2Tokenizer", "FNetTokenizer"}) | (
    _BERT_CLASSES - {"MPNetTokenizer"}
)
# Model types whose configuration may leave out `type_vocab_size` because it is 2.
_TYPED_MODELS = frozenset({"bert", "electra", "convbert", "mobilebert", "squeezebert", "megatron-bert", "fnet"})
_UNTYPED_MODELS = frozenset({"distilbert", "mpnet", "roberta", "xlm-roberta", "camembert", "modernbert"})
# Model types that number positions from pad_token_id + 1, so that as many fewer tokens fit.
_OFFSET_MODELS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "mpnet", "longformer", "ibert"}
    | {"roberta-prelayernorm", "xmod", "esm", "luke", "lilt"}
)
# Model types whose position limit in the configuration is no limit.
_UNLIMITED_MODELS = frozenset({"t5", "mt5", "umt5", "xlnet"})
_LEFT_PADDED_CLASSES = frozenset({"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"})
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Name of an input → attribute of an encoding.
_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_NO_LIMIT = 10**20  # transformers writes 1e30 for "none"
_MEND_FAST = "Save it again with `AutoTokenizer.from_pretrained(…).save_pretrained(…)` of transformers."


class TextSettings(BaseModel):
    """How texts become arrays: what `task.json` holds of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input_names: tuple[str, ...] = Field(strict=False)
    """The arrays that the model takes, in its order."""
    max_length: int | None = Field(default=None, gt=0)
    """Longest sequence in tokens, special tokens included; None if the model has no limit."""
    padding_side: Side = "right"
    truncation_side: Side = "right"
    pad_token: str | None = None
    pad_id: int | None = Field(default=None, ge=0)
    pad_type_id: int = 0
    split_special_tokens: bool = False
    """Whether a special token inside a text is plain text."""
    lowercase: bool = False
    """Whether texts are lowercased before the tokenizer sees them (sentence-transformers' do_lower_case)."""

    @classmethod
    def from_json(cls, value: Any, source: Path) -> Self:
        """Check the settings that `task.json` holds.

        Raises:
            ArtifactError: They are damaged; `source` names the file.
        """
        try:
            settings = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(("text", *map(str, first["loc"])))
            raise ArtifactError(f"{source}: `{where}`: {first['msg']}", mend="Make the artifact again.") from error
        if unknown := [name for name in settings.input_names if name not in _COLUMNS]:
            raise ArtifactError(f"{source}: `text.input_names` has {unknown[0]!r}; known are {', '.join(_COLUMNS)}")
        return settings


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with its settings applied; safe to share between threads."""

    settings: TextSettings
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, *, max_length: int | None = None, settings: TextSettings | None = None) -> Self:
        """Load the tokenizer of a folder.

        Args:
            folder: Holds `tokenizer.json` and, usually, `tokenizer_config.json` and `config.json`.
            max_length: Asked for by the user; at most the model's limit.
            settings: From an artifact's `task.json`; without them they are worked out of the folder.

        Raises:
            ArtifactError: `tokenizer.json` is missing or damaged.
            MissingExtraError: The `tokenizers` library is not installed.
            UnsupportedError: The folder has a tokenizer in another format.
            UsageError: `max_length` is above the limit, or too small to hold any text.
        """
        options = _read_options(folder)
        tokenizer = _load_tokenizer(folder, options)
        if settings is None:
            settings = resolve_settings(folder, options, tokenizer)
        if max_length is not None:
            settings = settings.model_copy(update={"max_length": _checked_length(max_length, settings)})
        _apply_(tokenizer, settings)
        return cls(settings, tokenizer)

    def encode(self, texts: Sequence[tuple[str, str | None]]) -> dict[str, NDArray[np.int64]]:
        """Encode texts, or pairs of texts, as one batch padded to its longest.

        Returns:
            int64 arrays of shape [len(texts), length], one for each of the settings' `input_names`.

        Raises:
            DataError: A text is not valid Unicode.
            UnsupportedError: Lengths differ and the tokenizer has no padding token.
        """
        if self.settings.lowercase:
            texts = [(first.lower(), second if second is None else second.lower()) for first, second in texts]
        batch = [first if second is None else (first, second) for first, second in texts]
        try:
            encodings = self.tokenizer.encode_batch(batch)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(batch, error) from error
        lengths = {len(encoding.ids) for encoding in encodings}
        if len(lengths) > 1:  # only where there is no padding
            raise UnsupportedError(
                f"texts of {len(lengths)} different lengths, but the tokenizer has no padding token",
                mend="Set `pad_token` in tokenizer_config.json, or use a batch size of 1.",
            )
        shape = (len(encodings), max(lengths, default=0))
        return {
            name: np.array([getattr(encoding, _COLUMNS[name]) for encoding in encodings], np.int64).reshape(shape)
            for name in self.settings.input_names
        }

    def locate(self, texts: Sequence[str]) -> list[list[tuple[int | None, int, int]]]:
        """Where the tokens of texts come from.

        Returns:
            For each text its tokens without padding, in the order of the arrays: the index of the tokenizer's word
            (None of a special token), the first character and the one after the last; spaces in front are left out.

        Raises:
            DataError: A text is not valid Unicode.
        """
        given = [text.lower() for text in texts] if self.settings.lowercase else list(texts)
        try:
            encodings = self.tokenizer.encode_batch(given)
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(given, error) from error
        return [
            [
                (word, start + _num_spaces(text[start:end]), end)
                for word, (start, end), is_real in zip(
                    encoding.word_ids, encoding.offsets, encoding.attention_mask, strict=True
                )
                if is_real
            ]
            for text, encoding in zip(given, encodings, strict=True)
        ]


def _num_spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def _read_options(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; one from before it held the added tokens yields to `special_tokens_map.json`."""
    options = read_json_object(folder / "tokenizer_config.json", required=False)
    if "added_tokens_decoder" not in options:
        options |= read_json_object(folder / "special_tokens_map.json", required=False)
    return options


def _not_text(batch: Sequence[str | tuple[str, str]], error: Exception) -> DataError:
    for position, given in enumerate(batch):
        for text in (given,) if isinstance(given, str) else given:
            if not isinstance(text, str):
                return DataError(f"text {position} of the batch is a {type(text).__name__}, not a string")
            if any("\ud800" <= char <= "\udfff" for char in text):
                return DataError(
                    f"text {position} of the batch holds a lone surrogate, which is no character",
                    mend="The text was cut inside a character or decoded wrongly: correct its source.",
                )
    return DataError(f"texts cannot be encoded: {error}")


def _apply_(tokenizer: Any, settings: TextSettings) -> None:
    """Set padding, truncation and special-token handling on a tokenizer."""
    if settings.max_length is None:
        tokenizer.no_truncation()
    else:
        special = tokenizer.num_special_tokens_to_add(True)
        if settings.max_length <= special:
            raise UsageError(
                f"max_length {settings.max_length} leaves no room for text: a pair has {special} special tokens",
                mend=f"Set max_length to {special + 1} or more.",
            )
        tokenizer.enable_truncation(
            settings.max_length, stride=0, strategy="longest_first", direction=settings.truncation_side
        )
    if settings.pad_id is None:
        tokenizer.no_padding()
    else:
        tokenizer.enable_padding(
            direction=settings.padding_side,
            pad_id=settings.pad_id,
            pad_type_id=settings.pad_type_id,
            pad_token=settings.pad_token or "[PAD]",
        )
    tokenizer.encode_special_tokens = settings.split_special_tokens


def _checked_length(max_length: int, settings: TextSettings) -> int:
    if max_length < 1:
        raise UsageError(f"max_length is {max_length}; it must be at least 1")
    if settings.max_length is not None and max_length > settings.max_length:
        raise UsageError(
            f"max_length {max_length} is above the model's limit of {settings.max_length} tokens",
            mend=f"Set max_length to {settings.max_length} or less.",
        )
    return max_length


def _load_tokenizer(folder: Path, options: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "the library `tokenizers` is not installed", mend="Install it: pip install 'edgesmith[serve]'"
        ) from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        for other in ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"):
            if (folder / other).is_file():
                raise UnsupportedError(f"{folder}: has {other} but no tokenizer.json", mend=_MEND_FAST)
    pipeline = read_json_object(path)
    _override_(pipeline, _class_name(folder, options), options)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(pipeline))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(f"{path}: is no tokenizer: {error}", mend=_MEND_FAST) from error
    _add_special_(tokenizer, options)
    return tokenizer


def _class_name(folder: Path, options: Mapping[str, Any]) -> str:
    """The tokenizer class that transformers would use, without the suffix `Fast`; empty if none is named."""
    config = read_json_object(folder / "config.json", required=False)
    name = options.get("tokenizer_class") or config.get("tokenizer_class")
    if not name:
        by_model = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer"}
        by_model |= {"roberta": "RobertaTokenizer", "gpt2": "GPT2Tokenizer", "mpnet": "MPNetTokenizer"}
        name = by_model.get(str(config.get("model_type")), "")
    return str(name).removesuffix("Fast")


def _override_(pipeline: dict[str, Any], class_name: str, options: Mapping[str, Any]) -> None:
    """Change the parts of a tokenizer.json that its tokenizer class takes from the configuration."""
    normalizer, pre_tokenizer = pipeline.get("normalizer"), pipeline.get("pre_tokenizer")
    if class_name in _BERT_CLASSES and isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        normalizer["lowercase"] = options.get("do_lower_case", True)
        normalizer["strip_accents"] = options.get("strip_accents")
        normalizer["handle_chinese_chars"] = options.get("tokenize_chinese_chars", True)
    is_byte_level = isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "ByteLevel"
    if class_name in _BYTE_LEVEL_CLASSES and is_byte_level:
        assert isinstance(pre_tokenizer, dict)
        pre_tokenizer["add_prefix_space"] = options.get("add_prefix_space", False)


def _add_special_(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Declare the special tokens that only the configuration names."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = options.get("extra_special_tokens") or options.get("additional_special_tokens") or []
    named = [options.get(key) for key in _SPECIAL_TOKENS]
    for token in [*named, *(extra.values() if isinstance(extra, dict) else extra)]:
        content = token_content(token)
        if content is not None and content not in known:
            flags = ("lstrip", "rstrip", "single_word", "normalized")
            kept = {flag: bool(token[flag]) for flag in flags if isinstance(token, dict) and flag in token}
            tokenizer.add_special_tokens([AddedToken(content, special=True, **{"normalized": False, **kept})])
            known.add(content)


def token_content(token: Any) -> str | None:
    """The text of a token that a configuration gives as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def resolve_settings(folder: Path, options: Mapping[str, Any], tokenizer: Any) -> TextSettings:
    """Work the settings out of a Hugging Face folder.

    Args:
        folder: Holds `config.json`, and maybe `sentence_bert_config.json`.
        options: The tokenizer's configuration.
        tokenizer: The loaded tokenizer.

    Returns:
        The settings that transformers would use for `padding=True, truncation=True`, with the model's own
        limit on the length where that is smaller.
    """
    config = read_json_object(folder / "config.json", required=False)
    sentence = read_json_object(folder / "sentence_bert_config.json", required=False)
    padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    class_name = _class_name(folder, options)
    pad_token = token_content(options.get("pad_token")) or padding.get("pad_token")
    pad_id = None if pad_token is None else tokenizer.token_to_id(pad_token)
    default_side: Side = "left" if class_name in _LEFT_PADDED_CLASSES else "right"
    return TextSettings(
        input_names=_input_names(options, config, class_name),
        max_length=_length_limit(options, config, sentence),
        padding_side=options.get("padding_side") or padding.get("direction") or default_side,
        truncation_side=options.get("truncation_side") or truncation.get("direction") or "right",
        pad_token=pad_token,
        pad_id=pad_id,
        pad_type_id=options.get("pad_token_type_id") or 0,
        split_special_tokens=bool(options.get("split_special_tokens", False)),
        lowercase=bool(sentence.get("do_lower_case", False)),
    )


def _length_limit(*configs: Mapping[str, Any]) -> int | None:
    options, config, sentence = configs
    limits = [options.get("model_max_length", options.get("max_len")), sentence.get("max_seq_length")]
    model_type = str(config.get("model_type"))
    if model_type not in _UNLIMITED_MODELS:
        positions = next((config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), None)
        if isinstance(positions, int) and model_type in _OFFSET_MODELS:
            positions -= (config.get("pad_token_id", 1) or 0) + 1
        limits.append(positions)
    usable = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    return min(usable, default=None)


def _input_names(options: Mapping[str, Any], config: Mapping[str, Any], class_name: str) -> tuple[str, ...]:
    """The inputs in the order of a BERT's forward: ids, mask, types where the model tells types apart."""
    model_type, num_types = str(config.get("model_type")), config.get("type_vocab_size")
    if num_types is None:
        has_types = model_type in _TYPED_MODELS
    else:
        has_types = num_types > 1 and model_type not in _UNTYPED_MODELS
    stated = options.get("model_input_names")
    gives_types = "token_type_ids" in stated if isinstance(stated, list) else class_name in _TYPED_CLASSES
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if has_types and gives_types else names
