"""GGUF artifacts, a step at a time: importance matrices and fewer bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.api.texts import named_texts, proof_texts
from edgesmith.artifact import MANIFEST
from edgesmith.data import data_digest
from edgesmith.errors import EdgesmithError, UsageError, VerificationError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from bench.language.evaluation import LanguageEvaluation
    from compress.gguf.imatrix import Imatrix
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import GgufQuantizeOptions
    from edgesmith.stages.base import Stage
    from edgesmith.stages.texts import Texts

__all__ = ["imatrix", "quantize_gguf"]


def imatrix(
    model: Path,
    *,
    data: Path,
    out: Path,
    num_windows: int | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Imatrix:
    """Measure how strongly real text uses each column of each weight, and write it in llama.cpp's format.

    Args:
        model: A checkpoint (run in torch) or an unquantized GGUF file (run by llama.cpp).
        data: Calibration text, not the held-out one.
        out: `.gguf` file to write.
        num_windows: Windows of 512 tokens; 40 if left out.
        columns: The column `text` → the file's.
        threads: Of the model.
        progress: Shows how far it is.

    Raises:
        DataError: the text is too short.
    """
    from compress.gguf.imatrix import write_imatrix
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.imatrix import ImatrixStage
    from edgesmith.stages.texts import NUM_CALIBRATED

    opened = open_artifact(model, kinds=("checkpoint", "gguf"))
    texts = named_texts(data, num_windows=num_windows or NUM_CALIBRATED, columns=columns)
    _check_imatrix_replaceable(out, (opened.path, data))
    found = ImatrixStage(model=opened, texts=texts, threads=threads).collect(progress)
    write_imatrix(out, found)
    return found


def quantize_gguf(
    source: Path,
    *,
    out: Path,
    options: GgufQuantizeOptions,
    calibration: Path | None = None,
    num_windows: int | None = None,
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
        num_windows: Windows of 512 tokens of it; 40 if left out.
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
    from bench.language.evaluation import LanguageEvaluation
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_quantize import GgufQuantizeStage
    from edgesmith.stages.language import LanguageStage, ReferenceStage
    from edgesmith.stages.texts import NUM_CALIBRATED

    opened = open_artifact(source, kinds=("gguf",))
    reference = open_artifact(checkpoint, kinds=("checkpoint",)) if checkpoint else None
    _check_given(options, calibration=calibration, checkpoint=checkpoint, data=data)
    calibrated = (
        named_texts(calibration, num_windows=num_windows or NUM_CALIBRATED, columns=columns) if calibration else None
    )
    with proof_texts(data, columns, progress) as texts, TemporaryDirectory(prefix="edgesmith-") as temporary:
        work = _Work(folder=Path(temporary), threads=threads, progress=progress)
        matrix = _imatrix(options, reference or opened, opened, calibrated, work)
        sensitivity = None
        if options.is_allocated:
            sensitivity = work.do("sensitivity", _sensitivity(reference, opened, calibrated, matrix, threads))
        recorded = work.do("reference", ReferenceStage(checkpoint=reference or opened, texts=texts, threads=threads))
        stage = GgufQuantizeStage(
            source=opened,
            method=options,
            imatrix=matrix,
            sensitivity=sensitivity,
            texts=calibrated if options.max_mean_kld is not None else None,
            threads=threads,
        )

        def measure(made: Artifact) -> dict[str, Any]:
            stage = LanguageStage(artifact=made, reference=recorded, texts=texts, threads=threads)
            found = LanguageEvaluation.load(work.do("language", stage).path)
            _check_divergence(options, found, made)
            return {"language": found.summary()}

        return make_into(stage, out, measure, progress)


def _check_given(
    options: GgufQuantizeOptions, *, calibration: Path | None, checkpoint: Path | None, data: Path | None
) -> None:
    """Name all that is missing at once, and what would be ignored."""
    missing = []
    if calibration is None and (options.imatrix is True or options.is_allocated):
        missing.append("--calibration TEXT, on which activations are measured")
    if checkpoint is None and options.is_allocated:
        missing.append("--against CHECKPOINT, on which the damage is measured")
    if missing:
        raise UsageError(f"{options.name} needs {' and '.join(missing)}")
    if calibration is not None and isinstance(options.imatrix, str) and not options.is_allocated:
        raise UsageError("--imatrix and --calibration: the matrix is there, so nothing is measured on the text")
    if calibration is not None and data is not None and data_digest(calibration) == data_digest(data):
        raise UsageError(
            f"{data}: is the calibration text too; the figures would be of what it was tuned to",
            mend="Calibrate on other text than you measure on.",
        )


def _check_divergence(options: GgufQuantizeOptions, found: LanguageEvaluation, made: Artifact) -> None:
    """A budget of divergence was kept on calibration text; on the text that counts it may still be broken."""
    limit, mean = options.max_mean_kld, found.mean_kld()
    if limit is None or mean.value <= limit:
        return
    raise VerificationError(
        f"{made.path.name}: its mean KLD is {mean.value:.4g} nats on the text given, more than max_mean_kld {limit:g}, "
        "which it kept on the calibration text",
        mend="Calibrate on text like the one that counts, or allow more.",
    )


def _check_imatrix_replaceable(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse to overwrite anything but an older importance matrix."""
    from compress.gguf.imatrix import read_imatrix

    mend = "Choose another file with -o/--out, or move this one away."
    place = out.resolve()
    for path in inputs:
        if place == path.resolve() or place.is_relative_to(path.resolve()):
            raise UsageError(f"{out}: would overwrite {path}, which is read", mend=mend)
    if (out.parent / MANIFEST).is_file():
        raise UsageError(f"{out}: would be written into an artifact, whose files are fixed", mend=mend)
    if not out.exists():
        return
    try:
        read_imatrix(out)
    except EdgesmithError:
        raise UsageError(
            f"{out}: is there already and is no importance matrix, so it is not replaced", mend=mend
        ) from None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Where steps leave what later ones need, until the command ends."""

    folder: Path
    threads: int
    progress: Progress

    def do(self, name: str, stage: Stage) -> Artifact:
        """Run one step."""
        folder = self.folder / name
        folder.mkdir()
        return stage.make(folder, self.progress)


def _imatrix(
    options: GgufQuantizeOptions, model: Artifact, source: Artifact, texts: Texts | None, work: _Work
) -> Artifact | Path | None:
    """The user's file, or measured where there is text to do so and a type that it changes."""
    from edgesmith.stages.imatrix import ImatrixStage, imatrix_model, wants_imatrix

    if isinstance(options.imatrix, str):
        path = Path(options.imatrix)
        if not path.is_file():
            raise UsageError(f"{path}: no such importance matrix", mend="Make one with `edgesmith imatrix`.")
        return path
    if texts is None or not wants_imatrix(options, has_text=True):
        return None
    measured_on = imatrix_model(model, source) if model.kind == "checkpoint" else source
    return work.do("imatrix", ImatrixStage(model=measured_on, texts=texts, threads=work.threads))


def _sensitivity(
    checkpoint: Artifact | None,
    source: Artifact,
    texts: Texts | None,
    matrix: Artifact | Path | None,
    threads: int,
) -> Stage:
    from edgesmith.stages.sensitivity import SensitivityStage

    assert checkpoint is not None  # both as the caller has checked
    assert texts is not None
    return SensitivityStage(checkpoint=checkpoint, source=source, texts=texts, imatrix=matrix, threads=threads)
