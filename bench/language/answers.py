"""What a language model answers to prompts, held against references: every answer is kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.accuracy import Evaluation
from bench.language.metrics import (
    CORPUS_METRICS,
    METRICS,
    bleu_statistics,
    chrf_statistics,
    corpus_metric,
    exact_match,
    rouge,
)
from bench.raw import damage_errors, pretty_json, read_json
from edgesmith.artifact import canonical_json
from edgesmith.errors import DataError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["ANSWERS", "Answer", "Answers", "Prompt", "has_prompts", "measure_answers", "read_prompts"]

ANSWERS = "answers.json"
TASK = "text-generation"
_DEFAULT = "exact_match"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to continue, and what is expected."""

    prompt: str
    references: tuple[str, ...]
    """At least one; the nearest counts."""
    line: int | None = None
    """Of the data file."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was answered to a prompt, and how near it is to the references."""

    prompt: str
    references: tuple[str, ...]
    text: str
    num_tokens: int
    finish_reason: str | None
    """`stop`, or `length` where `max_tokens` ended it."""
    line: int | None
    scores: Mapping[str, float]
    """Metric → value, of the metrics that are means over answers."""
    statistics: Mapping[str, Sequence[int]]
    """Metric → what is summed, of the others."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of a model to a file of prompts, and the metrics over them."""

    engine: str
    artifact_digest: str | None
    data_digest: str
    """Of prompts and references in their order: equal ones make two models comparable prompt by prompt."""
    max_tokens: int
    answers: tuple[Answer, ...]
    seconds: float

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Metric → value over all answers, in [0, 1]."""
        everything = np.arange(len(self.answers))
        found = {}
        for name in METRICS:
            if name in CORPUS_METRICS:
                found[name] = corpus_metric(name, [one.statistics[name] for one in self.answers])(everything)
            else:
                found[name] = float(np.mean([one.scores[name] for one in self.answers]))
        return found

    @property
    def length_ratio(self) -> float:
        """Characters of all answers over those of the references, of several the nearest in length."""
        ours = [len(one.text.strip()) for one in self.answers]
        theirs = [
            min((abs(len(text.strip()) - own), len(text.strip())) for text in one.references)[1]
            for one, own in zip(self.answers, ours, strict=True)
        ]
        return sum(ours) / max(1, sum(theirs))

    @property
    def share_cut(self) -> float:
        """Share of the answers that `max_tokens` ended."""
        return sum(one.finish_reason == "length" for one in self.answers) / len(self.answers)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The same as an evaluation, which accuracy gates are judged on."""
        means = [name for name in METRICS if name not in CORPUS_METRICS]
        return Evaluation(
            task=TASK,
            engine=self.engine,
            artifact_digest=self.artifact_digest,
            data_digest=self.data_digest,
            batch_size=1,
            metrics=self.metrics,
            default_metric=_DEFAULT,
            higher_is_better=dict.fromkeys(METRICS, True),
            labels=(),
            lines=tuple(one.line for one in self.answers),
            targets=(None,) * len(self.answers),
            predictions=tuple({"text": one.text, "statistics": one.statistics} for one in self.answers),
            scores={name: np.array([one.scores[name] for one in self.answers]) for name in means},
            seconds=self.seconds,
        )

    def summary(self) -> dict[str, Any]:
        """Give the figures without the answers, JSON-able."""
        return {
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "data_digest": self.data_digest,
            "num_prompts": len(self.answers),
            "max_tokens": self.max_tokens,
            "metrics": dict(self.metrics),
            "length_ratio": self.length_ratio,
            "share_cut": self.share_cut,
            "seconds": round(self.seconds, 3),
        }

    def save(self, folder: Path) -> None:
        """Write `answers.json` with every answer into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        answers = [asdict(one) for one in self.answers]
        atomic_write(folder / ANSWERS, pretty_json({"schema_version": 1} | self.summary() | {"answers": answers}))

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no answers.
            ArtifactError: They are damaged.
        """
        value = read_json(folder / ANSWERS, mend="Make them with `edgesmith eval`.")
        with damage_errors(folder / ANSWERS):
            read = cls(
                engine=str(value["engine"]),
                artifact_digest=value["artifact_digest"],
                data_digest=str(value["data_digest"]),
                max_tokens=int(value["max_tokens"]),
                answers=tuple(_answer_of(one) for one in value["answers"]),
                seconds=float(value["seconds"]),
            )
            if not read.answers or len(read.answers) != value["num_prompts"]:
                raise ValueError(f"{len(read.answers)} answers, but the summary says {value['num_prompts']}")
            if any(abs(read.metrics[name] - value["metrics"][name]) > 1e-9 for name in METRICS):
                raise ValueError("answers with other metrics than the summary's")
            return read


def _answer_of(value: Mapping[str, Any]) -> Answer:
    scores = {name: float(value["scores"][name]) for name in METRICS if name not in CORPUS_METRICS}
    if not all(0 <= one <= 1 for one in scores.values()):
        raise ValueError(f"a score of line {value['line']} is outside 0 to 1")
    statistics = {name: [int(count) for count in value["statistics"][name]] for name in sorted(CORPUS_METRICS)}
    if [len(one) for one in statistics.values()] != [10, 18] or min(map(min, statistics.values())) < 0:
        raise ValueError(f"counts of line {value['line']} are none")
    references = tuple(map(str, value["references"]))
    if not references:
        raise ValueError(f"line {value['line']} has no reference")
    return Answer(
        prompt=str(value["prompt"]),
        references=references,
        text=str(value["text"]),
        num_tokens=int(value["num_tokens"]),
        finish_reason=value["finish_reason"],
        line=value["line"],
        scores=scores,
        statistics=statistics,
    )


def has_prompts(path: Path, columns: Mapping[str, str]) -> bool:
    """Whether a file holds prompts with references, to judge from its first row; else it is a text.

    Raises:
        DataError: The file cannot be read.
    """
    from bench.language.windows import TEXT_SUFFIXES
    from edgesmith.data import read_rows

    if path.suffix.lower() in TEXT_SUFFIXES:
        return False
    return columns.get("prompt", "prompt") in next(iter(read_rows(path))).values


def read_prompts(path: Path, *, columns: Mapping[str, str] | None = None) -> list[Prompt]:
    """Read prompts with what is expected from a data file.

    Args:
        path: Rows with columns `prompt` and `reference`: a text, or a list of texts in JSONL.
        columns: These names → the file's.

    Raises:
        DataError: A row lacks one of them; the message names the line.
    """
    from edgesmith.data import read_rows

    named = columns or {}
    ask, expect = named.get("prompt", "prompt"), named.get("reference", "reference")
    found = []
    for row in read_rows(path):
        for name in (ask, expect):
            if name not in row.values:
                known = ", ".join(repr(one) for one in row.values)
                raise DataError(f"{row.place}: has no column {name!r}", mend=f"Its columns are {known}; map one.")
        given = row.values[expect]
        references = tuple(given) if isinstance(given, list) else (given,)
        if not references or not all(isinstance(one, str) and one.strip() for one in references):
            raise DataError(f"{row.place}: {expect!r} is no text", mend="Give a text, or a list of texts.")
        prompt = row.values[ask]
        if not isinstance(prompt, str) or not prompt:
            raise DataError(f"{row.place}: {ask!r} is no text", mend="Give a text.")
        found.append(Prompt(prompt=prompt, references=references, line=row.line))
    return found


def measure_answers(
    engine: GenerationEngine,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 64,
    stop: Sequence[str] = (),
    artifact_digest: str | None = None,
    progress: Progress = SILENT,
) -> Answers:
    """Continue every prompt with the likeliest tokens, and hold the answers against the references.

    Args:
        engine: Generates.
        prompts: At least one.
        max_tokens: Of one answer; it may end earlier by itself.
        stop: An answer ends before the first of these.
        artifact_digest: Of what the engine runs.
        progress: Shows the prompts done.

    Raises:
        DataError: There are no prompts.
        UsageError: A prompt does not fit into the model's context.
        MissingExtraError: sacrebleu is not installed.
    """
    if not prompts:
        raise DataError("no prompts to answer", mend="Give a data file with rows.")
    start = time.perf_counter()
    answers = tuple(_answer(engine, one, max_tokens, stop) for one in progress.track(prompts, "answer"))
    return Answers(
        engine=engine.name,
        artifact_digest=artifact_digest,
        data_digest=_digest(prompts),
        max_tokens=max_tokens,
        answers=answers,
        seconds=time.perf_counter() - start,
    )


def _answer(engine: GenerationEngine, prompt: Prompt, max_tokens: int, stop: Sequence[str]) -> Answer:
    chunks = list(engine.generate(prompt.prompt, max_tokens=max_tokens, stop=stop))
    text = "".join(chunk.text for chunk in chunks)
    references = prompt.references
    return Answer(
        prompt=prompt.prompt,
        references=references,
        text=text,
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        finish_reason=chunks[-1].finish_reason if chunks else None,
        line=prompt.line,
        scores={
            "exact_match": exact_match(text, references),
            "exact_match_strict": exact_match(text, references, strict=True),
            **rouge(text, references),
        },
        statistics={
            "bleu": bleu_statistics(text.strip(), references),
            "chrf": chrf_statistics(text.strip(), references),
        },
    )


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for one in prompts:
        digest.update(canonical_json([one.prompt, list(one.references)]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"
