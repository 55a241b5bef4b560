"""Prune: checkpoint → checkpoint with zeros among its weights, or with fewer layers, heads and channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UsageError
from edgesmith.files import sha256_text
from edgesmith.progress import Progress
from edgesmith.recipe import PruneOptions
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.stages.texts import CALIBRATION_WINDOW, NUM_CALIBRATED, Texts
from edgesmith.tasks import TEXT_GENERATION, guess_task, load_task, sample_texts
from edgesmith.tasks.folder import read_json_object
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from compress.load import ModelKind
    from compress.prune.structure.result import StructureResult
    from compress.prune.weights.result import SparsityResult

    Pruned: TypeAlias = SparsityResult | StructureResult

__all__ = ["NUM_ROWS", "PruneStage"]

NUM_ROWS = 128
"""Calibration rows of a task, where nobody says."""
_BATCH = 8
_SHORT_WINDOW = 64
"""Tokens of a window of the packaged sentences, which are few."""


@dataclass(frozen=True, kw_only=True)
class PruneStage(Stage):
    """Take out what matters least on calibration data; what is left is trained by a distill step afterwards."""

    step: ClassVar[str] = "prune"
    kind: ClassVar[Kind] = "checkpoint"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "safetensors", "tokenizers", "torch", "transformers")
    is_of_this_machine: ClassVar[bool] = True  # which weight is the lowest can hang on how a processor rounds

    source: Artifact
    prune: PruneOptions
    data: Path | None = None
    """Calibration rows; of a language model a text file, or rows with a column `text`."""
    num_samples: int | None = None
    """Rows of it (128 when None), or windows of 512 tokens (40 when None)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The task's column → the file's."""
    task: str | None = None
    """Guessed from config.json when None."""
    seed: int = 0
    """Of the draw of rows."""
    threads: int = 1
    tell: Callable[[Pruned], None] | None = field(default=None, compare=False)
    """Called with the result, of which the artifact holds all but the memory it took."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {
            **self.prune.model_dump(mode="json", exclude_none=True),
            "num_samples": self.num_samples,
            "columns": dict(self.columns),
            "task": self.task,
            "seed": self.seed,
            "threads": self.threads,  # torch's sums run in another order on more
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        if self.data is not None:
            return {"checkpoint": self.source.digest, "calibration": self._rows.digest}
        sentences = {} if self._is_of_weights else {"calibration": f"sha256:{sha256_text(*sample_texts())}"}
        return {"checkpoint": self.source.digest, **sentences}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Checkpoint and calibration data."""
        return (self.source.path, *([self.data] if self.data else []))

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Prune, and say what it saved."""
        from export.reference import torch_threads

        if self.prune.needs_rows and self.data is None:
            raise UsageError(
                f"prune by {self.prune.measure} looks at what the layers are fed with, and no data were given",
                mend="Name a file of rows, of a language model a text: --data train.jsonl, or data.calibration in a "
                "recipe. By magnitude needs none.",
            )
        with torch_threads(self.threads):
            if self._is_of_weights:
                self._prune_weights(folder, progress)
            else:
                self._prune_structure(folder, progress)
        return self.seal(folder)

    @property
    def _is_of_weights(self) -> bool:
        return self.prune.method != "structured"

    @property
    def _task_name(self) -> str:
        return self.task or guess_task(read_json_object(self.source.folder / "config.json"))

    @property
    def _rows(self) -> Rows:
        return Rows(path=self.data, num=self.num_samples or NUM_ROWS, seed=self.seed, columns=self.columns)

    def _prune_weights(self, folder: Path, progress: Progress) -> None:
        from compress.prune.weights.run import prune_weights

        batches = [] if self.data is None else self._batches()
        result = prune_weights(self.source.folder, folder, self.prune, batches, progress=progress)
        error = f", outputs of a layer move by {result.mean_relative_error:.2%}" if result.mean_relative_error else ""
        progress.note(
            f"prune: {result.method} to {result.target}: {result.num_zeros:,} of {result.num_pruned:,} weights in "
            f"{len(result.matrices)} matrices are zero ({result.sparsity:.4%}; {result.model_sparsity:.2%} of the "
            f"model){error}"
        )
        for left in result.left_dense:
            progress.note(f"  left dense: {left.num_weights:,} weights in {left.num_tensors} tensors: {left.reason}")
        progress.note(
            f"  peak memory +{format_bytes(result.peak_memory_added_bytes)} for {format_bytes(result.model_bytes)} of "
            f"weights (one block {format_bytes(result.block_bytes)}, calibration "
            f"{format_bytes(result.calibration_bytes)})"
        )
        if self.tell is not None:
            self.tell(result)

    def _prune_structure(self, folder: Path, progress: Progress) -> None:
        from compress.prune.structure.prune import prune_structure

        result = prune_structure(
            self.source.folder,
            folder,
            self.prune,
            kind=self._model_kind(),
            batches=self._batches(),
            progress=progress,
        )
        if self.tell is not None:
            self.tell(result)

    def _model_kind(self) -> ModelKind:
        from compress.distill.run_language import LanguageKind

        if self._task_name == TEXT_GENERATION:
            return LanguageKind()
        return load_task(self.source.folder, self._task_name)

    def _batches(self) -> list[Mapping[str, Any]]:
        """Encode the calibration data, or the packaged sentences where there are none."""
        if self._task_name == TEXT_GENERATION:
            return [{"input_ids": np.array([window])} for window in self._windows()]
        task = load_task(self.source.folder, self._task_name, columns=self.columns)
        examples = self._rows.read(task)
        return [task.encode(examples[start : start + _BATCH]) for start in range(0, len(examples), _BATCH)]

    def _windows(self) -> list[list[int]]:
        config = read_json_object(self.source.folder / "config.json")
        limits = [config.get(name) for name in ("max_position_embeddings", "n_positions")]
        window = min([CALIBRATION_WINDOW, *(limit // 2 * 2 for limit in limits if isinstance(limit, int))])
        num_windows = self.num_samples or NUM_CALIBRATED
        if self.data is not None:
            texts = Texts(path=self.data, window=window, num_windows=num_windows, columns=self.columns)
            return texts.cut_by_tokenizer(self.source.folder)
        with TemporaryDirectory(prefix="edgesmith-") as temporary:
            path = Path(temporary) / "sentences.txt"
            path.write_text("\n".join(sample_texts()), encoding="utf-8")
            texts = Texts(path=path, window=min(window, _SHORT_WINDOW), num_windows=num_windows)
            return texts.cut_by_tokenizer(self.source.folder)
