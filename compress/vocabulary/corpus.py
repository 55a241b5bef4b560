"""A corpus as a tokenizer splits it: how often each token stands in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import CheckpointError, DataError
from edgesmith.progress import Progress

__all__ = ["MIN_TOKENS", "EncodedCorpus", "encode_corpus", "pieces_of"]

MIN_TOKENS = 256
"""Fewest tokens that say anything about which others are needed."""
_PIECE_CHARS = 4 << 20
_OVERLAP_CHARS = 1 << 10
_BATCH_CHARS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class EncodedCorpus:
    """Every token of a corpus, in its order."""

    batches: list[NDArray[np.uint32]]
    """Token ids of each batch of texts, joined."""
    counts: NDArray[np.int64]
    """How often each id stands in them, of shape [num_rows]."""

    @property
    def num_tokens(self) -> int:
        """Of the whole corpus."""
        return int(self.counts.sum())


def encode_corpus(
    tokenizer: Any, texts: Sequence[str], num_rows: int, progress: Progress, *, title: str = "read corpus"
) -> EncodedCorpus:
    """Split all texts into tokens, without those that the tokenizer puts around each.

    Args:
        tokenizer: Of the tokenizers library.
        texts: Of any length.
        num_rows: Rows of the embeddings: every id must be below.
        progress: Where to report.
        title: Of the progress bar.

    Raises:
        CheckpointError: an id has no row.
        DataError: a text is no valid Unicode.
    """
    batches: list[NDArray[np.uint32]] = []
    counts: NDArray[np.int64] = np.zeros(num_rows, np.int64)
    with progress.bar(title, sum(map(len, texts))) as advance:
        for batch in pieces_of(texts):
            try:
                encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError) as error:
                raise DataError(
                    f"the corpus holds a text that cannot be tokenized: {error}",
                    mend="It was cut inside a character or decoded wrongly: correct its source.",
                ) from error
            ids = np.array([index for encoding in encodings for index in encoding.ids], np.uint32)
            if ids.size and int(ids.max()) >= num_rows:
                raise CheckpointError(
                    f"the tokenizer gives the id {int(ids.max())}, the embeddings have {num_rows} rows",
                    mend="Tokenizer and weights are of two models: copy the checkpoint again.",
                )
            batches.append(ids)
            counts += np.bincount(ids, minlength=num_rows)
            advance(sum(map(len, batch)))
    return EncodedCorpus(batches=batches, counts=counts)


def pieces_of(texts: Sequence[str]) -> Iterator[list[str]]:
    """Gather short texts and cut long ones, so that memory stays small.

    Pieces of a long text overlap: each token of the text, with the word around it, lies whole within one of them.
    """
    batch: list[str] = []
    filled = 0
    for text in texts:
        for start in range(0, max(len(text), 1), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS + _OVERLAP_CHARS]
            batch.append(piece)
            filled += len(piece)
            if filled >= _BATCH_CHARS:
                yield batch
                batch, filled = [], 0
    if batch:
        yield batch
