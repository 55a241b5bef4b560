"""Trim a checkpoint's vocabulary to what a corpus uses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint, open_checkpoint, quantization_of, read_json
from compress.skeleton import TORCH_DTYPES
from compress.vocabulary.axes import Architecture, find_axes
from compress.vocabulary.characters import single_characters
from compress.vocabulary.corpus import MIN_TOKENS, EncodedCorpus, encode_corpus
from compress.vocabulary.prove_model import ModelProof, prove_model
from compress.vocabulary.prove_text import TextProof, prove_corpus, prove_other_text
from compress.vocabulary.rows import TrimmedTensor, write_trimmed
from compress.vocabulary.select import Limits, Selection, select_tokens
from compress.vocabulary.side_files import needed_ids, write_side_files
from compress.vocabulary.tokenizer_json import TokenizerJson, load_pipeline
from edgesmith.errors import CheckpointError, DataError, UnsupportedError, UsageError
from edgesmith.files import atomic_write, publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.tasks.base import sample_texts

__all__ = ["VOCABULARY_FILE", "TrimResult", "read_kept_ids", "trim_vocabulary"]

VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True, kw_only=True)
class TrimResult:
    """What trimming did."""

    path: Path
    """The trimmed checkpoint."""
    num_tokens_before: int
    """Tokens of the tokenizer, those that were added included."""
    num_tokens_after: int
    num_rows_before: int
    """Rows of the embeddings: a model may have more than its tokenizer has tokens."""
    num_rows_after: int
    reasons: Mapping[str, int]
    """Why tokens stay → how many."""
    num_parameters_before: int
    num_parameters_after: int
    weights_bytes_before: int
    weights_bytes_after: int
    tokenizer_bytes_before: int
    tokenizer_bytes_after: int
    tensors: Mapping[str, TrimmedTensor]
    """Those that have an axis of tokens."""
    corpus: TextProof
    other_text: TextProof
    """Of packaged English sentences, which stand for text that is not of the corpus."""
    model: ModelProof
    notes: tuple[str, ...]


def trim_vocabulary(
    checkpoint: Path,
    out: Path,
    texts: Sequence[str],
    *,
    limits: Limits | None = None,
    more_texts: Sequence[str] = (),
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress = SILENT,
) -> TrimResult:
    """Write a checkpoint that has only the tokens that a corpus uses, and prove it equal on that corpus.

    Args:
        checkpoint: Hugging Face folder with safetensors weights and `tokenizer.json`.
        out: The new checkpoint; must not exist or be empty. It appears whole and proven, or not at all.
        texts: The corpus, as the model reads it.
        limits: How many tokens may stay; by default all of the corpus.
        more_texts: Texts whose tokens are kept like the corpus', but not counted in the result, such as a chat
            template's own words.
        max_shard_bytes: Above this size the weights are split into shards.
        progress: Where to report.

    Raises:
        UsageError: `out` is in use, or fewer tokens are allowed than must stay.
        DataError: the corpus is too small.
        CheckpointError: the checkpoint is damaged, or its parts do not fit together.
        UnsupportedError: the tokenizer or model is of a kind that is not trimmed, or quantized.
        VerificationError: the result is not equal on the corpus.
        StorageError: the disk is full.
    """
    limits = limits or Limits()
    original = open_checkpoint(checkpoint)
    architecture, tokenizer, pipeline = _open(original, out)
    counted = encode_corpus(pipeline, texts, architecture.num_rows, progress)
    if counted.num_tokens < MIN_TOKENS:
        raise DataError(
            f"the corpus has {counted.num_tokens} tokens; {MIN_TOKENS} are the fewest that say which are needed",
            mend="Give the text that the model will work on, better thousands of rows than a few.",
        )
    more = encode_corpus(pipeline, more_texts, architecture.num_rows, SILENT)
    selection = select_tokens(
        tokenizer,
        np.where(more.counts > 0, counted.counts.max() + limits.min_count, counted.counts),
        special=needed_ids(checkpoint, tokenizer, architecture),
        characters=single_characters(tokenizer, texts),
        limits=limits,
        pipeline=pipeline,
    )
    temporary = temporary_sibling(out)
    with storage_errors(out):
        temporary.mkdir(parents=True)
    try:
        tensors = write_trimmed(
            original, temporary, architecture.axes, selection.kept, max_shard_bytes=max_shard_bytes, progress=progress
        )
        notes = write_side_files(original, temporary, tokenizer, architecture, selection.kept)
        proof = _prove(original, temporary, architecture, tokenizer, (pipeline, texts, counted), selection, progress)
        result = TrimResult(
            path=out,
            num_tokens_before=len(tokenizer.tokens),
            num_tokens_after=len(TokenizerJson(temporary).tokens),
            num_rows_before=architecture.num_rows,
            num_rows_after=len(selection.kept),
            reasons=selection.reasons,
            tensors=tensors,
            notes=tuple(notes),
            **_sizes(original, open_checkpoint(temporary)),
            **proof,
        )
        _write_record(temporary, result, selection)
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for note in notes:
        progress.note(note)
    return result


def _open(checkpoint: Checkpoint, out: Path) -> tuple[Architecture, TokenizerJson, Any]:
    """Check everything that can be checked before the corpus is read."""
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not empty", mend="Give a new folder.")
    quantization = quantization_of(checkpoint.config)
    if quantization is not None:
        raise UnsupportedError(
            f"{checkpoint.folder}: the weights are quantized ({quantization})",
            mend="Trim the full-precision checkpoint that was quantized, and quantize the result.",
        )
    tokenizer = TokenizerJson(checkpoint.folder)
    architecture = find_axes(checkpoint)
    pipeline = load_pipeline(checkpoint.folder)
    highest = max(tokenizer.tokens, default=-1)
    if highest >= architecture.num_rows:
        raise CheckpointError(
            f"{tokenizer.path}: the highest token id is {highest} ({tokenizer.tokens[highest]!r}), the embeddings have "
            f"{architecture.num_rows} rows",
            mend="Tokenizer and weights are of two models: copy the checkpoint again.",
        )
    for token, index in pipeline.get_vocab(with_added_tokens=True).items():
        if tokenizer.tokens.get(index) != token and (index in tokenizer.tokens or token in tokenizer.model_ids):
            raise CheckpointError(
                f"{tokenizer.path}: {token!r} gets the id {index} when it is loaded, the file says otherwise",
                mend="Save it again with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`.",
            )
    return architecture, tokenizer, pipeline


def _prove(
    original: Checkpoint,
    trimmed: Path,
    architecture: Architecture,
    tokenizer: TokenizerJson,
    corpus: tuple[Any, Sequence[str], EncodedCorpus],
    selection: Selection,
    progress: Progress,
) -> dict[str, Any]:
    pipeline, texts, before = corpus
    kept = selection.kept
    pipelines = (pipeline, load_pipeline(trimmed))
    after = encode_corpus(pipelines[1], texts, len(kept), progress, title="compare corpus")
    in_corpus = prove_corpus(pipelines, (before, after), kept, tokenizer.unknown_id)
    other_text = prove_other_text(pipelines, sample_texts(), tokenizer, kept)
    with progress.bar("compare model") as advance:
        tokens = np.concatenate(after.batches).astype(np.int64)
        model = prove_model(original.folder, trimmed, architecture.model_class, kept, tokens)
        advance(1)
    return {"corpus": in_corpus, "other_text": other_text, "model": model}


def _sizes(before: Checkpoint, after: Checkpoint) -> dict[str, Any]:
    return {
        "num_parameters_before": _num_parameters(before),
        "num_parameters_after": _num_parameters(after),
        "weights_bytes_before": sum(entry.size_bytes for entry in before.entries.values()),
        "weights_bytes_after": sum(entry.size_bytes for entry in after.entries.values()),
        "tokenizer_bytes_before": (before.folder / "tokenizer.json").stat().st_size,
        "tokenizer_bytes_after": (after.folder / "tokenizer.json").stat().st_size,
    }


def _num_parameters(checkpoint: Checkpoint) -> int:
    """Those of integers are tables of positions and counters that older models have saved: nothing that is trained."""
    floats = [entry for entry in checkpoint.entries.values() if entry.dtype in TORCH_DTYPES]
    return sum(math.prod(entry.shape) for entry in floats)


def _write_record(folder: Path, result: TrimResult, selection: Selection) -> None:
    """Write `vocabulary.json`: which tokens stayed, and what that saved."""
    facts = {key: value for key, value in asdict(result).items() if key not in ("path", "model", "notes")}
    record = {"schema_version": 1, **facts, "kept": _runs(selection.kept)}
    atomic_write(folder / VOCABULARY_FILE, json.dumps(record) + "\n")


def _runs(kept: NDArray[np.int64]) -> list[list[int]]:
    """Write rising ids as runs `[first, how many]`; the new id of each is its place among all."""
    starts = np.flatnonzero(np.diff(kept, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(kept))
    return [[int(kept[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]


def read_kept_ids(folder: Path) -> NDArray[np.int64]:
    """Read which tokens a trimmed checkpoint kept.

    Returns:
        Old ids, rising, of shape [num_rows_after]; the new id of each is its place.

    Raises:
        CheckpointError: the folder's `vocabulary.json` is missing or damaged.
    """
    path = folder / VOCABULARY_FILE
    record = read_json(path)
    try:
        runs = [np.arange(first, first + length, dtype=np.int64) for first, length in record["kept"]]
        return np.concatenate(runs)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged: {error!r}", mend="Trim the vocabulary again.") from error
