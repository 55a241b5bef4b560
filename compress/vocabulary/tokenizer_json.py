"""A checkpoint's `tokenizer.json`, checked, and written anew with fewer tokens.

Source: https://huggingface.co/docs/tokenizers/api/models, and the serializers of the tokenizers library.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint import read_json
from edgesmith.errors import CheckpointError, UnsupportedError
from edgesmith.tasks.tokenization import TextEncoder

__all__ = ["KINDS", "TokenizerJson", "is_byte_token", "load_pipeline", "map_processor_ids"]

KINDS = ("BPE", "WordPiece", "Unigram")
_DAMAGED = "Copy the tokenizer's files again."
_MEND_FAST = "Save it with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of transformers first."


class TokenizerJson:
    """What `tokenizer.json` says, in one shape for all kinds.

    Args:
        folder: Hugging Face folder.

    Attributes:
        kind: `BPE`, `WordPiece` or `Unigram`.
        model_ids: Token → id, those of the model alone.
        added_ids: Token → id, of the tokens that were added.
        tokens: Id → token, of both.
        merges: Pairs in the order of their ranks; only of a BPE.
        scores: Log-probability of each id from 0; only of a Unigram.

    Raises:
        CheckpointError: it is missing or damaged, or two tokens have one id.
        UnsupportedError: a kind that is not trimmed here, or one that splits at random.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise CheckpointError(f"{folder}: has no tokenizer.json", mend=_MEND_FAST)
        self.content = read_json(self.path)
        self.model: dict[str, Any] = self.content.get("model") or {}
        try:
            self.kind = _kind_of(self.path, self.model)
            vocabulary = self.model["vocab"]
            if self.kind == "Unigram":
                self.model_ids = {str(piece): index for index, (piece, _) in enumerate(vocabulary)}
                self.scores = [float(score) for _, score in vocabulary]
            else:
                self.model_ids = {str(token): int(index) for token, index in vocabulary.items()}
                self.scores = []
            self.merges = [_pair_of(merge) for merge in self.model.get("merges") or []]
            self.added_ids = {
                str(token["content"]): int(token["id"]) for token in self.content.get("added_tokens") or []
            }
            self._check(len(vocabulary))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: not the format of the tokenizers library: {error!r}", mend=_DAMAGED
            ) from error

    def _check(self, num_entries: int) -> None:
        if self.model.get("dropout"):
            raise UnsupportedError(
                f"{self.path}: merges are left out at random (dropout {self.model['dropout']}), so no text has one "
                "tokenization",
                mend="Set dropout to null in tokenizer.json: it is for training.",
            )
        if len(self.model_ids) != num_entries:
            raise CheckpointError(f"{self.path}: a token stands twice in the vocabulary", mend=_DAMAGED)
        self.tokens: dict[int, str] = {}
        for token, index in [*self.model_ids.items(), *self.added_ids.items()]:
            if self.tokens.setdefault(index, token) != token or index < 0:
                raise CheckpointError(
                    f"{self.path}: the tokens {self.tokens[index]!r} and {token!r} both have the id {index}",
                    mend=_DAMAGED,
                )
        for token, index in self.added_ids.items():
            if self.model_ids.get(token, index) != index:
                raise CheckpointError(
                    f"{self.path}: {token!r} has the id {self.model_ids[token]} in the vocabulary and {index} among "
                    "the added tokens",
                    mend=_DAMAGED,
                )

    @property
    def prefix(self) -> str:
        """What marks a token that continues a word: `##` of a WordPiece; mostly empty."""
        default = "##" if self.kind == "WordPiece" else ""
        stated = self.model.get("continuing_subword_prefix")
        return default if stated is None else str(stated)

    @property
    def suffix(self) -> str:
        """What marks a token that ends a word: `</w>` of a CLIP; mostly empty."""
        return str(self.model.get("end_of_word_suffix") or "")

    @property
    def unknown_id(self) -> int | None:
        """The token for what no other token covers."""
        if self.kind == "Unigram":
            index = self.model.get("unk_id")
            return index if type(index) is int else None
        return self.model_ids.get(str(self.model.get("unk_token")))

    @property
    def is_byte_level(self) -> bool:
        """Whether characters of the vocabulary stand for bytes."""
        return any(_names(self.content.get(key), "ByteLevel") for key in ("pre_tokenizer", "normalizer"))

    def id_of(self, token: object) -> int | None:
        """Look a token up, added or not; it may be given as an object with `content`, as configurations do."""
        if isinstance(token, Mapping):
            token = token.get("content")
        if not isinstance(token, str):
            return None
        return self.added_ids.get(token, self.model_ids.get(token))

    def processor_ids(self) -> set[int]:
        """Ids that the post-processor and the padding put around texts."""
        found: set[int] = set()

        def note(index: int) -> int:
            found.add(index)
            return index

        map_processor_ids(self.content.get("post_processor"), note)
        padding = self.content.get("padding")
        if isinstance(padding, Mapping) and type(padding.get("pad_id")) is int:
            found.add(padding["pad_id"])
        return found

    def trimmed(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        """Leave out the tokens that have no new id, and every merge that one of them is part of.

        Args:
            new_ids: Old id → new id, for the tokens that stay; rising with the old ids, without gaps.
        """
        content = {key: copy.deepcopy(value) for key, value in self.content.items() if key != "model"}
        model = {key: value for key, value in self.model.items() if key not in ("vocab", "merges")}
        kept = {token: new_ids[index] for token, index in self.model_ids.items() if index in new_ids}
        if self.kind == "Unigram":
            model["vocab"] = [entry for index, entry in enumerate(self.model["vocab"]) if index in new_ids]
            model["unk_id"] = None if self.unknown_id is None else new_ids[self.unknown_id]
        else:
            model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
        if self.kind == "BPE":
            model["merges"] = [
                merge
                for merge, pair in zip(self.model.get("merges") or [], self.merges, strict=True)
                if self.is_kept(pair, kept)
            ]
        content["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in content.get("added_tokens") or []]
        content["post_processor"] = map_processor_ids(content.get("post_processor"), lambda index: new_ids[index])
        if isinstance(content.get("padding"), dict):
            content["padding"]["pad_id"] = new_ids.get(content["padding"].get("pad_id"), 0)
        content["model"] = model
        return content

    def is_kept(self, pair: tuple[str, str], kept: Collection[str]) -> bool:
        """Whether both parts of a merge and what it makes are among some tokens."""
        return pair[0] in kept and pair[1] in kept and self.join(*pair) in kept

    def join(self, first: str, second: str) -> str:
        """The token that a merge of two makes."""
        return first + second[len(self.prefix) :]


def load_pipeline(folder: Path) -> Any:
    """Load the tokenizer that texts of this checkpoint go through; it neither cuts texts nor fills them up.

    Raises:
        ArtifactError: `tokenizer.json` is damaged.
        UnsupportedError: the tokenizer is in another format.
    """
    encoder = TextEncoder.load(folder)
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.no_padding()
    return encoder.tokenizer


def _kind_of(path: Path, model: Mapping[str, Any]) -> str:
    kind = model.get("type")
    if kind is None:  # files of early versions
        guesses = {"merges": "BPE", "unk_id": "Unigram", "continuing_subword_prefix": "WordPiece"}
        kind = next((name for key, name in guesses.items() if key in model), None)
    if kind not in KINDS:
        raise UnsupportedError(
            f"{path}: is a tokenizer of kind {kind}; {', '.join(KINDS)} are trimmed",
            mend="Leave the step trim-vocabulary out for this checkpoint.",
        )
    return str(kind)


def _pair_of(merge: Any) -> tuple[str, str]:
    """A merge is `"a b"` in files of old versions and `["a", "b"]` in those of new ones."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return str(first), str(second)


def map_processor_ids(processor: Any, change: Callable[[int], int]) -> Any:
    """Change the ids that a post-processor holds."""
    if not isinstance(processor, Mapping):
        return processor
    result = dict(processor)
    match result.get("type"):
        case "Sequence":
            result["processors"] = [map_processor_ids(part, change) for part in result.get("processors") or []]
        case "BertProcessing" | "RobertaProcessing":
            for key in ("sep", "cls"):
                token, index = result[key]
                result[key] = [token, change(index)]
        case "TemplateProcessing":
            named = result.get("special_tokens") or {}
            result["special_tokens"] = {
                name: {**token, "ids": [change(index) for index in token["ids"]]} for name, token in named.items()
            }
    return result


def _names(part: Any, wanted: str) -> bool:
    """Whether a part of the pipeline, or one of those it consists of, is of a type."""
    if isinstance(part, list):
        return any(_names(one, wanted) for one in part)
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == wanted or any(_names(part.get(key), wanted) for key in ("pretokenizers", "normalizers"))


def is_byte_token(token: str) -> bool:
    """Whether a token stands for one byte that no other token covers.

    >>> is_byte_token("<0x0A>")
    True
    """
    return re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None
