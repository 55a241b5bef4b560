"""A checkpoint's `tokenizer.json` with the special tokens that stand in files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compress.checkpoint import read_json
from edgesmith.errors import CheckpointError, UnsupportedError

__all__ = ["TokenizerFile"]

_DAMAGED = "Get the tokenizer again from the model's source."


class TokenizerFile:
    """What the files of a tokenizer say.

    Args:
        folder: Hugging Face folder.

    Raises:
        CheckpointError: `tokenizer.json` is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise CheckpointError(
                f"{folder}: has no tokenizer.json",
                mend="Save it with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`.",
            )
        self.content = read_json(self.path)
        self.settings = _optional_json(folder / "tokenizer_config.json")
        self.generation = _optional_json(folder / "generation_config.json")
        self.model: Mapping[str, Any] = self._mapping("model")
        try:
            self.tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{self.path}: is damaged: {error}", mend=_DAMAGED) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.added: list[Mapping[str, Any]] = list(self.content.get("added_tokens") or [])

    def _mapping(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.path}: {key} must be an object", mend=_DAMAGED)
        return value

    @property
    def kind(self) -> str:
        """Class of the model: such as BPE, Unigram or WordPiece."""
        return str(self.model.get("type"))

    @property
    def unknown_id(self) -> int | None:
        """Token for what no other token covers."""
        index, token = self.model.get("unk_id"), self.model.get("unk_token")
        if token is not None:
            index = self.tokenizer.token_to_id(str(token))
        return index if type(index) is int else None

    @property
    def strips_accents(self) -> bool:
        """Whether BERT's rules take accents off: unless they say, when they lowercase."""
        rule = next(self.flatten("normalizer", "normalizers"), {})
        stated = rule.get("strip_accents")
        return bool(rule.get("lowercase")) if stated is None else bool(stated)

    def ids(self) -> dict[int, str]:
        """Every token by its number, those that were added included.

        Raises:
            CheckpointError: two tokens have one number.
        """
        result: dict[int, str] = {}
        for token, index in sorted(self.tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda one: one[1]):
            if index in result:
                raise CheckpointError(
                    f"{self.path}: the tokens {result[index]!r} and {token!r} both have the number {index}",
                    mend=_DAMAGED,
                )
            result[index] = token
        return result

    def special_id(self, role: str) -> int | None:
        """Find the token of a role such as `bos`: by the tokenizer's settings, else by those of generation.

        Raises:
            CheckpointError: the settings name a token that the vocabulary does not have.
        """
        token = self.settings.get(f"{role}_token")
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            index = self.tokenizer.token_to_id(token)
            if index is None:
                raise CheckpointError(
                    f"{self.folder}: tokenizer_config.json names {token!r} as {role}_token, which tokenizer.json lacks",
                    mend=_DAMAGED,
                )
            return int(index)
        return None

    def frame(self) -> tuple[list[int], list[int]]:
        """Tokens that the tokenizer puts before and after a text.

        Raises:
            UnsupportedError: it changes the text's own tokens too.
        """
        plain = self.tokenizer.encode("a", add_special_tokens=False).ids
        framed = self.tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return framed[:start], framed[start + len(plain) :]
        raise UnsupportedError(f"{self.path}: its post-processor changes the tokens of a text")

    def flatten(self, key: str, parts: str) -> Iterator[Mapping[str, Any]]:
        """Yield the parts of a normalizer or decoder, sequences flattened."""
        stack = [self.content.get(key)]
        while stack:
            rule = stack.pop()
            if not isinstance(rule, Mapping):
                continue
            if rule.get("type") == "Sequence":
                stack.extend(reversed(rule.get(parts) or []))
            else:
                yield rule


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
