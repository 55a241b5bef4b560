"""What a language model predicts, held against its checkpoint: perplexity, divergence, and the answers it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.engines import open_generator
from edgesmith.stages.rows import Rows
from edgesmith.stages.texts import Texts

__all__ = ["AnswersStage", "LanguageStage", "ReferenceStage"]

_LIBRARIES = ("llama-cpp-python", "numpy", "onnxruntime-genai", "tokenizers", "torch", "transformers")
"""What may run a model: an artifact, or the checkpoint in torch."""


@dataclass(frozen=True, kw_only=True)
class ReferenceStage(Stage):
    """Record what the checkpoint, run in torch, predicts after every token of a text."""

    step: ClassVar[str] = "reference"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True

    checkpoint: Artifact
    """Or any artifact that generates, to compare with that."""
    texts: Texts
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return self.texts.options

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.checkpoint.digest, "data": self.texts.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write the likeliest tokens of every position with their probabilities."""
        from bench.language.reference import record_reference

        with open_generator(self.checkpoint, self.threads) as engine:
            record_reference(
                engine, self.texts.cut(engine), artifact_digest=self.checkpoint.digest, progress=progress
            ).save(folder)
        return self.seal(folder)


@dataclass(frozen=True, kw_only=True)
class LanguageStage(Stage):
    """Measure perplexity, and the divergence from a reference, on the reference's own tokens."""

    step: ClassVar[str] = "language"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True

    artifact: Artifact
    reference: Artifact | None = None
    """From `ReferenceStage`; without one only perplexity is measured, on `texts`."""
    texts: Texts
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return self.texts.options

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"artifact": self.artifact.digest, "data": self.texts.digest}
        return given | ({"reference": self.reference.digest} if self.reference else {})

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `language.json` and every token's figures."""
        from bench.language.measure import measure_language
        from bench.language.reference import Reference

        reference = Reference.load(self.reference.path) if self.reference else None
        with open_generator(self.artifact, self.threads) as engine:
            measure_language(
                engine,
                reference.windows if reference else self.texts.cut(engine),
                reference=reference,
                artifact_digest=self.artifact.digest,
                text=self.texts.path.name,
                progress=progress,
            ).save(folder)
        return self.seal(folder)


@dataclass(frozen=True, kw_only=True)
class AnswersStage(Stage):
    """Continue prompts and compare with what was expected."""

    step: ClassVar[str] = "answers"
    libraries: ClassVar[tuple[str, ...]] = (*_LIBRARIES, "sacrebleu")
    is_of_this_machine: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    """With `prompt` and `reference`."""
    max_tokens: int = 64
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.rows.options, "max_tokens": self.max_tokens}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `answers.json`."""
        from bench.language.answers import measure_answers, read_prompts

        assert self.rows.path is not None
        prompts = read_prompts(self.rows.path, columns=self.rows.columns)
        with open_generator(self.artifact, self.threads) as engine:
            measure_answers(
                engine,
                prompts,
                max_tokens=self.max_tokens,
                artifact_digest=self.artifact.digest,
                progress=progress,
            ).save(folder)
        return self.seal(folder)
