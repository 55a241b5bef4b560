"""Configuration and tokenizer files of a trimmed checkpoint: all say the same of its tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.carry import carry_side_files, write_config
from compress.checkpoint import Checkpoint, read_json
from compress.vocabulary.axes import Architecture, configs_of
from compress.vocabulary.token_ids import change_token_ids, token_ids_in
from compress.vocabulary.tokenizer_json import TokenizerJson
from edgesmith.files import atomic_write

__all__ = ["needed_ids", "write_side_files"]

_SETTINGS = ("generation_config.json", "processor_config.json", "preprocessor_config.json")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_FOREIGN = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""SentencePiece's own format, which transformers no longer reads beside a tokenizer.json."""


def needed_ids(folder: Path, tokenizer: TokenizerJson, architecture: Architecture) -> set[int]:
    """Collect the tokens that stay whatever the corpus says.

    Those are all that were added, all that a configuration names by id or by text, the unknown token, and what
    the post-processor puts around texts.
    """
    needed = set(tokenizer.added_ids.values()) | tokenizer.processor_ids()
    if tokenizer.unknown_id is not None:
        needed.add(tokenizer.unknown_id)
    for _, part in configs_of(architecture.config):
        needed |= token_ids_in(part.to_dict())
    for name in _SETTINGS:
        needed |= token_ids_in(_optional(folder / name))
    for name in _TOKENIZER_SETTINGS:
        for key, value in _optional(folder / name).items():
            if key.endswith(("_token", "_tokens")):
                named = list(value.values()) if isinstance(value, dict) and "content" not in value else value
                for token in named if isinstance(named, list) else [named]:
                    index = tokenizer.id_of(token)
                    needed |= set() if index is None else {index}
        needed |= {int(index) for index in _optional(folder / name).get("added_tokens_decoder") or {}}
    return {index for index in needed if 0 <= index < architecture.num_rows}


def write_side_files(
    checkpoint: Checkpoint,
    out: Path,
    tokenizer: TokenizerJson,
    architecture: Architecture,
    kept: NDArray[np.int64],
) -> list[str]:
    """Write everything that a trimmed checkpoint has beside its weights.

    Args:
        checkpoint: The original.
        out: Folder to write.
        tokenizer: The original's.
        architecture: Which keys of the configuration count tokens.
        kept: Old ids, rising.

    Returns:
        Notes on files that were left out.
    """
    new_ids = {int(old): new for new, old in enumerate(kept)}

    def change(index: int) -> int | None:
        return new_ids.get(index) if index < architecture.num_rows else index

    carry_side_files(checkpoint.folder, out)
    write_config(out, _config(checkpoint.config, architecture, kept, change))
    for name in _SETTINGS:
        if (out / name).exists():
            _write(out / name, change_token_ids(read_json(out / name), change))
    _write_tokenizer(out, tokenizer, new_ids)
    notes = []
    for name in _FOREIGN:
        if (out / name).exists():
            (out / name).unlink()
            notes.append(f"{name}: left out; tokenizer.json says what it said")
    return notes


def _config(
    original: Mapping[str, Any],
    architecture: Architecture,
    kept: NDArray[np.int64],
    change: Callable[[int], int | None],
) -> dict[str, Any]:
    config = change_token_ids(copy.deepcopy(dict(original)), change)
    for path, part in configs_of(architecture.config):
        # An id that is the class's default need not stand in the file, but it moves too.
        for key, value in part.to_dict().items():
            old, new = {key: value}, change_token_ids({key: value}, change)
            if not isinstance(value, dict) and new != old and key not in _at(original, path):
                _at(config, path, make=True)[key] = new[key]
    for key in architecture.keys:
        _at(config, key.path, make=True)[key.name] = int(np.count_nonzero(kept < key.size))
    return config


def _at(config: Mapping[str, Any], path: tuple[str, ...], *, make: bool = False) -> dict[str, Any]:
    part: Any = config
    for name in path:
        found = part.get(name)
        if not isinstance(found, dict):
            found = {}
            if make:
                part[name] = found
        part = found
    return part  # type: ignore[no-any-return]


def _write_tokenizer(out: Path, tokenizer: TokenizerJson, new_ids: Mapping[int, int]) -> None:
    trimmed = tokenizer.trimmed(new_ids)
    text = json.dumps(trimmed, ensure_ascii=False, separators=(",", ":")) + "\n"
    atomic_write(out / "tokenizer.json", text)
    model_ids = {token: new_ids[index] for token, index in tokenizer.model_ids.items() if index in new_ids}
    path = out / "tokenizer_config.json"
    if path.exists():
        settings = change_token_ids(read_json(path), lambda index: new_ids.get(index, index))
        named = settings.get("added_tokens_decoder")
        if isinstance(named, dict):
            settings["added_tokens_decoder"] = {
                str(new_ids[int(index)]): token for index, token in named.items() if int(index) in new_ids
            }
        _write(path, settings)
    if (out / "added_tokens.json").exists():
        added = read_json(out / "added_tokens.json")
        _write(out / "added_tokens.json", {token: new_ids[index] for token, index in added.items() if index in new_ids})
    if (out / "vocab.txt").exists():
        lines = sorted(model_ids, key=model_ids.__getitem__)
        atomic_write(out / "vocab.txt", "".join(f"{token}\n" for token in lines))
    if (out / "vocab.json").exists():
        _write(out / "vocab.json", dict(sorted(model_ids.items(), key=lambda item: item[1])))
    if (out / "merges.txt").exists():
        pairs = [pair for pair in tokenizer.merges if tokenizer.is_kept(pair, model_ids)]
        atomic_write(out / "merges.txt", "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in pairs))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
