"""Language models, a step at a time: into GGUF or genai, smaller, measured, and speaking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from compress.gguf.imatrix import Imatrix
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import GenaiQuantizeOptions, GgufQuantizeOptions
    from edgesmith.stages.texts import Texts
    from serve.runtime.generation import TextChunk

__all__ = [
    "eval_language",
    "export_adapter",
    "export_genai",
    "export_gguf",
    "generate",
    "imatrix",
    "quantize_gguf",
    "verify_language",
]

NUM_CALIBRATED = 40
"""Windows of 512 tokens."""


def export_gguf(
    checkpoint: Path,
    *,
    out: Path,
    dtype: str | None = None,
    converter: Path | None = None,
    data: Path | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Convert a language model's checkpoint; nothing appears at `out` unless it is proven equal.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        dtype: `f32`, `f16` or `bf16`; the checkpoint's own if left out.
        converter: A llama.cpp checkout or converter, for families that are not known here.
        data: Text to prove it on; packaged sentences if left out.
        threads: Of the proof.
        progress: Shows how far it is.

    Returns:
        The artifact, and what was found equal.

    Raises:
        UnsupportedError: the family or the tokenizer has no form in GGUF.
        VerificationError: tokenizer, chat template or logits differ.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import FloatType
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_export import GgufExportStage
    from edgesmith.stages.prove_export import prove_export

    if dtype is not None and dtype not in get_args(FloatType):
        raise UsageError(f"--dtype {dtype}: unknown; use {', '.join(get_args(FloatType))}")
    opened = open_artifact(checkpoint, kinds=("checkpoint",))
    text = _text(data, progress)
    stage = GgufExportStage(checkpoint=opened, dtype=dtype, converter=converter)  # type: ignore[arg-type]  # checked
    return make_into(
        stage,
        out,
        lambda made: prove_export(made, opened, text=text, threads=threads, progress=progress),
        progress,
    )


def export_adapter(
    adapter: Path,
    *,
    base: Path | None = None,
    out: Path,
    data: Path | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Convert a LoRA adapter to a GGUF file that is loaded and scaled beside its base.

    Args:
        adapter: PEFT folder.
        base: The checkpoint that it was trained on.
        out: Folder to write.
        data: Text to prove it on; packaged sentences if left out.
        threads: Of the proof.
        progress: Shows how far it is.

    Raises:
        UsageError: the base is not named.
        UnsupportedError: the adapter's kind has no form in GGUF; merge it instead.
        MergeError: it is of another base.
        VerificationError: base + adapter in llama.cpp differ from the merged checkpoint.
    """
    from dataclasses import asdict

    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_adapter import GgufAdapterStage, prove_gguf_adapter

    if base is None:
        raise UsageError(
            f"{adapter}: is an adapter, and its base is not named",
            mend="Name the checkpoint that it was trained on: --base CHECKPOINT.",
        )
    text = _text(data, progress)
    stage = GgufAdapterStage(adapter=adapter, base=open_artifact(base, kinds=("checkpoint",)))
    return make_into(
        stage,
        out,
        lambda made: asdict(prove_gguf_adapter(made, stage, text=text, threads=threads, progress=progress)),
        progress,
    )


def export_genai(
    checkpoint: Path,
    *,
    out: Path,
    precision: str = "fp32",
    block_size: int = 32,
    data: Path | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Build a language model for onnxruntime-genai; nothing appears at `out` that is not near its checkpoint.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        block_size: Weights that share a scale.
        data: Text to prove it on; packaged sentences if left out.
        threads: Of the proof.
        progress: Shows how far it is.

    Raises:
        UnsupportedError: the builder does not know the family.
        VerificationError: the logits are too far off.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import GenaiTarget
    from edgesmith.stages.base import make_into
    from edgesmith.stages.genai_export import GenaiExportStage
    from edgesmith.stages.prove_export import prove_export

    known = ("fp32", "fp16", "int8", "int4")
    if precision not in known:
        raise UsageError(f"--precision {precision}: unknown; use {', '.join(known)}")
    if precision.startswith("int"):
        quantize: GenaiQuantizeOptions | None = _genai_options(precision, block_size)
        target = GenaiTarget(format="genai", quantize=quantize)
    else:
        target = GenaiTarget.model_validate({"format": "genai", "precision": precision})
    opened = open_artifact(checkpoint, kinds=("checkpoint",))
    text = _text(data, progress)
    stage = GenaiExportStage(checkpoint=opened, target=target)
    return make_into(
        stage,
        out,
        lambda made: prove_export(made, opened, text=text, threads=threads, progress=progress),
        progress,
    )


def _genai_options(precision: str, block_size: int) -> GenaiQuantizeOptions:
    from pydantic import ValidationError

    from edgesmith.recipe import GenaiQuantizeOptions

    try:
        return GenaiQuantizeOptions.model_validate({"method": precision, "block_size": block_size})
    except ValidationError as error:
        raise UsageError(f"--block-size {block_size}: {error.errors()[0]['msg']}") from error


def imatrix(
    model: Path,
    *,
    data: Path,
    out: Path,
    num_windows: int = NUM_CALIBRATED,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Imatrix:
    """Measure how strongly real text uses each column of each weight, and write it in llama.cpp's format.

    Args:
        model: A checkpoint (run in torch) or an unquantized GGUF file (run by llama.cpp).
        data: Calibration text, not the held-out one.
        out: `.gguf` file to write.
        num_windows: Windows of 512 tokens.
        columns: The column `text` → the file's.
        threads: Of the model.
        progress: Shows how far it is.

    Raises:
        DataError: the text is too short.
    """
    from compress.gguf.imatrix import write_imatrix
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.imatrix import ImatrixStage

    opened = open_artifact(model, kinds=("checkpoint", "gguf"))
    texts = _texts(data, num_windows=num_windows, columns=columns)
    found = ImatrixStage(model=opened, texts=texts, threads=threads).collect(progress)
    write_imatrix(out, found)
    return found


def quantize_gguf(
    source: Path,
    *,
    out: Path,
    options: GgufQuantizeOptions,
    calibration: Path | None = None,
    num_windows: int = NUM_CALIBRATED,
    checkpoint: Path | None = None,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Quantize an unquantized GGUF artifact, and measure how near it stays.

    Args:
        source: f32, f16 or bf16 GGUF artifact or file.
        out: Folder to write.
        options: A type or a budget, as in a recipe; `imatrix` may be a path.
        calibration: Text that the importance matrix is measured on.
        num_windows: Windows of 512 tokens of it.
        checkpoint: What `source` was made from; needed by a budget, and the reference if given.
        data: Text to measure on; packaged sentences if left out.
        columns: The column `text` → the files'.
        threads: Of every engine.
        progress: Shows how far it is.

    Returns:
        The artifact, and `language` → the figures.

    Raises:
        UsageError: a type or a tensor's name is unknown, or something that is needed was not given.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_quantize import GgufQuantizeStage
    from edgesmith.stages.language import ReferenceStage

    opened = open_artifact(source, kinds=("gguf",))
    reference = open_artifact(checkpoint, kinds=("checkpoint",)) if checkpoint else None
    if calibration is None and (options.imatrix is True or options.is_allocated):
        raise UsageError("--calibration is missing: the text that activations are measured on")
    with TemporaryDirectory(prefix="edgesmith-") as temporary, _written(data, Path(temporary), progress) as text:
        work = Path(temporary)
        texts = _texts(text, columns=columns, window=512 if data else 64)
        calibrated = _texts(calibration, num_windows=num_windows, columns=columns) if calibration else None
        matrix = _imatrix(options, reference or opened, calibrated, work, threads, progress)
        sensitivity = None
        if options.is_allocated:
            sensitivity = _sensitivity(options, reference, opened, calibrated, matrix, work, threads, progress)
        recorded = ReferenceStage(checkpoint=reference or opened, texts=texts, threads=threads).make(
            _folder(work / "reference"), progress
        )
        return make_into(
            GgufQuantizeStage(
                source=opened,
                method=options,
                imatrix=matrix,
                sensitivity=sensitivity,
                texts=calibrated,
                threads=threads,
            ),
            out,
            lambda made: _language(made, recorded, texts, work / "language", threads, progress),
            progress,
        )


def verify_language(
    artifact: Artifact, *, against: Path, data: Path | None, threads: int = 1, progress: Progress = SILENT
) -> dict[str, Any]:
    """Prove an unquantized language model's artifact equal to its checkpoint: tokens, chat template, logits.

    Args:
        artifact: GGUF or genai.
        against: The checkpoint.
        data: Text to prove it on; packaged sentences if left out.
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
    return prove_export(artifact, opened, text=_text(data, progress), threads=threads, progress=progress)


def _imatrix(
    options: GgufQuantizeOptions,
    model: Artifact,
    texts: Texts | None,
    work: Path,
    threads: int,
    progress: Progress,
) -> Artifact | Path | None:
    """The user's file, or measured where there is text to do so."""
    from edgesmith.stages.imatrix import ImatrixStage

    if isinstance(options.imatrix, str):
        path = Path(options.imatrix)
        if not path.is_file():
            raise UsageError(f"{path}: no such importance matrix", mend="Make one with `edgesmith imatrix`.")
        return path
    if texts is None or options.imatrix is False:
        return None
    return ImatrixStage(model=model, texts=texts, threads=threads).make(_folder(work / "imatrix"), progress)


def _sensitivity(
    options: GgufQuantizeOptions,
    checkpoint: Artifact | None,
    source: Artifact,
    texts: Texts | None,
    matrix: Artifact | Path | None,
    work: Path,
    threads: int,
    progress: Progress,
) -> Artifact:
    from edgesmith.stages.sensitivity import SensitivityStage

    if checkpoint is None:
        raise UsageError(
            f"{options.name}: the damage is measured on the checkpoint itself",
            mend="Name it: --against CHECKPOINT.",
        )
    assert texts is not None  # as the caller has checked
    stage = SensitivityStage(checkpoint=checkpoint, source=source, texts=texts, imatrix=matrix, threads=threads)
    return stage.make(_folder(work / "sensitivity"), progress)


def _language(
    made: Artifact, reference: Artifact, texts: Texts, folder: Path, threads: int, progress: Progress
) -> dict[str, Any]:
    from bench.language.evaluation import LanguageEvaluation
    from edgesmith.stages.language import LanguageStage

    stage = LanguageStage(artifact=made, reference=reference, texts=texts, threads=threads)
    return {"language": LanguageEvaluation.load(stage.make(_folder(folder), progress).path).summary()}


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
    texts = _texts(data, num_windows=num_windows, window=window, columns=columns)
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


def _texts(path: Path, *, num_windows: int = 64, window: int = 512, columns: Mapping[str, str] | None = None) -> Texts:
    from edgesmith.stages.texts import Texts

    if not path.is_file():
        raise UsageError(f"{path}: no such text file", mend="Check the path.")
    return Texts(path=path, num_windows=num_windows, window=window, columns=columns or {})


def _text(data: Path | None, progress: Progress) -> str:
    """The user's text, or packaged sentences, which is said."""
    from bench.language.windows import read_text
    from edgesmith.tasks.base import sample_texts

    if data is not None:
        return read_text(data)
    progress.note("verified on packaged English sentences; give --data for text of your own")
    return "\n".join(sample_texts())


@contextmanager
def _written(data: Path | None, work: Path, progress: Progress) -> Iterator[Path]:
    """The user's file, or a file of packaged sentences."""
    if data is not None:
        yield data
        return
    path = work / "sentences.txt"
    path.write_text(_text(None, progress), encoding="utf-8")
    yield path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
