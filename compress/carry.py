"""What a new checkpoint takes over besides weights: configuration, tokenizer, templates, labels."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.adapter import Adapter
from compress.checkpoint import Checkpoint, check_inside, read_json
from compress.graft import base_name_of
from compress.skeleton import embeddings_of
from edgesmith.errors import CheckpointError, MergeError, UsageError
from edgesmith.files import atomic_write, storage_errors

__all__ = [
    "Fit",
    "carry_files",
    "carry_side_files",
    "check_vocabulary",
    "fit_to_adapters",
    "merged_config",
    "write_config",
]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A base's configuration, changed to what the adapters were trained with."""

    config: Any
    """Of transformers' class; not shared with the caller's."""
    vocab_size: int | None
    """Rows of the embeddings, if the adapters bring another number of them than the base has."""
    num_labels: int | None
    """Labels, if the adapters bring a head with another number of them than the base has."""


class Change(Protocol):
    """What of the base's configuration a merge changes."""

    architecture: str
    fit: Fit
    untied: bool


def fit_to_adapters(config: Any, skeleton: Any, adapters: Sequence[Adapter]) -> Fit:
    """Find out from the adapters' tensors how the base was changed before training.

    Resized embeddings and a head for other labels are saved whole by PEFT, so their shapes tell. Every other
    difference of shapes stays: it means another base.

    Raises:
        MergeError: two adapters want different sizes.
    """
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    embeddings = _embedding_names(skeleton)
    vocab_sizes: dict[int, Adapter] = {}
    label_counts: dict[int, Adapter] = {}
    for adapter in adapters:
        for name, entry in adapter.file.entries.items():
            base = base_name_of(name)
            needed = shapes.get(base, ())
            if not needed or not entry.shape or entry.shape == needed or entry.shape[1:] != needed[1:]:
                continue
            if base.rpartition(".")[0] in embeddings:
                vocab_sizes[entry.shape[0]] = adapter
            elif needed[0] == config.num_labels and not base.startswith(f"{skeleton.base_model_prefix}."):
                label_counts[entry.shape[0]] = adapter
    fitted = copy.deepcopy(config)
    vocab_size = _only(vocab_sizes, "rows of embeddings")
    num_labels = _only(label_counts, "labels")
    if vocab_size is not None:
        fitted.get_text_config().vocab_size = vocab_size
    if num_labels is not None:
        fitted.num_labels = num_labels
    return Fit(config=fitted, vocab_size=vocab_size, num_labels=num_labels)


def _embedding_names(skeleton: Any) -> set[str]:
    known = [module for module in embeddings_of(skeleton) if module is not None]
    return {name for name, module in skeleton.named_modules() if any(module is other for other in known)}


def _only(sizes: Mapping[int, Adapter], what: str) -> int | None:
    if len(sizes) > 1:
        wanted = ", ".join(f"{adapter.path}: {size}" for size, adapter in sizes.items())
        raise MergeError(f"the adapters want different numbers of {what} ({wanted})", mend="Merge one of them.")
    return next(iter(sizes), None)


def merged_config(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    change: Change,
    *,
    dtype: str | None,
    labels: Sequence[str] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Change the base's `config.json` where the merged model differs; all else stays as it is.

    Returns:
        The configuration, and notes on what was chosen.

    Raises:
        UsageError: the number of labels is not that of the model.
    """
    config, fit = copy.deepcopy(base.config), change.fit
    notes: list[str] = []
    config["architectures"] = [change.architecture]
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    if fit.vocab_size is not None:
        text["vocab_size"] = fit.vocab_size
        notes.append(f"vocabulary: {fit.vocab_size} rows, as the adapter has them")
    if change.untied:
        for part in (config, text):
            part["tie_word_embeddings"] = False
        notes.append("input and output embeddings were tied in the base and differ now: tie_word_embeddings=false")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    names, note = _choose_labels(adapters, fit, labels)
    if note:
        notes.append(note)
    if names is not None:
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
        config.pop("num_labels", None)
    return config, notes


def _choose_labels(adapters: Sequence[Adapter], fit: Fit, labels: Sequence[str] | None) -> tuple[list[str] | None, str]:
    """Return the names of the labels (None: as in the base), and a note."""
    count = fit.config.num_labels
    if labels is not None:
        if len(labels) != count or len(set(labels)) != count:
            raise UsageError(f"{len(labels)} labels given, the model has {count}", mend="Give one name for each.")
        return list(labels), ""
    for adapter in adapters:
        path = adapter.path / "config.json"
        named = read_json(path).get("id2label") if path.exists() else None
        if isinstance(named, dict) and set(named) == {str(index) for index in range(count)}:
            return [str(named[str(index)]) for index in range(count)], f"labels: from {path}"
    if fit.num_labels is None:
        return None, ""
    return [f"LABEL_{index}" for index in range(count)], f"labels: {count}, and nothing says what they are called"


def carry_files(base: Path, adapters: Sequence[Adapter], out: Path) -> list[str]:
    """Copy tokenizer, chat template, generation settings and the like.

    The tokenizer is the adapter's, as a whole, when the adapter's folder has one: that is the one it was
    trained with, added tokens and chat template included.

    Returns:
        Notes on what was chosen.

    Raises:
        MergeError: two adapters bring different tokenizers.
        CheckpointError: a file is a link out of its folder.
        StorageError: a file cannot be copied.
    """
    bringing = [adapter for adapter in adapters if _has_tokenizer(adapter.path)]
    for other in bringing[1:]:
        if _tokenizer_bytes(other.path) != _tokenizer_bytes(bringing[0].path):
            raise MergeError(
                f"{bringing[0].path} and {other.path} bring different tokenizers",
                mend="Adapters that are merged together must have been trained with one tokenizer.",
            )
    source = bringing[0].path if bringing else base
    carry_side_files(base, out, tokenizer=source)
    return [f"tokenizer: from {source}"] if bringing else []


def carry_side_files(source: Path, out: Path, *, tokenizer: Path | None = None) -> None:
    """Copy all that a checkpoint has beside its weights and `config.json`, as it is.

    That is the tokenizer, chat templates, generation settings, image processor, pooling and licence.

    Args:
        source: Checkpoint that a step was given.
        out: Exists.
        tokenizer: Folder whose tokenizer is taken, as a whole; that of `source` when None.

    Raises:
        CheckpointError: a file is a link out of its folder.
        StorageError: a file cannot be copied.
    """
    _copy(tokenizer or source, out, _TOKENIZER_FILES)
    _copy(source, out, _OTHER_FILES)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"))


def _tokenizer_bytes(folder: Path) -> dict[str, bytes]:
    with storage_errors(folder):
        return {name: (folder / name).read_bytes() for name in _TOKENIZER_FILES if (folder / name).is_file()}


def _copy(source: Path, out: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            check_inside(source, path)
            target = out / path.relative_to(source)
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def check_vocabulary(folder: Path, num_rows: int) -> None:
    """Check that every token id of a checkpoint's tokenizer has a row in the embeddings.

    Raises:
        MergeError: one has not.
        CheckpointError: tokenizer.json is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        ids += [token["id"] for token in tokenizer.get("added_tokens", ())]
        highest = max(ids, default=-1)
        fits = highest < num_rows
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not the format of the tokenizers library: {error!r}", mend="Copy the tokenizer's files again."
        ) from error
    if not fits:
        raise MergeError(
            f"the tokenizer's highest token id is {highest}, the embeddings have {num_rows} rows",
            mend="The adapter was trained with added tokens whose embeddings were not saved: save it with "
            "save_embedding_layers=True, or put the base's tokenizer files into the adapter's folder.",
        )


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json` in a canonical form."""
    atomic_write(folder / "config.json", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
