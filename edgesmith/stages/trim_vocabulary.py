"""Trim the vocabulary: checkpoint → checkpoint with only the tokens that a corpus uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.data import TEXT_FORMATS, data_digest, read_rows
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress
from edgesmith.recipe.steps import TrimVocabularyOptions
from edgesmith.stages.base import Stage
from edgesmith.tasks import TextTask, load_task
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from compress.vocabulary.trim import TrimResult

__all__ = ["TrimVocabularyStage"]


@dataclass(frozen=True, kw_only=True)
class TrimVocabularyStage(Stage):
    """Leave out the tokens that a corpus does not use, and prove that nothing else changed."""

    step: ClassVar[str] = "trim-vocabulary"
    kind: ClassVar[Kind] = "checkpoint"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "safetensors", "tokenizers", "torch", "transformers")

    source: Artifact
    corpus: Path
    """Rows as the model's task reads them; of a language model, a text, or rows with a column `text`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The task's column → the file's."""
    trim: TrimVocabularyOptions = field(default_factory=TrimVocabularyOptions)
    tell: Callable[[TrimResult], None] | None = field(default=None, compare=False)
    """Called with what was found, which the artifact holds only in part."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        columns: dict[str, JsonValue] = dict(self.columns)
        return {**self.trim.model_dump(mode="json", exclude={"corpus"}), "columns": columns}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        corpus = f"sha256:{data_digest(self.corpus)}{self.corpus.suffix.lower()}"
        return {"checkpoint": self.source.digest, "corpus": corpus}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Checkpoint and corpus."""
        return (self.source.path, self.corpus)

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Trim, and say what it saved."""
        from compress.vocabulary.chat import chat_texts
        from compress.vocabulary.select import Limits
        from compress.vocabulary.trim import trim_vocabulary

        result = trim_vocabulary(
            self.source.folder,
            folder,
            read_corpus(self.source.folder, self.corpus, self.columns),
            limits=Limits(
                max_tokens=self.trim.max_tokens,
                min_count=self.trim.min_count,
                multiple_of=self.trim.multiple_of,
            ),
            more_texts=chat_texts(self.source.folder),
            progress=progress,
        )
        for note in notes_of(result):
            progress.note(f"trim-vocabulary: {note}")
        if self.tell is not None:
            self.tell(result)
        return self.seal(folder)


def read_corpus(checkpoint: Path, corpus: Path, columns: Mapping[str, str]) -> list[str]:
    """Read all texts of a corpus as the model reads them.

    Args:
        checkpoint: Its task decides: the columns of rows, or plain text of a language model.
        corpus: Data file or text file.
        columns: The task's column → the file's.

    Raises:
        DataError: a row does not fit, or there is no text.
    """
    try:
        task = load_task(checkpoint, columns=columns)
    except UnsupportedError:
        task = None
    if isinstance(task, TextTask):
        lowercase = task.encoder.settings.lowercase
        pairs = task.sequences(task.read_examples(corpus, labelled=False))
        texts = [text for pair in pairs for text in pair if text is not None]
        return [text.lower() for text in texts] if lowercase else texts
    from bench.language.windows import read_text
    from edgesmith.tasks.columns import read_text as read_column

    # Perplexity reads rows joined to one text, a prompt reads one row alone: a row's first token differs.
    whole = [read_text(corpus, columns.get("text", "text"))]
    if corpus.suffix.lower() in TEXT_FORMATS:
        return whole
    return whole + [read_column(row, columns.get("text", "text"), "text") for row in read_rows(corpus)]


def notes_of(result: TrimResult) -> list[str]:
    """Say in sentences what was found."""
    corpus, model = result.corpus, result.model
    before, after = result.num_rows_before, result.num_rows_after
    saved = result.weights_bytes_before - result.weights_bytes_after
    notes = [
        f"{before:,} tokens → {after:,} ({', '.join(f'{count:,} {why}' for why, count in result.reasons.items())}); "
        f"weights {format_bytes(result.weights_bytes_before)} → {format_bytes(result.weights_bytes_after)}",
        f"the corpus' {corpus.num_tokens_before:,} tokens are the same ones"
        if not corpus.num_gone
        else f"{corpus.share_changed:.2%} of the corpus' {corpus.num_tokens_before:,} tokens are gone: it is written "
        f"with {corpus.num_tokens_after:,} now",
        f"largest difference of the model's outputs on {model.num_tokens:,} of them: {model.max_abs_diff:.2g} (allowed "
        f"{model.tolerance:.2g})",
    ]
    if not saved:
        notes.append("nothing was saved: the corpus needs every token")
    if corpus.num_unknown_after > corpus.num_unknown_before:
        notes.append(f"{corpus.num_unknown_after - corpus.num_unknown_before:,} more unknown tokens in the corpus")
    if model.perplexity is not None:
        found = model.perplexity
        notes.append(
            f"perplexity among the tokens that stay: {found.before_on_kept:.6g} → {found.after:.6g}. Over all its "
            f"tokens the original has {found.before:.6g}: {1 - found.kept_probability:.2%} of its probability went to "
            "tokens that are gone, so perplexities of the two vocabularies do not compare"
        )
    return notes
