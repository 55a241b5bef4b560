"""Proof that a trimmed tokenizer splits texts as the original did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.vocabulary.corpus import EncodedCorpus, pieces_of
from compress.vocabulary.tokenizer_json import TokenizerJson
from edgesmith.errors import VerificationError

__all__ = ["TextProof", "prove_corpus", "prove_other_text"]

_MEND = "Report it with the checkpoint's tokenizer.json: the trimmed checkpoint was not written."


@dataclass(frozen=True, kw_only=True)
class TextProof:
    """How texts are split before and after."""

    num_tokens_before: int
    num_tokens_after: int
    num_gone: int
    """Tokens of the text, each as often as it stands there, that the new vocabulary lacks; shorter ones take their
    place. 0: every token is the same one."""
    num_unknown_before: int
    """Tokens that stand for text that no token covers."""
    num_unknown_after: int

    @property
    def share_changed(self) -> float:
        """Share of the text's tokens that are written with others."""
        return self.num_gone / self.num_tokens_before if self.num_tokens_before else 0.0


def prove_corpus(
    pipelines: tuple[Any, Any],
    encoded: tuple[EncodedCorpus, EncodedCorpus],
    kept: NDArray[np.int64],
    unknown: int | None,
) -> TextProof:
    """Compare all of a corpus, token by token, and what its tokens are decoded to.

    Args:
        pipelines: Original and trimmed tokenizer of the tokenizers library.
        encoded: The corpus' tokens by the one and by the other, in the same batches.
        kept: Old ids, rising.
        unknown: Old id of the unknown token.

    Raises:
        VerificationError: a token differs though all tokens of the corpus were kept, or the texts are not the same.
    """
    before, after = encoded
    gone = before.counts.copy()
    gone[kept] = 0
    num_gone = int(gone.sum())
    unknowns = [0, 0]
    if unknown is not None:
        unknowns = [int(before.counts[unknown]), int(after.counts[np.searchsorted(kept, unknown)])]
    has_unknown = unknowns[0] != unknowns[1]
    for number, (old, new) in enumerate(zip(before.batches, after.batches, strict=True)):
        if not num_gone and not np.array_equal(kept[new], old):
            raise VerificationError(
                f"the trimmed tokenizer splits the corpus otherwise: {_first_difference(old, kept[new])}", mend=_MEND
            )
        if not has_unknown and _decode(pipelines[0], old) != _decode(pipelines[1], new):
            raise VerificationError(
                f"the trimmed tokenizer decodes another text from batch {number} of the corpus", mend=_MEND
            )
    return TextProof(
        num_tokens_before=before.num_tokens,
        num_tokens_after=after.num_tokens,
        num_gone=num_gone,
        num_unknown_before=unknowns[0],
        num_unknown_after=unknowns[1],
    )


def prove_other_text(
    pipelines: tuple[Any, Any], texts: Sequence[str], tokenizer: TokenizerJson, kept: NDArray[np.int64]
) -> TextProof:
    """Check that text which is not of the corpus still encodes; where nothing is ever unknown, to the same text.

    Raises:
        VerificationError: decoding gives another text.
    """
    stays = set(kept.tolist())
    unknown = tokenizer.unknown_id
    totals = np.zeros(5, np.int64)
    for batch in pieces_of(texts):
        old, new = (
            [one.ids for one in pipeline.encode_batch_fast(batch, add_special_tokens=False)] for pipeline in pipelines
        )
        for text, ids, new_ids in zip(batch, old, new, strict=True):
            restored = kept[np.array(new_ids, np.int64)].tolist()
            unknowns = [sum(index == unknown for index in one) for one in (ids, restored)]
            totals += [len(ids), len(new_ids), sum(index not in stays for index in ids), *unknowns]
            if not any(unknowns) and _decode(pipelines[0], ids) != _decode(pipelines[1], new_ids):
                raise VerificationError(
                    f"the trimmed tokenizer makes {_decode(pipelines[1], new_ids)!r} of {text!r}", mend=_MEND
                )
    return TextProof(
        num_tokens_before=int(totals[0]),
        num_tokens_after=int(totals[1]),
        num_gone=int(totals[2]),
        num_unknown_before=int(totals[3]),
        num_unknown_after=int(totals[4]),
    )


def _decode(pipeline: Any, ids: Sequence[int] | NDArray[np.uint32]) -> str:
    text: str = pipeline.decode(ids, skip_special_tokens=False)
    return text


def _first_difference(old: NDArray[Any], new: NDArray[Any]) -> str:
    common = min(len(old), len(new))
    differ = np.flatnonzero(old[:common] != new[:common])
    at = int(differ[0]) if differ.size else common
    return f"from token {at} on, {old[at : at + 5].tolist()} became {new[at : at + 5].tolist()} (old ids)"
