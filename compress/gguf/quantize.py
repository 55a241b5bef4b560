"""Quantize a GGUF file with llama.cpp's own quantizer: checked before, run apart, read again afterwards."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from compress.gguf.imatrix import Imatrix
from compress.gguf.quantize_plan import (
    FLOATS,
    PROGRESS_LINE,
    Plan,
    check_entries,
    check_imatrix,
    check_source,
    exact_job,
    exactly,
    odd_columns,
    read_plan,
    resolve_types,
)
from compress.gguf.quantize_result import GgufQuantConfig, GgufQuantResult, QuantizedTensor
from compress.gguf.types import TENSOR_TYPES, FileType, find_file_type
from compress.gguf.worker_process import QuantizeFailedError, QuantizeJob, WorkerProcess
from edgesmith.errors import EdgesmithError, StorageError, UnsupportedError, UsageError
from edgesmith.files import storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from serve.runtime.gguf_file import GgufFile, read_gguf
from serve.runtime.llama_library import load_library

__all__ = ["GgufQuantConfig", "GgufQuantResult", "GgufQuantizer", "QuantizedTensor", "quantize_gguf"]

_FULL_DISK_BYTES = 1 << 20


def quantize_gguf(
    source: Path,
    out_file: Path,
    config: GgufQuantConfig | None = None,
    *,
    imatrix: Imatrix | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> GgufQuantResult:
    """Quantize an f32, f16 or bf16 GGUF file. The same arguments give the same bytes, whatever `threads` is.

    Args:
        source: The file. It passes our own reader before llama.cpp sees it.
        out_file: The new file; it appears when it is complete and read again.
        config: The preset, and types for single tensors.
        imatrix: Mean squares of the inputs of the matrices, of this very model.
        threads: For one tensor at a time.
        progress: Told of each tensor.

    Returns:
        What each tensor got, and what could not be had.

    Raises:
        UsageError: a type or pattern is not known, a type needs an importance matrix, or it is of another model.
        ArtifactError: the source is damaged or hostile.
        UnsupportedError: it is quantized already, or llama.cpp cannot do it.
        MissingExtraError: llama-cpp-python is not installed.
        StorageError: the file cannot be written.
    """
    with GgufQuantizer() as quantizer:
        return quantizer.quantize(source, out_file, config, imatrix=imatrix, threads=threads, progress=progress)


class GgufQuantizer:
    """Quantizes any number of files in one child process: cheaper than `quantize_gguf` for each."""

    def __init__(self) -> None:
        load_library()
        self._worker: WorkerProcess | None = None

    def quantize(
        self,
        source: Path,
        out_file: Path,
        config: GgufQuantConfig | None = None,
        *,
        imatrix: Imatrix | None = None,
        threads: int = 1,
        progress: Progress = SILENT,
    ) -> GgufQuantResult:
        """Quantize one file; see `quantize_gguf`."""
        config = GgufQuantConfig() if config is None else config
        preset = find_file_type(config.type)
        file = read_gguf(source)
        check_source(source, file)
        asked = resolve_types(source, file, config.tensor_types)
        if imatrix is not None:
            check_imatrix(source, file, imatrix)
        elif preset.needs_imatrix:
            raise UsageError(f"{preset.name} needs an importance matrix", mend="Collect one on text like the model's.")
        temporary = temporary_sibling(out_file)
        with storage_errors(out_file):
            out_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                job = _preset_job(source, temporary, preset, config, file, imatrix, threads)
                job, plan = self._settle(job, source, file, preset, asked, imatrix)
                with progress.bar(f"Quantize to {preset.name}", len(file.tensors)) as advance:
                    self._run(job, imatrix, lambda line: advance(1) if PROGRESS_LINE.match(line) else None)
                result = _describe(out_file, temporary, file, preset, plan, imatrix, source.stat().st_size)
                _flush(temporary)
                temporary.replace(out_file)
            finally:
                temporary.unlink(missing_ok=True)
        return result

    def close(self) -> None:
        """End the child process. Closing twice is harmless."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> GgufQuantizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(
        self,
        job: QuantizeJob,
        source: Path,
        file: GgufFile,
        preset: FileType,
        asked: Mapping[str, str],
        imatrix: Imatrix | None,
    ) -> tuple[QuantizeJob, Plan]:
        """Ask the quantizer what it would do, put in what was asked for, and see that it obeys."""
        plan = read_plan(source, file, self._run(replace(job, dry_run=True), imatrix))
        wanted = dict(plan.wanted) | {one.name: preset.tensor_type for one in odd_columns(file)}
        if asked:
            job = exact_job(job, preset, {**plan.types, **asked})
            plan = read_plan(source, file, self._run(replace(job, dry_run=True), imatrix))
            if ignored := [name for name, type_name in asked.items() if plan.types[name] != type_name]:
                raise UnsupportedError(
                    f"{source}: llama.cpp leaves {', '.join(ignored[:5])} in {plan.types[ignored[0]]}, "
                    f"{asked[ignored[0]]} was asked for",
                    mend="Leave these tensors out of the types for single tensors.",
                )
        plan = Plan(types=plan.types, wanted={name: wanted[name] for name in wanted if name not in asked})
        check_entries(source, file, preset, plan, imatrix)
        return job, plan

    def _run(
        self, job: QuantizeJob, imatrix: Imatrix | None, on_line: Callable[[str], None] = lambda _: None
    ) -> list[str]:
        if self._worker is None or not self._worker.is_alive:
            self.close()
            self._worker = WorkerProcess()
        matrix = {name: entry.means() for name, entry in imatrix.entries.items()} if imatrix is not None else {}
        try:
            return self._worker.run(job, matrix, on_line)
        except QuantizeFailedError as error:
            raise _explain(job, error) from error
        except BaseException:
            self.close()  # in the middle of a job it cannot be used again
            raise


def _preset_job(
    source: Path,
    temporary: Path,
    preset: FileType,
    config: GgufQuantConfig,
    file: GgufFile,
    imatrix: Imatrix | None,
    threads: int,
) -> QuantizeJob:
    """The preset without types for single tensors, except where the columns fit no block type at all."""
    values: dict[str, int | str] = {}
    if imatrix is not None:
        values["quantize.imatrix.entries_count"] = len(imatrix.entries)
        values["quantize.imatrix.chunks_count"] = imatrix.num_windows
        if imatrix.datasets:
            values["quantize.imatrix.dataset"] = ", ".join(imatrix.datasets)
    odd = [(one.name, "F16" if one.block_type.name == "F32" else one.block_type.name) for one in odd_columns(file)]
    return QuantizeJob(
        source=str(source),
        out=str(temporary),
        file_type=preset.number,
        threads=max(1, threads),
        pure=config.pure,
        tensor_types=[] if preset.tensor_type in FLOATS else [exactly(*one) for one in odd],
        values=values,
    )


def _explain(job: QuantizeJob, error: QuantizeFailedError) -> EdgesmithError:
    """Tell a full disk from a model that cannot be quantized."""
    out = Path(job.out)
    if not job.dry_run and ("ios" in error.message or "write" in error.message or "open" in error.message):
        if shutil.disk_usage(out.parent).free < _FULL_DISK_BYTES:
            with storage_errors(out):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out.parent))
        return StorageError(
            f"{out.parent}: the quantized file cannot be written: {error.message}",
            mend="See whether the disk is full, or a limit on the size of files is set.",
        )
    return UnsupportedError(
        f"{job.source}: llama.cpp cannot quantize it: {error.message}", mend="Choose another type for this model."
    )


def _describe(
    out_file: Path,
    temporary: Path,
    file: GgufFile,
    preset: FileType,
    plan: Plan,
    imatrix: Imatrix | None,
    source_bytes: int,
) -> GgufQuantResult:
    """Read what was written; what it holds must be what was planned."""
    written = read_gguf(temporary)
    found = {name: (one.shape, one.block_type.name) for name, one in written.tensors.items()}
    expected = {name: (one.shape, plan.types[name]) for name, one in file.tensors.items()}
    if found != expected:
        name = next(name for name in expected | found if expected.get(name) != found.get(name))
        raise UnsupportedError(f"{out_file}: {name} was written as {found.get(name)}, expected {expected.get(name)}")
    entries = imatrix.entries if imatrix is not None else {}
    tensors, without = [], []
    for name, one in sorted(written.tensors.items(), key=lambda item: item[1].start):
        type_name, source_type = one.block_type.name, file.tensors[name].block_type.name
        weighted = type_name != source_type and type_name in TENSOR_TYPES and TENSOR_TYPES[type_name].uses_imatrix
        if weighted and imatrix is not None and name not in entries:
            without.append(name)
        tensors.append(
            QuantizedTensor(
                name=name,
                type=type_name,
                num_values=math.prod(one.shape),
                size_bytes=one.size_bytes,
                source_type=source_type,
                wanted=plan.wanted.get(name),
                used_imatrix=weighted and name in entries,
            )
        )
    return GgufQuantResult(
        path=out_file,
        type=preset.name,
        size_bytes=temporary.stat().st_size,
        source_bytes=source_bytes,
        tensors=tuple(tensors),
        without_imatrix=tuple(without),
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
