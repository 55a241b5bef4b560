"""Language models, measured and speaking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.api.texts import named_texts, proof_text
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from serve.runtime.generation import TextChunk

__all__ = ["eval_language", "generate", "verify_language"]


def verify_language(
    artifact: Artifact,
    *,
    against: Path,
    data: Path | None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Prove an unquantized language model's artifact equal to its checkpoint: tokens, chat template, logits.

    Args:
        artifact: GGUF or genai.
        against: The checkpoint.
        data: Text to prove it on; packaged sentences if left out.
        columns: The column `text` → the file's.
        threads: Of both engines.
        progress: Told the figures.

    Raises:
        VerificationError: they differ by more than the precision explains.
        UnsupportedError: a GGUF artifact is quantized: how near that is, is measured, not proven.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.gguf_export import is_unquantized
    from edgesmith.stages.prove_export import prove_export

    opened = open_artifact(against, kinds=("checkpoint",))
    if artifact.kind == "gguf" and not is_unquantized(artifact):
        raise UnsupportedError(
            f"{artifact.path}: is quantized, so no tolerance says how near it has to be",
            mend=f"Measure how near it is: edgesmith eval {artifact.path} --against {against} --data TEXT",
        )
    return prove_export(artifact, opened, text=proof_text(data, columns, progress), threads=threads, progress=progress)


def eval_language(
    artifact: Artifact,
    *,
    data: Path,
    against: Path | None = None,
    out: Path | None = None,
    num_windows: int = 64,
    window: int = 512,
    max_tokens: int = 64,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a language model: perplexity (and divergence) on a text, or its answers to prompts.

    Args:
        artifact: GGUF or genai artifact, or a checkpoint.
        data: A text file, or rows with `text`; rows with `prompt` and `reference` have it answer.
        against: Checkpoint (run in torch) or artifact that predictions are compared with.
        out: Folder for all figures of every token.
        num_windows: At most so many windows of text.
        window: Tokens that are read at once.
        max_tokens: Of an answer.
        columns: The names here → the file's.
        threads: Of every engine.
        progress: Shows how far it is.

    Returns:
        `language` or `answers` → figures, JSON-able.

    Raises:
        DataError: the text is too short, or a row lacks a column.
    """
    from bench.language.answers import Answers, has_prompts
    from bench.language.evaluation import LanguageEvaluation
    from edgesmith.api.measure import measure_into
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.engines import GENERATES
    from edgesmith.stages.language import AnswersStage, LanguageStage, ReferenceStage
    from edgesmith.stages.rows import Rows

    if has_prompts(data, columns or {}):
        if against is not None:
            raise UsageError("--against compares predictions on a text; answers to prompts have their references")
        rows = Rows(path=data, columns=columns or {})
        answers = AnswersStage(artifact=artifact, rows=rows, max_tokens=max_tokens, threads=threads)
        folder, evidence = measure_into(answers, out, progress)
        with folder:
            return {"answers": Answers.load(evidence.path).summary()}
    texts = named_texts(data, num_windows=num_windows, window=window, columns=columns)
    with TemporaryDirectory(prefix="edgesmith-") as temporary:
        reference = None
        if against is not None:
            opened = open_artifact(against, kinds=("checkpoint", *GENERATES))
            reference = ReferenceStage(checkpoint=opened, texts=texts, threads=threads).make(Path(temporary), progress)
        stage = LanguageStage(artifact=artifact, reference=reference, texts=texts, threads=threads)
        folder, evidence = measure_into(stage, out, progress)
        with folder:
            return {"language": LanguageEvaluation.load(evidence.path).summary()}


def generate(
    artifact: Path,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    grammar: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    chat: bool = False,
    adapters: Sequence[tuple[Path, float]] = (),
    threads: int = 1,
) -> Iterator[TextChunk]:
    """Continue a prompt with an artifact, as its server would; each chunk comes when it is written.

    Args:
        artifact: GGUF or genai artifact, a bare `.gguf` file, or a checkpoint.
        prompt: Text to continue, or what a user says with `chat`.
        max_tokens: Of the answer.
        temperature: 0 takes the likeliest token every time.
        seed: Of the draws.
        stop: The answer ends before the first of these.
        grammar: The answer follows it (GBNF).
        json_schema: The answer is JSON of this schema.
        chat: Write the prompt into the model's chat template first.
        adapters: LoRA files in GGUF, and their scales.
        threads: Of the engine.

    Raises:
        UsageError: the prompt is empty or too long, or a setting is out of range.
        UnsupportedError: the engine cannot do what is asked.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.engines import GENERATES, open_generator
    from serve.runtime.chat_prompt import chat_prompt
    from serve.runtime.generation import Sampling

    opened = open_artifact(artifact, kinds=("checkpoint", *GENERATES))
    with open_generator(opened, threads, adapters=tuple(adapters)) as engine:
        text = chat_prompt(opened, engine, [{"role": "user", "content": prompt}]) if chat else prompt
        yield from engine.generate(
            text,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=temperature, seed=seed),
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
        )
