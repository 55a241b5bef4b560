"""Token ids that stand in configuration files, wherever they stand there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["change_token_ids", "token_ids_in"]

Change = Callable[[int], int | None]

_LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens")
"""Ids that lose their meaning with their token; all others keep their token."""
_LISTS_OF_TEXTS = ("bad_words_ids", "force_words_ids")
_LABELS = ("id2label", "label2id")
_ROLES = ("_token_id", "_token_ids", "_token_index", "_token_idx")


def token_ids_in(settings: Mapping[str, Any]) -> set[int]:
    """Collect the ids of tokens that settings need: every `…_token_id`, forced tokens, tokens of languages.

    >>> sorted(token_ids_in({"eos_token_id": [2, 7], "text_config": {"pad_token_id": 0}, "suppress_tokens": [5]}))
    [0, 2, 7]
    """
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    change_token_ids({key: value for key, value in settings.items() if not _is_optional(key)}, note)
    return found


def change_token_ids(settings: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Give settings other ids.

    Args:
        settings: Of a configuration file.
        change: Old id → new id; None for a token that is gone. A negative id stands for none and stays.

    >>> change_token_ids({"eos_token_id": 7, "suppress_tokens": [5, 7], "hidden_size": 7}, {7: 3}.get)
    {'eos_token_id': 3, 'suppress_tokens': [3], 'hidden_size': 7}
    """
    return {key: _changed(key, value, change) for key, value in settings.items()}


def _changed(key: Any, value: Any, change: Change) -> Any:
    if not isinstance(key, str) or key in _LABELS:
        return value
    if key.endswith(_ROLES) or key in _LISTS_OF_IDS:
        return _each(value, change)
    if key in _LISTS_OF_TEXTS and isinstance(value, list):
        texts = [_each(text, change) for text in value]
        return [text for text, old in zip(texts, value, strict=True) if len(text) == len(old)]
    if key == "sequence_bias" and isinstance(value, list):
        pairs = [[_each(text, change), bias] for text, bias in value]
        return [new for new, old in zip(pairs, value, strict=True) if len(new[0]) == len(old[0])]
    if key == "forced_decoder_ids" and isinstance(value, list):
        return [[place, _each(index, change)] for place, index in value]
    if key.endswith("_to_id") and isinstance(value, Mapping):
        return {name: _each(index, change) for name, index in value.items()}
    if isinstance(value, Mapping):
        return change_token_ids(value, change)
    return value


def _each(value: Any, change: Change) -> Any:
    """Change an id, or those of a list, from which tokens that are gone are left out."""
    if isinstance(value, list):
        changed = [_each(one, change) for one in value]
        return [new for new, old in zip(changed, value, strict=True) if new is not None or old is None]
    return change(value) if type(value) is int and value >= 0 else value


def _is_optional(key: str) -> bool:
    return key in _LISTS_OF_IDS or key in _LISTS_OF_TEXTS or key == "sequence_bias"
