"""Trimming a vocabulary: checkpoint in, smaller checkpoint out, proven equal on a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from compress.vocabulary.trim import TrimResult
    from edgesmith.artifact import Artifact

__all__ = ["trim_vocabulary"]


def trim_vocabulary(
    checkpoint: Path,
    *,
    corpus: Path,
    out: Path,
    max_tokens: int | None = None,
    min_count: int = 1,
    multiple_of: int = 8,
    columns: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> tuple[Artifact, TrimResult]:
    """Leave out the tokens that a corpus does not use; nothing appears at `out` unless the rest is proven equal.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact, with `tokenizer.json`.
        corpus: Rows as the model's task reads them; of a language model a text, or rows with a column `text`.
        out: Folder to write.
        max_tokens: Keep at most so many tokens: rarer ones of the corpus are then written with shorter ones.
        min_count: Leave out tokens that the corpus has less often, too.
        multiple_of: Fill the number of tokens up to a multiple of this.
        columns: The task's column → the file's.
        progress: Shows how far it is.

    Returns:
        The checkpoint, and what was found.

    Raises:
        UsageError: fewer tokens are allowed than must stay, or an option is out of its range.
        DataError: the corpus is too small, or a row does not fit.
        CheckpointError: the checkpoint is damaged, or tokenizer and weights do not fit together.
        UnsupportedError: a kind of tokenizer or model that is not trimmed.
        VerificationError: the trimmed checkpoint is not equal on the corpus.
    """
    from pydantic import ValidationError

    from edgesmith.artifact import open_artifact
    from edgesmith.errors import UsageError
    from edgesmith.recipe.steps import TrimVocabularyOptions
    from edgesmith.stages.base import make_into
    from edgesmith.stages.trim_vocabulary import TrimVocabularyStage

    try:
        options = TrimVocabularyOptions(max_tokens=max_tokens, min_count=min_count, multiple_of=multiple_of)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(f"{fault['loc'][0]}: {fault['msg']}") from error
    found: list[TrimResult] = []
    stage = TrimVocabularyStage(
        source=open_artifact(checkpoint, kinds=("checkpoint",)),
        corpus=corpus,
        columns=columns or {},
        trim=options,
        tell=found.append,
    )
    artifact, _ = make_into(stage, out, lambda _: None, progress)
    return artifact, found[0]
