"""A tokenizer in the words of GGUF: its tokens with their types, its merges or scores.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gguf import TokenType

from edgesmith.errors import CheckpointError, UnsupportedError
from export.gguf.metadata import Metadata
from export.gguf.pretokenizers import find_pre_tokenizer
from export.gguf.sentence_pieces import is_byte_token, sentence_piece_bpe, unigram
from export.gguf.tokenizer_file import TokenizerFile

__all__ = ["Vocabulary", "read_vocabulary"]


@dataclass(kw_only=True)
class Vocabulary:
    """A tokenizer, ready to be written."""

    model: str
    """`gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (Unigram) or `bert` (WordPiece)."""
    found_by: str
    """How model and pre-tokenizer were found."""
    tokens: list[str]
    types: list[TokenType]
    pre: str = "default"
    """Name of the pre-tokenizer."""
    settings: Metadata = field(default_factory=dict)
    """Scores, merges, flags."""

    @property
    def num_fillers(self) -> int:
        """Numbers without a token, for which the embeddings have rows all the same."""
        return self.types.count(TokenType.UNUSED)

    def metadata(self) -> Metadata:
        """All of it as the file stores it."""
        listed: Metadata = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [int(kind) for kind in self.types],
        }
        return listed | self.settings


def read_vocabulary(file: TokenizerFile, num_embeddings: int) -> Vocabulary:
    """Translate a tokenizer.

    Args:
        file: The tokenizer.
        num_embeddings: Rows of the embeddings; those without a token get a placeholder.

    Raises:
        CheckpointError: there are more tokens than embeddings, or the tokenizer is damaged.
        UnsupportedError: llama.cpp has no tokenizer that does the same.
    """
    tokens, types = _list_tokens(file, num_embeddings)
    match file.kind:
        case "BPE" if file.model.get("byte_fallback"):
            return _sentence_piece(file, tokens, types)
        case "BPE" if any(rule.get("type") == "ByteLevel" for rule in file.flatten("decoder", "decoders")):
            return _byte_level(file, tokens, types)
        case "Unigram":
            return _unigram(file, tokens, types)
        case "WordPiece":
            return _word_piece(file, tokens, types)
        case other:
            raise UnsupportedError(
                f"{file.path}: a {other} tokenizer of this kind has no form in GGUF",
                mend="Byte-level BPE, SentencePiece (BPE and Unigram) and WordPiece can be converted; for others "
                "name a converter that knows them with `converter:` in the target.",
            )


def _list_tokens(file: TokenizerFile, num_embeddings: int) -> tuple[list[str], list[TokenType]]:
    """Tokens and their types by number; a number without a token gets a name that is no token."""
    by_id = file.ids()
    if by_id and max(by_id) >= num_embeddings:
        raise CheckpointError(
            f"{file.path}: has tokens up to number {max(by_id)}, the embeddings have {num_embeddings} rows",
            mend="Give the tokenizer that the model was trained with, or the model whose embeddings were resized "
            "for these tokens.",
        )
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(num_embeddings)]
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(
            f"{file.path}: a token is named like a placeholder for a number without a token, [PADn]",
            mend="Resize the model's embeddings to the tokenizer: then no placeholders are needed.",
        )
    types = [TokenType.NORMAL if index in by_id else TokenType.UNUSED for index in range(num_embeddings)]
    for token in file.added:
        if by_id.get(token["id"]) != token["content"]:
            raise CheckpointError(
                f"{file.path}: says that {token['content']!r} has the number {token['id']}, but it loads as "
                f"{file.tokenizer.token_to_id(token['content'])}",
                mend="Give the tokenizer that the model was trained with.",
            )
        types[token["id"]] = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
    return tokens, types


def _byte_level(file: TokenizerFile, tokens: list[str], types: list[TokenType]) -> Vocabulary:
    for rule in file.flatten("normalizer", "normalizers"):
        if rule.get("type") != "NFC":
            raise UnsupportedError(
                f"{file.path}: the normalizer {rule.get('type')} has no form in GGUF for a byte-level tokenizer",
                mend="Choose another format for this checkpoint, such as onnx.",
            )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if file.model.get(key):
            raise UnsupportedError(f"{file.path}: {key} {file.model[key]!r} has no form in GGUF")
    ignore_merges = bool(file.model.get("ignore_merges"))
    pre = find_pre_tokenizer(file.content.get("pre_tokenizer"), ignore_merges=ignore_merges, path=file.path)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in file.model.get("merges") or []]
    return Vocabulary(
        model="gpt2",
        pre=pre,
        found_by=f"byte-level BPE; its splitting rules are those of {pre}",
        tokens=tokens,
        types=types,
        settings={"tokenizer.ggml.merges": merges} if merges else {},
    )


def _sentence_piece(file: TokenizerFile, tokens: list[str], types: list[TokenType]) -> Vocabulary:
    settings = sentence_piece_bpe(file, tokens)
    for index, token in enumerate(tokens):
        if types[index] == TokenType.NORMAL and is_byte_token(token):
            types[index] = TokenType.BYTE
    _mark_unknown(file, types)
    return Vocabulary(
        model="llama",
        found_by="BPE with byte fallback: SentencePiece; scores are the order of the merges",
        tokens=tokens,
        types=types,
        settings=settings,
    )


def _unigram(file: TokenizerFile, tokens: list[str], types: list[TokenType]) -> Vocabulary:
    settings = unigram(file, tokens)
    _mark_unknown(file, types)
    return Vocabulary(
        model="t5",
        found_by="Unigram: SentencePiece; scores are those of tokenizer.json",
        tokens=tokens,
        types=types,
        settings=settings,
    )


def _mark_unknown(file: TokenizerFile, types: list[TokenType]) -> None:
    if file.unknown_id is not None and file.unknown_id < len(types):
        types[file.unknown_id] = TokenType.UNKNOWN


def _word_piece(file: TokenizerFile, tokens: list[str], types: list[TokenType]) -> Vocabulary:
    """WordPiece: in GGUF the start of a word is marked, not its continuation."""
    normalizer = next(file.flatten("normalizer", "normalizers"), {})
    splitter = file.content.get("pre_tokenizer") or {}
    prefix = file.model.get("continuing_subword_prefix", "##")
    if normalizer.get("type") != "BertNormalizer" or splitter.get("type") != "BertPreTokenizer":
        raise UnsupportedError(f"{file.path}: WordPiece with rules other than BERT's has no form in GGUF")
    for index, token in enumerate(tokens):
        if types[index] == TokenType.NORMAL:
            tokens[index] = token.removeprefix(prefix) if token.startswith(prefix) else f"\u2581{token}"
    return Vocabulary(
        model="bert",
        found_by="WordPiece with BERT's rules",
        tokens=tokens,
        types=types,
        settings={
            "tokenizer.ggml.normalizer.lowercase": bool(normalizer.get("lowercase")),
            "tokenizer.ggml.normalizer.strip_accents": file.strips_accents,
        },
    )
